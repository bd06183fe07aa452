"""The Python client filing and reading comparisons, against a service on loopback that answers by a script."""

import inspect
import pickle
import socket
import subprocess
import sys
from typing import Any

import httpx2
import pytest
from support.scripted import DROP, GATEWAY, PAIR, Answer, Caller, ScriptedService, comparison, problem, says, stands

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
from producer.client.plans import retry_delay, without_version
from schemas.comparison import ComparisonRequest
from schemas.problems import ALREADY_DECIDED, IDEMPOTENCY_KEY_REUSED, INTERNAL, NOT_FOUND, UNAVAILABLE

ID = comparison()["id"]


def test_a_submission_says_what_to_judge_and_carries_a_key(court: ScriptedService, call: Caller) -> None:
    """The body has the fields that were given and no others; each call has a key of its own."""
    court.script = [stands("queued")]
    filed = call(court.url, "submit", client={"api_key": "nc_secret"}, **PAIR, order="ab")
    call(court.url, "submit", ComparisonRequest(**PAIR))
    first, second = court.asked
    assert (filed.id, filed.status) == (ID, "queued")
    assert (first.method, first.path, first.json) == ("POST", "/v1/comparisons", {**PAIR, "order": "ab"})
    assert first.headers["authorization"] == "Bearer nc_secret"
    assert first.headers["content-type"] == "application/json"
    assert "prefer" not in first.headers
    assert second.json == PAIR
    assert "authorization" not in second.headers
    assert first.headers["idempotency-key"] != second.headers["idempotency-key"]


def test_a_conversation_is_given_as_dicts(court: ScriptedService, call: Caller) -> None:
    """Turns need no classes of ours, and a proxy's path may stand before the API's."""
    court.script = [stands()]
    turns = [{"role": "user", "content": "Hi"}]
    call(court.url + "/judging/", "submit", **{**PAIR, "prompt": turns}, wait=2.5)
    [asked] = court.asked
    assert asked.json["prompt"] == turns
    assert asked.path == "/judging/v1/comparisons"
    assert asked.headers["prefer"] == "wait=2.500"


@pytest.mark.parametrize(
    "failure",
    [DROP, problem(UNAVAILABLE), problem(INTERNAL), GATEWAY],
    ids=["dropped", "unavailable", "internal_error", "bad_gateway"],
)
def test_the_key_is_kept_over_retries(court: ScriptedService, call: Caller, failure: Answer) -> None:
    """A submission that failed in passing is sent again as the same submission, so nothing is filed twice."""
    court.script = [failure, failure, stands("queued")]
    assert call(court.url, "submit", **PAIR, idempotency_key="run-7/line-3").id == ID
    assert [asked.headers["idempotency-key"] for asked in court.asked] == ["run-7/line-3"] * 3
    assert len(call.naps) == 2
    court.script = [failure, stands("queued")]
    call(court.url, "submit", **PAIR)
    assert court.asked[3].headers["idempotency-key"] == court.asked[4].headers["idempotency-key"]


def test_retry_after_is_honoured(court: ScriptedService, call: Caller) -> None:
    """What the server asks for is the least that is waited, but never more than half a minute."""
    court.script = [problem(UNAVAILABLE, Retry_After="3"), problem(UNAVAILABLE, Retry_After="86400"), stands()]
    call(court.url, "get", ID)
    assert 3 <= call.naps[0] <= 3.2
    assert 30 <= call.naps[1] <= 30.4


def test_retries_end(court: ScriptedService, call: Caller) -> None:
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


def test_a_no_is_not_asked_again(court: ScriptedService, call: Caller) -> None:
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


