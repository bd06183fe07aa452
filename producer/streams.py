"""Streams of events: counted while they are open, since each holds a request for as long as its reader likes."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress

from fastapi import Request
from fastapi.responses import StreamingResponse
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
