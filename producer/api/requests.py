"""What requests have in common: an id that follows each into the logs, a log line, and the key to send it again by."""

import re
import time
import uuid
from typing import Annotated

import structlog
from fastapi import Header
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infra.logs import REQUEST_ID
from schemas.problems import INVALID_HEADER, Problem

log = structlog.get_logger("http")

_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_KEY = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,253}[\x21-\x7e])?")

IdempotencyKey = Annotated[
    str | None,
    Header(description="Up to 255 printable characters. The same key with the same body files nothing twice"),
]


def known_key(key: str | None) -> str | None:
    """Take an idempotency key as it was sent.

    Raises:
        Problem: it is none.
    """
    if key is not None and not _KEY.fullmatch(key):
        raise Problem(INVALID_HEADER, "Idempotency-Key takes 1 to 255 printable ASCII characters.")
    return key


class RequestIds:
    """Takes over a caller's `X-Request-Id` or makes one, binds it to the log lines, and gives it back."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        request_id = given if _ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"
        scope.setdefault("state", {})["request_id"] = request_id
        status = 500
        started = time.perf_counter()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        with structlog.contextvars.bound_contextvars(**{REQUEST_ID: request_id}):
            try:
                await self._app(scope, receive, send_with_id)
            except Exception:
                log.exception("request_failed")
                raise
            finally:
                log.info(
                    "http_request",
                    method=scope["method"],
                    route=getattr(scope.get("route"), "path", None),
                    status=status,
                    milliseconds=round((time.perf_counter() - started) * 1000, 2),
                )
