"""The Python client's files and batches, against a real HTTP server on loopback that answers by a script."""

import asyncio
import inspect
import io
import json
import pickle
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from producer.client import (
    AsyncClient,
    BatchNotEnded,
    BatchOptions,
    Client,
    InvalidRequest,
    ServerProblem,
    ServerUnreachable,
    UnexpectedAnswer,
)
from schemas.batch import BatchRequest

BATCH = f"batch_{7:032x}"
JSON = {"Content-Type": "application/json"}


@dataclass
class Answer:
    """What the server says to one request."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=lambda: dict(JSON))
    cut: bool = False
    unread: bool = False


@dataclass
class Asked:
    """A request as the server got it."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


def batch(status: str = "in_progress", **more: Any) -> Answer:
    """The answer with a batch in this status."""
    counts = dict.fromkeys(("completed", "failed", "succeeded", "errored", "cancelled", "expired", "reused"), 0)
    times = ("in_progress", "expires", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
    body = {
        "id": BATCH,
        "endpoint": "/v1/comparisons",
        "errors": None,
        "input_file_id": "file-1",
        "completion_window": "24h",
        "status": status,
        "output_file_id": None,
        "error_file_id": None,
        "created_at": 1,
        **{f"{name}_at": None for name in times},
        "request_counts": {"total": 9, **counts},
        "usage": None,
        "metadata": None,
        "paused": False,
        "priority": 0,
        "not_before": None,
        "window": None,
        "on_bad_line": "fail",
        "progress": {"decided": 4, "lines_per_second": None, "eta_seconds": None, "waiting_for": "it is paused"},
    }
    return Answer(200, json.dumps({**body, **more}).encode())


def file() -> Answer:
    """The answer with a file."""
    body = {"id": "file-1", "bytes": 3, "created_at": 1, "filename": "x.jsonl", "purpose": "batch", "lines": 1}
    return Answer(200, json.dumps(body).encode())


def problem(status: int, code: str, message: str = "It is so.", param: str | None = None) -> Answer:
    """The answer with an error in OpenAI's shape."""
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    return Answer(status, json.dumps({"error": error}).encode(), {**JSON, "X-Request-Id": "req_9"})


def result(line: int, custom_id: str | None = None) -> bytes:
    """A line of results, as Postgres would write it."""
    comparison = {
        "id": f"cmp_{7:032x}_{line}",
        "object": "comparison",
        "status": "cancelled",
        "created_at": "2026-01-01T00:00:00.5+00:00",
        "decided_at": "2026-01-01T00:00:01+00:00",
        "custom_id": custom_id or str(line),
        "metadata": {},
        "verdict": None,
        "error": {"code": "cancelled", "message": "called off"},
    }
    return json.dumps(comparison, ensure_ascii=False).encode() + b"\n"


def results(*lines: int, cut: bool = False) -> Answer:
    """The answer with results; `cut` breaks off in the middle of the last line."""
    return Answer(200, b"".join(map(result, lines)), {"Content-Type": "application/jsonl"}, cut=cut)


DROP = Answer(0, b"")
"""The connection is closed without a word."""


class Court:
    """A server that gives the scripted answers in turn, the last one forever; `away`, not before it has arrived."""

    def __init__(self, *, away: bool = False) -> None:
        self.script: list[Answer] = []
        self.asked: list[Asked] = []
        court = self

        class Handler(BaseHTTPRequestHandler):
            wbufsize = -1
            protocol_version: ClassVar[str] = "HTTP/1.1"  # type: ignore[misc]

            def answer(self) -> None:
                answer = court.script.pop(0) if len(court.script) > 1 else court.script[0]
                body = b"" if answer.unread else self.read()
                headers = {name.lower(): value for name, value in self.headers.items()}
                court.asked.append(Asked(self.command, self.path, headers, body))
                self.close_connection = answer.cut or answer.unread or not answer.status
                if not answer.status:
                    return
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                self.wfile.write(answer.body[:-20] if answer.cut else answer.body)
                if answer.unread:  # said before it was heard out; hanging up at once could take the words back
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

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
        self.server.server_bind()
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        if not away:
            self.arrive()

    def arrive(self) -> None:
        """Listen."""
        self.server.server_activate()
        self.thread.start()

    def close(self) -> None:
        """Stop listening."""
        if self.thread.is_alive():
            self.server.shutdown()
            self.thread.join()
        self.server.server_close()


@pytest.fixture
def court() -> Iterator[Court]:
    """The scripted server."""
    server = Court()
    yield server
    server.close()


class Pipe(io.RawIOBase):
    """Two lines that can be read once."""

    def __init__(self) -> None:
        self.rest = [b"[1]\n", b"[2]\n"]

    def read(self, size: int = -1) -> bytes:
        """Read what comes next."""
        return self.rest.pop(0) if self.rest else b""


class Caller:
    """Calls a method of one of the two clients, without sleeping between attempts."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.naps = 0
        self.meanwhile: Callable[[], None] = lambda: None
        """What happens at the first nap."""

    def __call__(self, url: str, method: str, *args: Any, client: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        """Open a client, call, close."""
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

    def _nap(self, seconds: float) -> None:
        if seconds > 0:
            self.naps += 1
            if self.naps == 1:
                self.meanwhile()

    async def _nap_async(self, seconds: float) -> None:
        self._nap(seconds)


@pytest.fixture(params=["sync", "async"])
def call(request: pytest.FixtureRequest) -> Caller:
    """Both clients in turn: they keep the same promises."""
    return Caller(request.param)


def form(asked: Asked) -> tuple[dict[str, bytes], str]:
    """Take an uploaded form apart: its fields, and the name of its file."""
    boundary = asked.headers["content-type"].partition("boundary=")[2].encode()
    _, *parts, last = asked.body.split(b"--" + boundary)
    assert last == b"--\r\n"
    fields, filename = {}, ""
    for part in parts:
        head, _, value = part.removeprefix(b"\r\n").removesuffix(b"\r\n").partition(b"\r\n\r\n")
        fields[re.search(rb' name="(\w+)"', head)[1].decode()] = value  # type: ignore[index]
        named = re.search(rb'filename="([^"]*)"', head)
        filename = named[1].decode() if named else filename
    return fields, filename


class TestUpload:
    def test_a_file_is_sent_in_pieces(self, court: Court, call: Caller, tmp_path: Path) -> None:
        """It arrives whole as OpenAI's form, and progress is told on the way, of a known size."""
        court.script = [file()]
        data = bytes(range(256)) * 4096
        (path := tmp_path / "pairs.jsonl").write_bytes(data)
        told: list[tuple[int, int | None]] = []
        uploaded = call(court.url, "upload", path, on_progress=lambda *now: told.append(now))
        assert (uploaded.id, uploaded.lines) == ("file-1", 1)
        assert form(court.asked[0]) == ({"purpose": b"batch", "file": data}, "pairs.jsonl")
        assert (court.asked[0].method, court.asked[0].path) == ("POST", "/v1/files")
        assert [sent for sent, _ in told] == [262144 * n for n in range(5)]
        assert {of for _, of in told} == {1048576}

    @pytest.mark.parametrize(
        ("make", "filename", "named"),
        [
            (lambda: b"{}\n", None, "upload.jsonl"),
            (lambda: io.BytesIO(b"{}\n"), 'a "b"\r\n.jsonl', "a %22b%22%0D%0A.jsonl"),
        ],
        ids=["bytes", "file object"],
    )
    def test_what_else_may_be_sent(
        self, court: Court, call: Caller, make: Callable[[], Any], filename: str | None, named: str
    ) -> None:
        """Bytes and open files do, under any name, which cannot break out of its header."""
        court.script = [file()]
        call(court.url, "upload", make(), filename=filename)
        assert form(court.asked[0]) == ({"purpose": b"batch", "file": b"{}\n"}, named)

    def test_what_can_be_read_once_is_sent_once(self, court: Court, call: Caller) -> None:
        """A pipe has no size and no second reading: it is sent as it comes, and not again after a failure."""
        court.script = [file()]
        told: list[tuple[int, int | None]] = []
        call(court.url, "upload", Pipe(), on_progress=lambda *now: told.append(now))
        assert form(court.asked[0])[0]["file"] == b"[1]\n[2]\n"
        assert told == [(0, None), (4, None), (8, None)]
        court.script = [DROP, file()]
        with pytest.raises(ServerUnreachable):
            call(court.url, "upload", Pipe())
        court.script = [problem(429, "busy"), file()]
        with pytest.raises(ServerProblem) as raised:
            call(court.url, "upload", Pipe())
        assert raised.value.code == "busy"
        assert [form(asked)[0]["file"] for asked in court.asked] == [b"[1]\n[2]\n"] * 3

    def test_a_pipe_that_was_not_begun_is_sent_later(self, call: Caller) -> None:
        """An attempt that found no server took nothing from it."""
        court = Court(away=True)
        court.script, call.meanwhile = [file()], court.arrive
        try:
            call(court.url, "upload", Pipe())
        finally:
            court.close()
        assert [form(asked)[0]["file"] for asked in court.asked] == [b"[1]\n[2]\n"]

    def test_a_failed_upload_is_sent_again_from_where_it_began(self, court: Court, call: Caller) -> None:
        """Each attempt carries all of the file, from where the caller had read to, and progress begins anew."""
        court.script = [DROP, problem(503, "unavailable"), file()]
        opened = io.BytesIO(b"skip{}\n")
        opened.seek(4)
        told: list[tuple[int, int | None]] = []
        call(court.url, "upload", opened, on_progress=lambda *now: told.append(now))
        assert [form(asked)[0]["file"] for asked in court.asked] == [b"{}\n"] * 3
        assert told == [(0, 3), (3, 3)] * 3
        assert not opened.closed

    def test_a_refusal_in_the_middle_is_heard(self, court: Court, call: Caller, tmp_path: Path) -> None:
        """A server that says no before it has read everything is understood, not taken for a broken connection."""
        court.script = [Answer(413, problem(413, "body_too_large").body, {**JSON, "Connection": "close"}, unread=True)]
        (path := tmp_path / "large.jsonl").write_bytes(b"x" * 300_000)
        with pytest.raises(ServerProblem) as raised:
            call(court.url, "upload", path, client={"max_retries": 0})
        assert raised.value.code == "body_too_large"

    def test_a_file_that_is_not_there(self, court: Court, call: Caller, tmp_path: Path) -> None:
        """Python's own error comes out, and nothing is asked."""
        with pytest.raises(FileNotFoundError):
            call(court.url, "upload", str(tmp_path / "none.jsonl"))
        assert court.asked == []


class TestBatches:
    def test_a_batch_is_made_of_a_file(self, court: Court, call: Caller) -> None:
        """The body has what was given and no more, in the service's words."""
        court.script = [batch()]
        made = call(court.url, "create_batch", "file-1", "7d", window={"start": "22:00", "end": "06:00"}, priority=3)
        call(court.url, "create_batch", "file-1")
        assert (made.id, made.status.final) == (BATCH, False)
        required = {"input_file_id": "file-1", "endpoint": "/v1/comparisons"}
        window = {"start": "22:00:00", "end": "06:00:00"}
        first, second = (json.loads(asked.body) for asked in court.asked)
        assert first == {**required, "completion_window": "7d", "window": window, "priority": 3}
        assert second == {**required, "completion_window": "24h"}

    def test_no_batch_is_made_twice(self, court: Court, call: Caller) -> None:
        """A batch may be asked for again and again, since each attempt has the same key; the next call has another."""
        passing = [problem(503, "unavailable"), problem(429, "busy"), DROP, problem(500, "internal_error")]
        court.script = [*passing, batch()]
        for _ in range(2):
            assert call(court.url, "create_batch", "file-1", client={"max_retries": 4}).id == BATCH
        keys = [asked.headers["idempotency-key"] for asked in court.asked]
        assert [keys.count(key) for key in dict.fromkeys(keys)] == [5, 1]
        court.script = [DROP, batch()]
        call(court.url, "create_batch", "file-1", priority=2, idempotency_key="night/7")
        assert [asked.headers["idempotency-key"] for asked in court.asked[6:]] == ["night/7"] * 2
        assert json.loads(court.asked[-1].body)["priority"] == 2
        with pytest.raises(InvalidRequest, match="Idempotency-Key"):
            call(court.url, "create_batch", "file-1", idempotency_key="")

    @pytest.mark.parametrize(
        ("method", "argument"),
        [
            ("retry_batch", BATCH),
            ("add_endpoint", "https://receiver.example/"),
            ("rotate_secret", None),
            ("rotate_secret", f"cep_{7:032x}"),
            ("remove_endpoint", f"cep_{7:032x}"),
            ("test_endpoint", f"cep_{7:032x}"),
            ("replay", f"cbk_{7:032x}"),
            ("replay_dead", datetime(2026, 1, 31, tzinfo=UTC)),
        ],
    )
    def test_what_has_no_key_is_not_done_twice(self, court: Court, call: Caller, method: str, argument: Any) -> None:
        """What may have been carried out is not repeated, and the message says so; what was refused in passing is."""
        court.script = [problem(429, "busy"), DROP, batch()]
        with pytest.raises(ServerUnreachable, match="may have been done all the same; look before"):
            call(court.url, method, argument)
        for status, code in ((503, "unavailable"), (500, "internal_error")):  # both may follow a commit
            court.script = [problem(status, code), batch()]
            with pytest.raises(ServerProblem) as raised:
                call(court.url, method, argument)
            assert raised.value.code == code
        assert len(court.asked) == 4

    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("pause_batch", "/pause"),
            ("resume_batch", "/resume"),
            ("cancel_batch", "/cancel"),
            ("retry_batch", "/retry"),
        ],
    )
    def test_what_is_done_to_a_batch(self, court: Court, call: Caller, method: str, path: str) -> None:
        """Each answers with the batch as it stands then; those that may be repeated are, after a passing failure."""
        court.script = [batch()] if method == "retry_batch" else [DROP, batch(paused=True)]
        call(court.url, method, BATCH)
        assert {(asked.method, asked.path) for asked in court.asked} == {("POST", f"/v1/batches/{BATCH}{path}")}

    def test_reading_and_listing(self, court: Court, call: Caller) -> None:
        """A batch is read by its id, and all of them a page at a time."""
        court.script = [batch("failed", errors={"data": [{"code": "invalid_json_line", "line": 3}]})]
        read = call(court.url, "batch", BATCH)
        assert read.status.final
        assert read.errors.data[0]["line"] == 3
        page = {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}
        court.script = [Answer(200, json.dumps(page).encode())]
        assert call(court.url, "batches", limit=5, after=BATCH).data == []
        assert [asked.path for asked in court.asked] == [f"/v1/batches/{BATCH}", f"/v1/batches?limit=5&after={BATCH}"]

    def test_waiting(self, court: Court, call: Caller) -> None:
        """It is asked again until it has ended, or until the time is up, which is told with how it stands."""
        court.script = [batch(), batch("cancelling"), batch("expired")]
        assert call(court.url, "wait_batch", BATCH, timeout=60).status == "expired"
        assert call.naps == 2
        court.script = [batch()]
        with pytest.raises(BatchNotEnded, match=r"in_progress .* 4 of 9 lines decided \(it is paused\)") as raised:
            call(court.url, "wait_batch", BATCH, timeout=0)
        assert isinstance(raised.value, TimeoutError)
        assert pickle.loads(pickle.dumps(raised.value)).batch.id == BATCH  # noqa: S301 - our own

    def test_a_wait_outlasts_the_service(self, court: Court, call: Caller) -> None:
        """A night's wait goes on where the service is away for a while; where it still is at the end, both are told."""
        away = [DROP, problem(503, "unavailable"), Answer(502, b"<html>")]
        court.script = [*away, *away, batch(), *away, *away, batch("completed")]
        assert call(court.url, "wait_batch", BATCH, timeout=600).status == "completed"
        assert len(court.asked) == 14
        court.script = [batch(), DROP]
        with pytest.raises(BatchNotEnded) as raised:
            call(court.url, "wait_batch", BATCH, timeout=0.5)
        assert isinstance(raised.value.__cause__, ServerUnreachable)
        court.script = [batch(), problem(404, "not_found")]
        with pytest.raises(ServerProblem):
            call(court.url, "wait_batch", BATCH, timeout=600)

    def test_errors_in_openais_shape(self, court: Court, call: Caller) -> None:
        """They come out as any other problem: a code, a title, a sentence, the request's id and the field."""
        court.script = [problem(422, "invalid_request", "window.start: no.", "window.start")]
        with pytest.raises(ServerProblem) as raised:
            call(court.url, "create_batch", "file-1")
        document = raised.value.document
        assert str(raised.value) == "The request does not fit its schema: window.start: no."
        assert (document.status, document.code, document.request_id) == (422, "invalid_request", "req_9")
        assert [(each.field, each.message) for each in document.errors or []] == [("window.start", "window.start: no.")]
        court.script = [problem(418, "teapot")]
        with pytest.raises(ServerProblem, match=r"^I'm a [Tt]eapot: It is so\.$") as raised:
            call(court.url, "batch", BATCH)
        assert raised.value.document.errors is None

    def test_what_cannot_be_right_is_not_sent(self, court: Court, call: Caller) -> None:
        """Options and ids are looked at before anything is asked."""
        with pytest.raises(InvalidRequest, match="completion_window: "):
            call(court.url, "create_batch", "file-1", "soon")
        with pytest.raises(InvalidRequest, match=r"window.timezone: .*no time zone"):
            call(court.url, "create_batch", "file-1", window={"start": "01:00", "end": "02:00", "timezone": "Mars"})
        for method in ("batch", "cancel_batch", "batch_results"):
            with pytest.raises(InvalidRequest, match="looks like batch_"):
                call(court.url, method, "../files")
        assert court.asked == []


