"""What all requests have in common: an id, a log line, a count, a span, a limit, and the idempotency key."""

import ipaddress
import re
import time
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from http import HTTPStatus
from typing import Annotated

import structlog
from fastapi import Header, Request, Response
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infra import metrics
from infra.addresses import is_public
from infra.logs import REQUEST_ID
from infra.meters import Meters
from infra.traces import Span, Traces
from producer.api import problems
from schemas.problems import INVALID_HEADER, UNAVAILABLE, Problem

log = structlog.get_logger("http")

_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_KEY = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,253}[\x21-\x7e])?")

_HELD = b"preference-applied"
"""The header of an answer that was held because its caller asked for that."""

_HUNG_UP = 499
"""The status that is counted for a client that disconnected before it was answered, as nginx does. It is never sent."""

IdempotencyKey = Annotated[
    str | None,
    Header(description="Up to 255 printable characters. The same key with the same body files nothing twice"),
]


def known_key(key: str | None) -> str | None:
    """Check an idempotency key, and return it.

    Raises:
        Problem: it is not 1 to 255 printable ASCII characters.
    """
    if key is not None and not _KEY.fullmatch(key):
        raise Problem(INVALID_HEADER, "Idempotency-Key takes 1 to 255 printable ASCII characters.")
    return key


_METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})


_PROBES = frozenset({"/livez", "/readyz", "/metrics"})
"""Asked every few seconds by what watches over the process: not traced, and answered however much is under way."""


class Requests:
    """Middleware that gives each request an id (its `X-Request-Id`, or a new one), a log line, a count and a span.

    While `most` requests are under way, further ones are answered with 503 and `Retry-After`; probes are not.
    """

    def __init__(
        self, app: ASGIApp, meters: Meters, traces: Traces, answer_failed: Callable[[Request], Response], most: int
    ) -> None:
        self._app = app
        self._answer_failed = answer_failed
        self._most = most
        self._under_way = 0
        self._warned = False
        self._meters = meters
        self._traces = traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        request_id = given if _ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"
        scope.setdefault("state", {})["request_id"] = request_id
        self._warn_of_proxy(scope)
        status = 0
        started = time.perf_counter()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if not any(name == _HELD for name, _ in message["headers"]):
                    self._meters.observe(metrics.HTTP_SECONDS, time.perf_counter() - started, route=_route(scope))
                told = scope["state"].get("rate_limit", {})
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", request_id.encode()),
                    *((name.lower().encode(), value.encode()) for name, value in told.items()),
                ]
            await send(message)

        self._meters.add(metrics.HTTP_UNDER_WAY)
        counts = scope["path"] not in _PROBES
        app = _too_many if counts and self._under_way >= self._most else self._app
        self._under_way += counts
        with structlog.contextvars.bound_contextvars(**{REQUEST_ID: request_id}), self._span(scope, headers) as span:
            try:
                await app(scope, receive, send_with_id)
            except ClientDisconnect:
                status = status or _HUNG_UP
            except Exception:
                log.exception("request_failed")
                if status:
                    raise
                # Answered here and not by the framework, which is outside of this and would leave out the request's id.
                await self._answer_failed(Request(scope))(scope, receive, send_with_id)
            finally:
                status = status or 500
                self._meters.add(metrics.HTTP_UNDER_WAY, -1)
                self._under_way -= counts
                if ended := scope["state"].get("ended"):
                    ended()
                method = scope["method"] if scope["method"] in _METHODS else "other"
                self._meters.add(metrics.HTTP_REQUESTS, method=method, route=_route(scope), status=str(status))
                _describe(span, method, _route(scope), status)
                log.info(
                    "http_request",
                    method=scope["method"],
                    route=getattr(scope.get("route"), "path", None),
                    status=status,
                    key=getattr(scope["state"].get("caller"), "key_id", None),
                    milliseconds=round((time.perf_counter() - started) * 1000, 2),
                )

    def _warn_of_proxy(self, scope: Scope) -> None:
        """Warn, once, of a proxy that is not trusted.

        Its address stands for all clients behind it, so the wrong keys that one of them tries slow all of them down.

        uvicorn takes as the client the last address of `X-Forwarded-For` that is not a trusted proxy's, or the peer
        itself where that is not trusted. If the client is the first in the header (perhaps with a port), all proxies
        are trusted. If it stands later, whoever is at that address wrote what stands before it. A private address is
        then a proxy of ours that is not trusted; a public one is a client that has a proxy of its own, or made the
        beginning of the header up.
        """
        if self._warned or not scope.get("client"):
            return
        forwarded = [value.decode("latin-1") for name, value in scope["headers"] if name == b"x-forwarded-for"]
        if not "".join(forwarded).strip():
            return
        client = scope["client"][0]
        spelt = re.compile(rf"\[?{re.escape(client)}\]?(:\d+)?")
        first, *others = [bool(spelt.fullmatch(each.strip())) for each in ",".join(forwarded).split(",")]
        if not first and not (any(others) and _is_public(client)):
            self._warned = True
            log.warning("proxy_not_trusted", client=client)

    def _span(self, scope: Scope, headers: dict[bytes, bytes]) -> AbstractContextManager[Span]:
        traces = Traces() if scope["path"] in _PROBES else self._traces
        return traces.request("request", headers.get(b"traceparent", b"").decode("latin-1"))


def _is_public(address: str) -> bool:
    try:
        return is_public(ipaddress.ip_address(address))
    except ValueError:
        return False


async def _too_many(scope: Scope, receive: Receive, send: Send) -> None:
    detail = "This process has as many requests under way as it takes. Send it again, with the same Idempotency-Key."
    problem = Problem(UNAVAILABLE, detail, headers={"Retry-After": "1"})
    await problems.answer(Request(scope), problem)(scope, receive, send)


def _describe(span: Span, method: str, route: str, status: int) -> None:
    """Say in a span what was asked, by the names that OpenTelemetry has for it."""
    span.rename(f"{method} {route}")
    span.note({"http.request.method": method, "http.route": route, "http.response.status_code": status})
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        span.fail(str(status))


def _route(scope: Scope) -> str:
    """The template of a request's route, for labels: there is no end of different paths."""
    return getattr(scope.get("route"), "path", None) or "unmatched"
