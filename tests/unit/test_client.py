"""The Python client against a real HTTP server on loopback that answers by a script and remembers what it was asked."""

import asyncio
import inspect
import json
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import httpx2
import pytest

from producer.client import (
    AsyncClient,
    Client,
    ClientError,
    ComparisonFields,
    InvalidRequest,
    NotDecided,
    ServerProblem,
    ServerUnreachable,
    UnexpectedAnswer,
)
from producer.client.plans import retry_delay
from schemas.comparison import ComparisonRequest
from schemas.problems import (
    ALREADY_DECIDED,
    IDEMPOTENCY_KEY_REUSED,
    INTERNAL,
    NOT_FOUND,
    UNAVAILABLE,
    Problem,
    ProblemKind,
)

PAIR: dict[str, Any] = {"prompt": "Capital of Australia?", "response_a": "Sydney.", "response_b": "Canberra."}
ID = f"cmp_{7:032x}"


@dataclass
class Answer:
    """What the server says to one request."""

    status: int
    body: str
    headers: dict[str, str] = field(default_factory=dict)
    after: float = 0.0
    raw: bytes | None = None


@dataclass
class Asked:
    """A request as the server got it."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


def comparison(status: str = "succeeded", number: int = 7) -> dict[str, Any]:
    """A comparison as the service would write it."""
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


def says(status: str = "succeeded", **more: Any) -> Answer:
    """The answer with a comparison in this status."""
    code = 202 if status in {"queued", "running"} else 200
    return Answer(code, json.dumps(comparison(status)), {"Content-Type": "application/json"}, **more)


def problem(kind: ProblemKind, detail: str = "It is so.", **headers: str) -> Answer:
    """The answer with a problem document."""
    body = Problem(kind, detail).document("req_1").model_dump_json(exclude_none=True)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(kind.status, body, {"Content-Type": "application/problem+json", **named})


DROP = Answer(0, "", raw=b"")
"""The connection is closed without a word."""


class Court:
    """A server that gives the scripted answers in turn, the last one forever."""

    def __init__(self) -> None:
        self.script: list[Answer] = []
        self.asked: list[Asked] = []
        court = self

        class Handler(BaseHTTPRequestHandler):
            wbufsize = -1  # an answer in one packet
            protocol_version: ClassVar[str] = "HTTP/1.1"  # type: ignore[misc] # connections are kept, as uvicorn does

            def answer(self) -> None:
                length = int(self.headers.get("Content-Length", "0"))
                body = json.loads(self.rfile.read(length)) if length else None
                headers = {name.lower(): value for name, value in self.headers.items()}
                court.asked.append(Asked(self.command, self.path, headers, body))
                answer = court.script.pop(0) if len(court.script) > 1 else court.script[0]
                time.sleep(answer.after)
                if answer.raw is not None:
                    self.wfile.write(answer.raw)
                    self.close_connection = True
                    return
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer.body.encode())))
                self.end_headers()
                self.wfile.write(answer.body.encode())

            do_GET = do_POST = answer  # noqa: N815 - the names that http.server calls

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self) -> None:
        """Stop listening."""
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def court() -> Iterator[Court]:
    """The scripted server."""
    server = Court()
    yield server
    server.close()


class Caller:
    """Calls a method of one of the two clients, noting how long it would have slept instead of sleeping."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.naps: list[float] = []

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
        if seconds:
            self.naps.append(seconds)

    async def _nap_async(self, seconds: float) -> None:
        self._nap(seconds)


@pytest.fixture(params=["sync", "async"])
def call(request: pytest.FixtureRequest) -> Caller:
    """Both clients in turn: they keep the same promises."""
    return Caller(request.param)


def test_a_submission_says_what_to_judge_and_carries_a_key(court: Court, call: Caller) -> None:
    """The body has the fields that were given and no others; each call has a key of its own."""
    court.script = [says("queued")]
    filed = call(court.url, "submit", client={"api_key": "nc_secret"}, **PAIR, order="ab")
    call(court.url, "submit", ComparisonRequest(**PAIR))
    first, second = court.asked
    assert (filed.id, filed.status) == (ID, "queued")
    assert (first.method, first.path, first.body) == ("POST", "/v1/comparisons", {**PAIR, "order": "ab"})
    assert first.headers["authorization"] == "Bearer nc_secret"
    assert first.headers["content-type"] == "application/json"
    assert "prefer" not in first.headers
    assert second.body == PAIR
    assert "authorization" not in second.headers
    assert first.headers["idempotency-key"] != second.headers["idempotency-key"]


