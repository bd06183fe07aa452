"""Reading a request's body: capped before it is buffered, and parsed so that no input can make a 500."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic_core import from_json

from producer.api.access import KeyedRoute
from producer.deadlines import in_time
from schemas.problems import BODY_TOO_LARGE, MALFORMED_JSON, UNSUPPORTED_MEDIA_TYPE, Problem

_SECONDS, _OF_BYTES = 60.0, 4 * 1024 * 1024
"""How long a body may take to come: so long for so many bytes at most, and as much longer as a key may send more."""


class _JsonRequest(Request):
    """A request whose JSON body was read and parsed before the framework asks for it."""

    def __init__(self, request: Request, parsed: Any, raw: bytes) -> None:
        super().__init__(request.scope, request.receive)
        self._parsed = parsed
        self._body = raw

    async def json(self) -> Any:
        return self._parsed


async def read_capped(request: Request, limit: int) -> bytes:
    """Read a body of at most `limit` bytes.

    Raises:
        Problem: the body is, or says it is, larger, or does not come in time. Nothing beyond the limit is kept in
            memory.
    """
    too_large = Problem(
        BODY_TOO_LARGE,
        f"The body is larger than the {limit} bytes that your key may send at a time.",
        headers={"Connection": "close"},
    )
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise too_large
    body = bytearray()
    async with in_time(_SECONDS * max(1.0, limit / _OF_BYTES), "The body"):
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise too_large
    return bytes(body)


def parse_json(raw: bytes) -> Any:
    """Parse JSON in Rust, which refuses lone surrogates, bytes that are not UTF-8, and endless nesting.

    Raises:
        Problem: the bytes are not JSON; the detail names line and column, never the text.
    """
    try:
        return from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        raise Problem(MALFORMED_JSON, f"The body is not JSON that this server takes: {error}.") from None


class _JsonBody(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap the framework's handler."""
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle

        async def handle_json(request: Request) -> Response:
            media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if media_type != "application/json" or request.headers.get("content-encoding", "identity") != "identity":
                raise Problem(
                    UNSUPPORTED_MEDIA_TYPE,
                    "Send the body as JSON, unencoded, with the header Content-Type: application/json.",
                )
            raw = await read_capped(request, request.app.state.limiter.of(request.state.caller).max_body_bytes)
            return await handle(_JsonRequest(request, parse_json(raw), raw))

        return handle_json


class JsonRoute(KeyedRoute, _JsonBody):
    """A route that tells who asks, and then reads its JSON body by the rules of this module."""
