"""A server that is asked over HTTP: a pool of connections, deadlines that hold, and retries that end.

The only HTTP client of the worker's engines. Nothing that a server says in an error is passed on or logged: it may
quote the prompt or the key.

One thread runs an event loop, so that a deadline holds for the whole of a request, from connecting to its last byte.
"""

import asyncio
import json
import random
import ssl
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import CancelledError
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import httpx2
import structlog

from infra.retry_after import read_retry_after
from worker.engines.base import EngineError, EngineGoneError

log = structlog.get_logger()

T = TypeVar("T")

_MOST_FAULTS = 3
_BUSY_OR_AWAY = {
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.GATEWAY_TIMEOUT,
}
_REFUSES_ALL = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND}
"""Refusals of the key, or of the model by its name: no prompt's fault, where others were answered before."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 15.0
_MOST_BYTES = 64 << 20


class RefusedError(EngineError):
    """The server will not do this, and asking again would not change it."""

    def __init__(self, path: str, status: int) -> None:
        # What the server says may quote the prompt or the key, so it is not passed on.
        super().__init__(f"the server refused {path} with status {status}")
        self.status = status


class AwayError(EngineError):
    """The server could not be reached, was too busy, or took nobody's prompts, for as long as there was patience."""


class Reply(NamedTuple):
    """What came back for one request."""

    status: int
    retry_after: str
    content: bytes


class Remote:
    """One server. `run` may be called from several threads; the coroutines run on a thread of its own.

    Args:
        root: where the server is, without a path.
        key: sent as `Authorization: Bearer`, to this server alone.
        requests: how many requests may be under way, waiting to be tried again included.
        request_seconds: how long one request may take.
        patience_seconds: how long a call may take in all, waiting for its turn and every try included.
        ca_file: certificates to trust, in PEM, instead of the usual authorities.

    Raises:
        ValueError: the certificates cannot be read.
    """

    def __init__(
        self,
        root: str,
        *,
        key: str | None,
        requests: int,
        request_seconds: float,
        patience_seconds: float,
        ca_file: Path | None,
    ) -> None:
        self._root = root
        self._request_seconds = request_seconds
        self._patience_seconds = patience_seconds
        self._turns = asyncio.Semaphore(requests)
        self._http = httpx2.AsyncClient(
            headers={"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {key}"} if key else {}),
            timeout=None,  # asyncio.timeout holds for the whole of a request
            limits=httpx2.Limits(max_connections=requests + 1, max_keepalive_connections=requests),
            verify=_trust(ca_file) if ca_file else True,
            trust_env=False,
            follow_redirects=False,
        )
        self._waited_out = _BUSY_OR_AWAY
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="remote", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something on the loop's thread and wait for it on this one."""
        if self._closed:
            work.close()
            raise EngineGoneError("the engine is closed")
        try:
            return asyncio.run_coroutine_threadsafe(work, self._loop).result()
        except CancelledError:
            raise EngineGoneError("the engine was closed meanwhile") from None

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Call from a thread that is not the loop's."""
        return self.run(self.call(path, body))

    def expect_no_refusal(self) -> None:
        """Wait out refusals of key or model from now on: the server has taken both, and somebody will mend that."""
        self._waited_out = _BUSY_OR_AWAY | _REFUSES_ALL

    def turns(self, *, within: float) -> bool:
        """Whether this is open and its loop goes round. The server is not asked."""
        turned = threading.Event()
        try:
            self._loop.call_soon_threadsafe(turned.set)
        except RuntimeError:  # the loop is closed
            return False
        return turned.wait(within) and not self._closed

    def close(self) -> None:
        """Close all connections; what is under way fails. May be called twice."""
        if self._closed:
            return
        self._closed = True
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def call(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """POST a body, or GET where there is none, in turn; returns the answer's JSON.

        The patience begins at once. So calls that begin together end together, however many turns they take, and as
        the turns go by who came first, none waits for one that may take longer.

        Raises:
            RefusedError: the server will not, with a 4xx other than those that are waited out.
            AwayError: it did not answer in all the time that there was.
            EngineError: it failed at this each time, or its answer is not JSON.
        """
        give_up_at = time.monotonic() + self._patience_seconds
        async with self._turns:
            return await self._persist(path, body, give_up_at)

    async def _persist(self, path: str, body: dict[str, Any] | None, give_up_at: float) -> Any:
        """Ask until there is an answer, or no sense or no time in asking again.

        429 and 503 say that the server is busy: wait as long as it says. No connection says that it is away, or not
        there yet, and so does a proxy before it with 502 and 504. Any other 5xx is a failure at this very request,
        which is tried a few times; the rest is refusals.
        """
        pause, tries, faults = _FIRST_PAUSE, 0, 0
        while True:
            tries += 1
            wait = random.uniform(pause / 2, pause)  # noqa: S311 - spreads retries, guards nothing
            try:
                seconds = max(min(self._request_seconds, give_up_at - time.monotonic()), 0.001)
                reply = await self._send(path, body, seconds)
            except (httpx2.RequestError, TimeoutError) as error:
                if _distrusted(error):
                    raise EngineError(
                        "the server's certificate is not trusted; NIGHTCOURT_ENGINE_CA_FILE takes one to trust"
                    ) from None
                trouble = f"it did not answer ({type(error).__name__})"
            else:
                if reply.status == HTTPStatus.OK:
                    return _json(reply.content)
                trouble = f"it answered with status {reply.status}"
                if reply.status in self._waited_out:
                    wait += read_retry_after(reply.retry_after) or 0.0
                elif reply.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                    faults += 1
                else:
                    raise RefusedError(path, reply.status)
            failed = f"the server could not be brought to answer {path} in {tries} tries: {trouble}"
            if faults == _MOST_FAULTS:
                raise EngineError(failed)
            if time.monotonic() + wait > give_up_at:
                # Told sooner, a server that asks for an hour would use up all attempts at a prompt within seconds.
                await asyncio.sleep(give_up_at - time.monotonic())
                raise AwayError(failed)
            log.warning("engine_waits", path=path, trouble=trouble, tries=tries, retry_in=round(wait, 2))
            await asyncio.sleep(wait)
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _send(self, path: str, body: dict[str, Any] | None, seconds: float) -> Reply:
        """One request, from connecting to the last byte of the answer, in so many seconds."""
        content = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        async with (
            asyncio.timeout(seconds),
            self._http.stream(
                "GET" if body is None else "POST", self._root + path, content=content, headers=headers
            ) as got,
        ):
            received = bytearray()
            async for chunk in got.aiter_bytes():
                received += chunk
                if len(received) > _MOST_BYTES:
                    raise EngineError(f"the server's answer to {path} has no end")
            return Reply(got.status_code, got.headers.get("Retry-After", ""), bytes(received))

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._http.aclose()


def _trust(ca_file: Path) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=str(ca_file))
    except OSError as error:  # ssl.SSLError is one
        raise ValueError(f"NIGHTCOURT_ENGINE_CA_FILE: {ca_file} cannot be read: {error.strerror or error}") from None


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        raise EngineError("the server's answer is not JSON") from None


def _distrusted(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    return error is not None