def test_a_conversation_is_given_as_dicts(court: Court, call: Caller) -> None:
    """Turns need no classes of ours, and a proxy's path may stand before the API's."""
    court.script = [says()]
    turns = [{"role": "user", "content": "Hi"}]
    call(court.url + "/judging/", "submit", **{**PAIR, "prompt": turns}, wait=2.5)
    [asked] = court.asked
    assert asked.body["prompt"] == turns
    assert asked.path == "/judging/v1/comparisons"
    assert asked.headers["prefer"] == "wait=2.500"


@pytest.mark.parametrize(
    "failure",
    [DROP, problem(UNAVAILABLE), problem(INTERNAL), Answer(502, "<html>")],
    ids=["dropped", "unavailable", "internal_error", "bad_gateway"],
)
def test_the_key_is_kept_over_retries(court: Court, call: Caller, failure: Answer) -> None:
    """A submission that failed in passing is sent again as the same submission, so nothing is filed twice."""
    court.script = [failure, failure, says("queued")]
    assert call(court.url, "submit", **PAIR, idempotency_key="run-7/line-3").id == ID
    assert [asked.headers["idempotency-key"] for asked in court.asked] == ["run-7/line-3"] * 3
    assert len(call.naps) == 2
    court.script = [failure, says("queued")]
    call(court.url, "submit", **PAIR)
    assert court.asked[3].headers["idempotency-key"] == court.asked[4].headers["idempotency-key"]


def test_retry_after_is_honoured(court: Court, call: Caller) -> None:
    """What the server asks for is the least that is waited, but never more than half a minute."""
    court.script = [problem(UNAVAILABLE, Retry_After="3"), problem(UNAVAILABLE, Retry_After="86400"), says()]
    call(court.url, "get", ID)
    assert 3 <= call.naps[0] <= 3.2
    assert 30 <= call.naps[1] <= 30.4


def test_retries_end(court: Court, call: Caller) -> None:
    """After `max_retries` the last problem is raised; 0 asks once."""
    court.script = [problem(UNAVAILABLE, "The database cannot be reached.")]
    with pytest.raises(ServerProblem, match="The database cannot be reached") as raised:
        call(court.url, "get", ID, client={"max_retries": 2})
    assert (raised.value.status, raised.value.code, len(court.asked)) == (503, "unavailable", 3)
    with pytest.raises(ServerProblem):
        call(court.url, "get", ID, client={"max_retries": 0})
    assert len(court.asked) == 4


@pytest.mark.parametrize("asked", ["", "soon", "-1", "Wed, 21 Oct 2026 07:28:00 GMT", "٣"])
def test_backoff_doubles_from_a_fifth_of_a_second_to_five(asked: str) -> None:
    """The longest sleeps are 0.2, 0.4, 0.8 seconds and so on; jitter takes any part of it, down to none."""
    busy = httpx2.Response(429, headers=[(b"Retry-After", asked.encode())])
    longest = [retry_delay(attempt, busy, 9, lambda: 1.0) for attempt in range(9)]
    assert longest == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, 5, 5])
    assert retry_delay(0, busy, 9, lambda: 0.0) == 0
    assert retry_delay(9, busy, 9, lambda: 0.0) is None
    assert retry_delay(5000, busy, 9999, lambda: 1.0) == 5


def test_a_no_is_not_asked_again(court: Court, call: Caller) -> None:
    """A 404, a 409 or a 422 stays what it is, at every attempt."""
    court.script = [
        problem(NOT_FOUND),
        problem(ALREADY_DECIDED),
        problem(IDEMPOTENCY_KEY_REUSED, "Take a new key."),
    ]
    for method, code in (("get", "not_found"), ("cancel", "already_decided")):
        with pytest.raises(ServerProblem) as raised:
            call(court.url, method, ID)
        assert raised.value.code == code
        assert raised.value.document.request_id == "req_1"
    with pytest.raises(ServerProblem, match=r"used before with another body: Take a new key\.$"):
        call(court.url, "submit", **PAIR)
    assert [asked.path for asked in court.asked] == [
        f"/v1/comparisons/{ID}",
        f"/v1/comparisons/{ID}/cancel",
        "/v1/comparisons",
    ]
    assert call.naps == []


