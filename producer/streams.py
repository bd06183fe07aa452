"""Requests that are held: streams of events, while their readers like, and those that are to read a large batch."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from producer.access import Caller


class EventStream(StreamingResponse):
    """Server-sent events, or a problem where as many streams are open as may be."""

    def __init__(
        self, request: Request, caller: Caller, events: AsyncIterator[str], headers: Mapping[str, str] | None = None
    ) -> None:
        sent = {"Cache-Control": "no-store", **(headers or {}), "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=sent)
        self._counted = request.app.state.streams.one(caller)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events, if there is room for one more stream."""
        # Here, and not where it is made: whoever is gone by then is never counted, and leaves nothing behind.
        with self._counted:
            await super().__call__(scope, receive, send)


async def rest(request: Request, seconds: float) -> None:
    """Wait between one look and the next, and no longer than the server goes on."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await request.app.state.ending.wait()


@asynccontextmanager
async def large_read(request: Request, tenant: str) -> AsyncIterator[None]:
    """Wait for the tenant's turn to read all of a large batch; whoever waits here must hold no connection.

    Raises:
        ClientDisconnect: whoever asked is gone by then, and nobody waits for what would be read.
    """
    async with request.app.state.limiter.large_read(tenant):
        if await request.is_disconnected():
            raise ClientDisconnect
        yield