def test_a_silent_server_is_unreachable(court: ScriptedService, call: Caller) -> None:
    """An answer that does not come within `timeout` is a failure like any other."""
    court.script = [stands(after=5)]
    with pytest.raises(ServerUnreachable, match=r"timed out|ReadTimeout"):
        call(court.url, "get", ID, client={"timeout": 0.2, "max_retries": 1})
    assert len(court.asked) == 2


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer(200, b"<html>It works!", {"Content-Type": "text/html; charset=utf-8"}), r"200 \(text/html\).*JSON"),
        (says({"hello": "world"}), r"\(id: Field required\)"),
        (says({"detail": "Not Found"}, 404), "404.*Another program"),
        (Answer(502, b"Bad Gateway", {"Content-Type": "text/plain"}), r"502 \(text/plain\).*a proxy may stand between"),
        (Answer(301, b"", {"Location": "https://court.example/"}), "It redirects to https://court.example/"),
        (Answer(204), "another version"),
    ],
    ids=lambda value: str(value.status) if isinstance(value, Answer) else "",
)
def test_another_programs_answer_is_told_apart(
    court: ScriptedService, call: Caller, answer: Answer, words: str
) -> None:
    """What is no answer of nightcourt's is said to be none, in words and not in a validator's trace."""
    court.script = [answer]
    with pytest.raises(UnexpectedAnswer, match=words) as raised:
        call(court.url, "get", ID)
    assert f"{court.url}/v1/comparisons/{ID} answered" in str(raised.value)
    assert raised.value.__cause__ is None


def test_a_program_that_speaks_no_http_is_no_server(court: ScriptedService, call: Caller) -> None:
    """A database on that port looks like no server at all."""
    court.script = [Answer(0, b"-ERR unknown command\r\n")]
    with pytest.raises(ServerUnreachable, match="No nightcourt server answered"):
        call(court.url, "get", ID)


def test_iterating_reads_page_after_page(court: ScriptedService, call: Caller) -> None:
    """Every comparison comes once, in the order of the pages, which are asked for as they are needed."""
    pages = [[9, 8], [7, 6], [5]]
    for number, page in enumerate(pages, start=1):
        data = [comparison(number=each) for each in page]
        more = number < len(pages)
        body = {"object": "list", "data": data, "first_id": data[0]["id"], "last_id": data[-1]["id"], "has_more": more}
        court.script.append(says(body))
    assert [int(each.id[4:], 16) for each in call(court.url, "iterate")] == [9, 8, 7, 6, 5]
    assert [asked.path for asked in court.asked] == [
        "/v1/comparisons?limit=100",
        f"/v1/comparisons?limit=100&after=cmp_{8:032x}",
        f"/v1/comparisons?limit=100&after=cmp_{6:032x}",
    ]


def test_listing_gives_one_page(court: ScriptedService, call: Caller) -> None:
    """An empty page is a page."""
    court.script = [says({"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False})]
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
    court: ScriptedService, call: Caller, fields: dict[str, Any], name: str, words: str
) -> None:
    """The error names the field, as the server would have, and reads like any other problem."""
    with pytest.raises(InvalidRequest, match=words) as raised:
        call(court.url, "submit", **fields)
    assert raised.value.code == "invalid_request"
    assert name in str(raised.value)
    assert [error.field for error in raised.value.document.errors or []] == [name]
    assert court.asked == []


def test_an_id_that_is_none_is_not_sent(court: ScriptedService, call: Caller) -> None:
    """Nothing but an id gets into the path."""
    for wrong in ("", "..", "cmp_1", f"{ID}/cancel"):
        with pytest.raises(InvalidRequest, match="comparison_id: looks like cmp_"):
            call(court.url, "get", wrong)
    with pytest.raises(TypeError, match="not both"):
        call(court.url, "submit", ComparisonRequest(**PAIR), **PAIR)
    assert court.asked == []


@pytest.mark.parametrize("path", ["/v1", "/v1/", "/judging/v1"])
def test_an_address_may_end_in_the_version(court: ScriptedService, call: Caller, path: str) -> None:
    """OpenAI's client wants it so, and what has it works with either."""
    court.script = [stands()]
    call(court.url + path, "get", ID)
    [asked] = court.asked
    assert asked.path == f"{path.rstrip('/')}/comparisons/{ID}"


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("http://v1", "http://v1"),
        ("http://v1/v1/", "http://v1"),
        ("http://court/v10", "http://court/v10"),
        ("http://court/", "http://court"),
    ],
)
def test_only_a_version_is_taken_off_an_address(url: str, named: str) -> None:
    """A host or a path that is called like it stays."""
    assert without_version(url) == named


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
    court: ScriptedService, call: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A company's proxy setting must not make the service of this very machine unreachable."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    court.script = [stands()]
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


def test_errors_travel_between_processes(court: ScriptedService) -> None:
    """All of them are a ClientError, and come out of a pool of processes as they went in."""
    court.script = [stands("queued"), problem(NOT_FOUND)]
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