def test_no_server_says_where_and_how_to_start_one(call: Caller) -> None:
    """The message has the address and the command."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody answers, and nobody else can
        port = taken.getsockname()[1]
        with pytest.raises(ServerUnreachable) as raised:
            call(f"http://127.0.0.1:{port}/", "get", ID)
    assert f"at http://127.0.0.1:{port} (" in str(raised.value)
    assert "`nightcourt up`" in str(raised.value)
    assert len(call.naps) == 4


def test_a_silent_server_is_unreachable(court: Court, call: Caller) -> None:
    """An answer that does not come within `timeout` is a failure like any other."""
    court.script = [says(after=5)]
    with pytest.raises(ServerUnreachable, match=r"timed out|ReadTimeout"):
        call(court.url, "get", ID, client={"timeout": 0.2, "max_retries": 1})
    assert len(court.asked) == 2


def test_a_held_answer_has_more_time(court: Court, call: Caller) -> None:
    """While the server was asked to hold its answer, the client's patience starts when that is over."""
    court.script = [says(after=0.3)]
    assert call(court.url, "get", ID, wait=15, client={"timeout": 0.05}).status.final
    assert call(court.url, "get", ID, wait=3600, client={"timeout": 0.05}).status.final
    assert [asked.headers["prefer"] for asked in court.asked] == ["wait=15.000", "wait=60.000"]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer(200, "<html>It works!", {"Content-Type": "text/html; charset=utf-8"}), r"200 \(text/html\).*JSON"),
        (Answer(200, '{"hello": "world"}', {"Content-Type": "application/json"}), r"\(id: Field required\)"),
        (Answer(404, '{"detail": "Not Found"}', {"Content-Type": "application/json"}), "404.*Another program"),
        (Answer(502, "Bad Gateway", {"Content-Type": "text/plain"}), r"502 \(text/plain\).*a proxy may stand between"),
        (Answer(301, "", {"Location": "https://court.example/"}), "It redirects to https://court.example/"),
        (Answer(204, ""), "another version"),
    ],
    ids=lambda value: str(value.status) if isinstance(value, Answer) else "",
)
def test_another_programs_answer_is_told_apart(court: Court, call: Caller, answer: Answer, words: str) -> None:
    """What is no answer of nightcourt's is said to be none, in words and not in a validator's trace."""
    court.script = [answer]
    with pytest.raises(UnexpectedAnswer, match=words) as raised:
        call(court.url, "get", ID)
    assert f"{court.url}/v1/comparisons/{ID} answered" in str(raised.value)
    assert raised.value.__cause__ is None


def test_a_program_that_speaks_no_http_is_no_server(court: Court, call: Caller) -> None:
    """A database on that port looks like no server at all."""
    court.script = [Answer(0, "", raw=b"-ERR unknown command\r\n")]
    with pytest.raises(ServerUnreachable, match="No nightcourt server answered"):
        call(court.url, "get", ID)


def test_waiting_polls_until_the_end(court: Court, call: Caller) -> None:
    """Each poll is held by the server for up to 20 seconds, with a breath between two of them."""
    court.script = [says("queued"), says("running"), says("errored")]
    assert call(court.url, "wait", ID, timeout=600).status == "errored"
    assert [asked.headers["prefer"] for asked in court.asked] == ["wait=20.000"] * 3
    assert call.naps == [0.25, 0.25]


def test_waiting_ends_in_time_and_names_the_comparison(court: Court, call: Caller) -> None:
    """When the time is up the error has the comparison, so that anyone can go on waiting for it."""
    court.script = [says("running", after=0.06)]
    with pytest.raises(TimeoutError, match=f"{ID} was still running") as raised:
        call(court.url, "wait", ID, timeout=0.1)
    assert isinstance(raised.value, NotDecided)
    assert raised.value.comparison.id == ID
    assert 1 <= len(court.asked) <= 3
    with pytest.raises(NotDecided):
        call(court.url, "wait", ID, timeout=0)
    assert "prefer" not in court.asked[-1].headers


def test_a_wait_outlasts_the_service(court: Court, call: Caller) -> None:
    """However often it does not answer, or a gateway before it says so, the wait goes on, with a breath of seconds."""
    away = [DROP, problem(UNAVAILABLE), Answer(502, "<html>"), Answer(503, "<html>"), Answer(504, "<html>")]
    court.script = [*away, says("running"), *away, *away, says("succeeded")]
    assert call(court.url, "wait", ID, timeout=600).status == "succeeded"
    assert max(call.naps) <= 5
    court.script = [says("queued"), *away, *away, says("succeeded")]
    assert call(court.url, "judge", *PAIR.values(), timeout=600).status == "succeeded"
    court.script = [says("running"), *away, problem(NOT_FOUND)]
    with pytest.raises(ServerProblem) as raised:
        call(court.url, "wait", ID, timeout=600)
    assert (raised.value.code, raised.value.passing) == ("not_found", False)


