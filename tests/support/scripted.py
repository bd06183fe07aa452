"""A service that answers by a script, on loopback, and a caller that asks it with either of the two clients."""

import asyncio
import inspect
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

from producer.client import AsyncClient, Client
from schemas.problems import Problem, ProblemKind

_CUT = 20
"""Bytes that are missing of an answer that breaks off."""


@dataclass(frozen=True)
class Answer:
    """What the service says to one request. With a status of 0 the body stands alone, and is no HTTP."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    after: float = 0.0
    """Seconds before it is said."""
    cut: bool = False
    """Whether it breaks off before its end."""
    unread: bool = False
    """Whether it is said before the request was heard out."""


DROP = Answer(0)
"""The connection is closed without a word."""
GATEWAY = Answer(502, b"<html>")
"""A gateway before it that does not reach it."""
PAIR: dict[str, Any] = {"prompt": "Capital of Australia?", "response_a": "Sydney.", "response_b": "Canberra."}


def says(content: Any, status: int = 200, *, kind: str = "application/json", **headers: str) -> Answer:
    """Give an answer of JSON."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, json.dumps(content).encode(), {"Content-Type": kind, **named})


def comparison(status: str = "succeeded", number: int = 7) -> dict[str, Any]:
    """Give a comparison as the service would write it."""
    decided = None if status in {"queued", "running"} else "2026-01-01T00:00:01Z"
    return {
        "id": f"cmp_{number:032x}",
        "object": "comparison",
        "status": status,
        "created_at": "2026-01-01T00:00:00Z",
        "decided_at": decided,
        "custom_id": None,
        "metadata": {},
        "verdict": None,
        "error": None,
    }


def stands(status: str = "succeeded", *, after: float = 0.0) -> Answer:
    """Give the answer with a comparison in this status, which is said after so many seconds."""
    return replace(says(comparison(status), 202 if status in {"queued", "running"} else 200), after=after)


def problem(kind: ProblemKind, detail: str = "It is so.", **headers: str) -> Answer:
    """Give the answer with a problem document."""
    document = Problem(kind, detail).document("req_1").model_dump(mode="json", exclude_none=True)
    return says(document, kind.status, kind="application/problem+json", **headers)


def openai_error(status: int, code: str, message: str = "It is so.", param: str | None = None) -> Answer:
    """Give the answer with an error in OpenAI's shape."""
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    return says({"error": error}, status, X_Request_Id="req_9")


@dataclass(frozen=True)
class Asked:
    """A request as the service got it."""

    method: str
    path: str
    headers: dict[str, str]
    """By their names in small letters."""
    body: bytes

    @property
    def json(self) -> Any:
        """What the body says."""
        return json.loads(self.body)


class ScriptedService:
    """Gives the answers of its script in turn, the last one forever; `away`, not before it has arrived.

    Attributes:
        url: where it is.
        script: the answers to come.
        asked: the requests so far.
    """

    def __init__(self, *, away: bool = False) -> None:
        self.script: list[Answer] = []
        self.asked: list[Asked] = []
        service = self

        class Handler(BaseHTTPRequestHandler):
            wbufsize = -1  # an answer in one packet
            protocol_version: ClassVar[str] = "HTTP/1.1"  # type: ignore[misc] # connections are kept, as uvicorn does

            def answer(self) -> None:
                answer = service.script.pop(0) if len(service.script) > 1 else service.script[0]
                body = b"" if answer.unread else self.read()
                headers = {name.lower(): value for name, value in self.headers.items()}
                service.asked.append(Asked(self.command, self.path, headers, body))
                self.close_connection = answer.cut or answer.unread or not answer.status
                time.sleep(answer.after)
                if answer.status:
                    self.send_response(answer.status)
                    for name, value in answer.headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(answer.body)))
                    self.end_headers()
                self.wfile.write(answer.body[:-_CUT] if answer.cut else answer.body)
                if answer.unread:  # hanging up at once could take the words back
                    self.wfile.flush()
                    self.read()

            def read(self) -> bytes:
                if self.headers.get("Transfer-Encoding") != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length", "0")))
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return body

            do_DELETE = do_GET = do_POST = answer  # noqa: N815 - the names that http.server calls

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
        self._server.server_bind()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        if not away:
            self.arrive()

    def arrive(self) -> None:
        """Listen."""
        self._server.server_activate()
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


class Caller:
    """Calls a method of one of the two clients, noting how long it would have slept instead of sleeping.

    Attributes:
        naps: seconds of each sleep.
        meanwhile: what happens at the first nap.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.naps: list[float] = []
        self.meanwhile: Callable[[], None] = lambda: None

    def __call__(self, url: str, method: str, *args: Any, client: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        """Open a client, call, close; what comes one by one is collected."""
        if self.kind == "sync":
            with Client(url, **(client or {})) as opened:
                opened._sleep = self._nap  # type: ignore[assignment]
                result = getattr(opened, method)(*args, **kwargs)
                return list(result) if inspect.isgenerator(result) else result

        async def call() -> Any:
            async with AsyncClient(url, **(client or {})) as opened:
                opened._sleep = self._nap_async  # type: ignore[assignment]
                result = getattr(opened, method)(*args, **kwargs)
                return [each async for each in result] if inspect.isasyncgen(result) else await result

        return asyncio.run(call())

    def together(self, url: str, method: str, *args: Any, calls: int, room: int, **kwargs: Any) -> list[Any]:
        """Make calls of one client at the same time, of which so many are under way; gives what came of each."""
        if self.kind == "sync":
            with Client(url) as client, ThreadPoolExecutor(calls) as pool:
                client._room = threading.Semaphore(room)
                futures = [pool.submit(getattr(client, method), *args, **kwargs) for _ in range(calls)]
                return [future.exception() or future.result() for future in futures]

        async def gathered() -> list[Any]:
            async with AsyncClient(url) as client:
                client._room = asyncio.Semaphore(room)
                made = [getattr(client, method)(*args, **kwargs) for _ in range(calls)]
                return await asyncio.gather(*made, return_exceptions=True)

        return asyncio.run(gathered())

    def _nap(self, seconds: float) -> None:
        if seconds > 0:
            self.naps.append(seconds)
            if len(self.naps) == 1:
                self.meanwhile()

    async def _nap_async(self, seconds: float) -> None:
        self._nap(seconds)
