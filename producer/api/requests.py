"""What holds for every request: an id that follows it into the logs, and one log line when it is answered."""

import re
import time
import uuid

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infra.logs import REQUEST_ID

log = structlog.get_logger("http")

_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


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