@pytest.mark.parametrize("failure", [DROP, problem(UNAVAILABLE), Answer(502, "<html>")])
def test_a_wait_that_ends_while_the_service_is_away(court: Court, call: Caller, failure: Answer) -> None:
    """What was seen last is what the time ended on, and why no more is known stands behind; nothing seen, it is all."""
    court.script = [says("running"), failure]
    with pytest.raises(NotDecided) as raised:
        call(court.url, "wait", ID, timeout=0.5)
    assert raised.value.comparison.status == "running"
    with pytest.raises(ClientError) as alone:
        call(court.url, "wait", ID, timeout=0.1)
    for error in (raised.value.__cause__, alone.value, pickle.loads(pickle.dumps(alone.value))):  # noqa: S301 - our own
        assert type(error) is type(alone.value)
        assert isinstance(error, ServerUnreachable | ServerProblem | UnexpectedAnswer)
        assert error.passing


def test_no_retry_outlasts_the_wait(court: Court, call: Caller) -> None:
    """A server that asks for more patience than there is time left is told on at once."""
    court.script = [problem(UNAVAILABLE, Retry_After="20")]
    with pytest.raises(ServerProblem):
        call(court.url, "wait", ID, timeout=5)
    assert (len(court.asked), call.naps) == (1, [])


def test_judging_is_filing_and_waiting(court: Court, call: Caller) -> None:
    """One call gives the verdict; where the first request brings it already, there is no second."""
    court.script = [says("queued"), says("succeeded")]
    assert call(court.url, "judge", *PAIR.values(), timeout=30, tie_margin=0.1).status == "succeeded"
    filed, polled = court.asked
    assert filed.body == {**PAIR, "tie_margin": 0.1}
    assert filed.headers["prefer"] == "wait=20.000"
    assert (polled.method, polled.path) == ("GET", f"/v1/comparisons/{ID}")
    assert call(court.url, "judge", *PAIR.values(), timeout=19).status == "succeeded"
    assert 9 < float(court.asked[2].headers["prefer"].removeprefix("wait=")) <= 19
    assert len(court.asked) == 3


def test_waiting_for_a_turn_is_no_more_time(court: Court, call: Caller) -> None:
    """Where others keep the connections, an answer is held for what is left of the time by then, and the rest ends."""
    court.script = [says("queued", after=1.2)]
    found = call.together(court.url, "judge", *PAIR.values(), timeout=1.8, calls=3, room=1)
    assert [type(each) for each in found] == [NotDecided] * 3
    filed = [asked for asked in court.asked if asked.method == "POST"]
    first, *others = [float(asked.headers.get("prefer", "wait=0").removeprefix("wait=")) for asked in filed]
    assert first <= 1.8
    assert max(others) < first - 0.6
    assert len(court.asked) < 6
    court.script = [says("queued", after=1.2)]
    found = call.together(court.url, "wait", ID, timeout=0.6, calls=2, room=1)
    assert {type(each) for each in found} == {NotDecided, ServerUnreachable}
    assert any("was not asked: all 100 connections of this client were taken" in str(each) for each in found)


def test_iterating_reads_page_after_page(court: Court, call: Caller) -> None:
    """Every comparison comes once, in the order of the pages, which are asked for as they are needed."""
    pages = [[9, 8], [7, 6], [5]]
    for number, page in enumerate(pages, start=1):
        data = [comparison(number=each) for each in page]
        more = number < len(pages)
        body = {"object": "list", "data": data, "first_id": data[0]["id"], "last_id": data[-1]["id"], "has_more": more}
        court.script.append(Answer(200, json.dumps(body)))
    assert [int(each.id[4:], 16) for each in call(court.url, "iterate")] == [9, 8, 7, 6, 5]
    assert [asked.path for asked in court.asked] == [
        "/v1/comparisons?limit=100",
        f"/v1/comparisons?limit=100&after=cmp_{8:032x}",
        f"/v1/comparisons?limit=100&after=cmp_{6:032x}",
    ]


def test_listing_gives_one_page(court: Court, call: Caller) -> None:
    """An empty page is a page."""
    court.script = [Answer(200, '{"object":"list","data":[],"first_id":null,"last_id":null,"has_more":false}')]
    assert call(court.url, "list", limit=5).data == []
    assert call(court.url, "iterate") == []
    assert court.asked[0].path == "/v1/comparisons?limit=5"