class TestResults:
    def test_they_come_as_comparisons(self, court: Court, call: Caller) -> None:
        """A line ends where the server ended it, and nowhere else, whatever a name holds."""
        body = result(1, "a\u2028b\x85c") + result(2)
        court.script = [Answer(200, body, {"Content-Type": "application/jsonl; charset=utf-8"})]
        found = call(court.url, "batch_results", BATCH)
        assert [each.custom_id for each in found] == ["a\u2028b\x85c", "2"]
        assert found[0].error.code == "cancelled"
        assert court.asked[0].path == f"/v1/batches/{BATCH}/results"

    def test_none_yet(self, court: Court, call: Caller) -> None:
        """A batch of which nothing is decided has no results."""
        court.script = [results()]
        assert call(court.url, "batch_results", BATCH) == []

    def test_a_broken_connection_is_mended(self, court: Court, call: Caller) -> None:
        """Reading goes on after the last whole line, and no line comes twice."""
        court.script = [
            problem(503, "unavailable"),
            results(2, 5, 7, cut=True),
            results(2, 5, cut=True),
            results(2, 5, 7, 9),
        ]
        found = call(court.url, "batch_result_lines", BATCH)
        assert b"".join(line + b"\n" for line in found) == b"".join(map(result, (2, 5, 7, 9)))
        assert len(court.asked) == 4

    def test_what_does_not_mend_ends(self, court: Court, call: Caller) -> None:
        """After `max_retries` without a new line, what is the matter is raised."""
        court.script = [results(2, 5, cut=True)]
        with pytest.raises(ServerUnreachable, match="No nightcourt server answered"):
            call(court.url, "batch_results", BATCH, client={"max_retries": 2})
        assert len(court.asked) == 3
        court.script = [problem(404, "not_found", "There is no batch of this id.")]
        with pytest.raises(ServerProblem, match="There is no batch of this id"):
            call(court.url, "batch_results", BATCH)

    @pytest.mark.parametrize(
        "answer",
        [
            Answer(200, b"<html>", {"Content-Type": "text/html"}),
            Answer(200, b'{"hello": "world"}\n', {"Content-Type": "application/jsonl"}),
        ],
        ids=["page", "line"],
    )
    def test_another_programs_answer_is_told_apart(self, court: Court, call: Caller, answer: Answer) -> None:
        """What is no result is said to be none."""
        court.script = [answer]
        with pytest.raises(UnexpectedAnswer, match="not as nightcourt would"):
            call(court.url, "batch_results", BATCH)

    def test_they_are_not_collected_first(self) -> None:
        """Lines are handed on while the server is still writing, so that a million take no more memory than one."""
        listening = socket.create_server(("127.0.0.1", 0))
        seen = threading.Event()
        went_on: list[bool] = []

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                head = b"HTTP/1.1 200 OK\r\nContent-Type: application/jsonl\r\nTransfer-Encoding: chunked\r\n\r\n"
                chunks = [b"%x\r\n%b\r\n" % (len(line), line) for line in (result(1), result(2))]
                connection.sendall(head + chunks[0])
                went_on.append(seen.wait(30))
                connection.sendall(chunks[1] + b"0\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        began = time.monotonic()
        with listening, Client(f"http://127.0.0.1:{listening.getsockname()[1]}") as client:
            reading = client.batch_results(BATCH)
            assert next(reading).custom_id == "1"
            seen.set()
            assert [each.custom_id for each in reading] == ["2"]
        thread.join()
        assert went_on == [True]
        assert time.monotonic() - began < 30


def test_both_clients_have_the_same_methods() -> None:
    """They take the same arguments, are documented, know every option, and show no class of the HTTP library."""
    options = BatchRequest.model_fields.keys() - {"input_file_id", "endpoint", "completion_window"}
    assert BatchOptions.__annotations__.keys() == options
    names = [name for name in vars(Client) if "batch" in name or name == "upload"]
    assert len(names) == 11
    for name in names:
        one, other = getattr(Client, name), getattr(AsyncClient, name)
        assert inspect.signature(one).parameters == inspect.signature(other).parameters
        assert one.__doc__ == other.__doc__ != None  # noqa: E711
        assert "httpx2" not in str(inspect.signature(one))