@pytest.mark.parametrize(
    ("fields", "name", "words"),
    [
        ({"prompt": "x", "response_a": "y"}, "response_b", "Field required"),
        ({**PAIR, "prompt": [{"role": "user", "content": ""}]}, "prompt[0].content", "at least 1 character"),
        ({**PAIR, "tie_margin": 0.7}, "tie_margin", "less than 0.5"),
        ({**PAIR, "oder": "ab"}, "oder", "not permitted"),
        ({**PAIR, "response_a": "\x00"}, "response_a", "NUL"),
        ({**PAIR, "idempotency_key": "clé"}, "Idempotency-Key", "printable ASCII"),
        ({**PAIR, "idempotency_key": ""}, "Idempotency-Key", "1 to 255"),
    ],
)
def test_what_cannot_be_right_is_not_sent(
    court: Court, call: Caller, fields: dict[str, Any], name: str, words: str
) -> None:
    """The error names the field, as the server would have, and reads like any other problem."""
    with pytest.raises(InvalidRequest, match=words) as raised:
        call(court.url, "submit", **fields)
    assert raised.value.code == "invalid_request"
    assert name in str(raised.value)
    assert [error.field for error in raised.value.document.errors or []] == [name]
    assert court.asked == []


def test_an_id_that_is_none_is_not_sent(court: Court, call: Caller) -> None:
    """Nothing but an id gets into the path."""
    for wrong in ("", "..", "cmp_1", f"{ID}/cancel"):
        with pytest.raises(InvalidRequest, match="comparison_id: looks like cmp_"):
            call(court.url, "get", wrong)
    with pytest.raises(TypeError, match="not both"):
        call(court.url, "submit", ComparisonRequest(**PAIR), **PAIR)
    assert court.asked == []


@pytest.mark.parametrize("url", ["127.0.0.1:8300", "localhost:8300", "", "ftp://court", "http://", "http://a:99999"])
def test_an_address_that_is_none_is_refused(url: str, call: Caller) -> None:
    """A forgotten `http://` is found when the client is made, not when it is used."""
    with pytest.raises(InvalidRequest, match="base_url: begins with http://"):
        call(url, "list")
    with pytest.raises(InvalidRequest, match="api_key: takes") as raised:
        call("http://127.0.0.1", "list", client={"api_key": "secret\n"})
    assert "secret" not in str(raised.value)
    with pytest.raises(InvalidRequest, match="base_url: has a user or a password in it") as raised:
        call("http://user:hunter2@127.0.0.1", "list", client={"api_key": "key"})
    assert "hunter2" not in str(raised.value)


def test_a_proxy_of_the_environment_does_not_stand_before_loopback(
    court: Court, call: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A company's proxy setting must not make the service of this very machine unreachable."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    court.script = [says()]
    assert call(court.url, "get", ID, client={"max_retries": 0}).id == ID


@pytest.mark.parametrize(
    ("name", "value"),
    [("ALL_PROXY", "socks5://a"), ("ALL_PROXY", "ftp://a"), ("SSL_CERT_FILE", "/no"), ("SSL_CERT_FILE", __file__)],
)
def test_what_the_environment_names_and_cannot_be_used(
    call: Caller, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """It is told as every error of a client is, by the name that it has there."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ClientError, match=rf"cannot be used \(.+\)\. Look at .*{name}"):
        call("https://court.example", "get", ID)


def test_errors_travel_between_processes(court: Court) -> None:
    """All of them are a ClientError, and come out of a pool of processes as they went in."""
    court.script = [says("queued"), problem(NOT_FOUND)]
    errors: list[ClientError] = []
    with Client(court.url) as client:
        for method, args in ((client.wait, (ID, 0)), (client.get, (ID,)), (client.get, ("",))):
            with pytest.raises(ClientError) as raised:
                method(*args)
            errors.append(raised.value)
    for error in errors:
        copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
        assert (type(copy), str(copy)) == (type(error), str(error))
    assert [type(error) for error in errors] == [NotDecided, ServerProblem, InvalidRequest]


def test_both_clients_have_the_same_methods() -> None:
    """They take the same arguments, are documented, know every field, and show no class of the HTTP library."""
    assert ComparisonFields.__annotations__.keys() == ComparisonRequest.model_fields.keys()
    for name in ("submit", "get", "list", "iterate", "cancel", "wait", "judge", "close"):
        one, other = getattr(Client, name), getattr(AsyncClient, name)
        assert inspect.signature(one).parameters == inspect.signature(other).parameters
        assert one.__doc__ == other.__doc__ != None  # noqa: E711
        assert "httpx2" not in str(inspect.signature(one))


def test_client_imports_no_server_library() -> None:
    """A program that files comparisons loads the client, the schemas, httpx2 and pydantic."""
    code = "import sys, producer.client; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert not loaded & {
        "fastapi",
        "starlette",
        "sqlalchemy",
        "celery",
        "structlog",
        "typer",
        "redis",
        "infra",
        "worker",
    }
    ours = {name for name in loaded if name.startswith("producer.")}
    assert all(name.startswith("producer.client") for name in ours)
