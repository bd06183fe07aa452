"""The Python client's batches and their results, against a service on loopback that answers by a script."""

import inspect
import json
import pickle
import socket
import threading
import time
from datetime import UTC, datetime
from typing import Any

import pytest
from support.scripted import DROP, GATEWAY, Answer, Caller, ScriptedService, openai_error, says

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


def batch(status: str = "in_progress", **more: Any) -> Answer:
    """Give the answer with a batch in this status."""
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
    return says({**body, **more})


def result(line: int, custom_id: str | None = None) -> bytes:
    """Give a line of results, as Postgres would write it."""
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
    """Give the answer with results; `cut` breaks off in the middle of the last line."""
    return Answer(200, b"".join(map(result, lines)), {"Content-Type": "application/jsonl"}, cut=cut)


class TestBatches:
    def test_a_batch_is_made_of_a_file(self, court: ScriptedService, call: Caller) -> None:
        """The body has what was given and no more, in the service's words."""
        court.script = [batch()]
        made = call(court.url, "create_batch", "file-1", "7d", window={"start": "22:00", "end": "06:00"}, priority=3)
        call(court.url, "create_batch", "file-1")
        assert (made.id, made.status.final) == (BATCH, False)
        required = {"input_file_id": "file-1", "endpoint": "/v1/comparisons"}
        window = {"start": "22:00:00", "end": "06:00:00"}
        first, second = (asked.json for asked in court.asked)
        assert first == {**required, "completion_window": "7d", "window": window, "priority": 3}
        assert second == {**required, "completion_window": "24h"}

    def test_no_batch_is_made_twice(self, court: ScriptedService, call: Caller) -> None:
        """A batch may be asked for again and again, since each attempt has the same key; the next call has another."""
        passing = [
            openai_error(503, "unavailable"),
            openai_error(429, "busy"),
            DROP,
            openai_error(500, "internal_error"),
        ]
        court.script = [*passing, batch()]
        for _ in range(2):
            assert call(court.url, "create_batch", "file-1", client={"max_retries": 4}).id == BATCH
        keys = [asked.headers["idempotency-key"] for asked in court.asked]
        assert [keys.count(key) for key in dict.fromkeys(keys)] == [5, 1]
        court.script = [DROP, batch()]
        call(court.url, "create_batch", "file-1", priority=2, idempotency_key="night/7")
        assert [asked.headers["idempotency-key"] for asked in court.asked[6:]] == ["night/7"] * 2
        assert court.asked[-1].json["priority"] == 2
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
    def test_what_has_no_key_is_not_done_twice(
        self, court: ScriptedService, call: Caller, method: str, argument: Any
    ) -> None:
        """What may have been carried out is not repeated, and the message says so; what was refused in passing is."""
        court.script = [openai_error(429, "busy"), DROP, batch()]
        with pytest.raises(ServerUnreachable, match="may have been done all the same; look before"):
            call(court.url, method, argument)
        for status, code in ((503, "unavailable"), (500, "internal_error")):  # both may follow a commit
            court.script = [openai_error(status, code), batch()]
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
    def test_what_is_done_to_a_batch(self, court: ScriptedService, call: Caller, method: str, path: str) -> None:
        """Each answers with the batch as it stands then; those that may be repeated are, after a passing failure."""
        court.script = [batch()] if method == "retry_batch" else [DROP, batch(paused=True)]
        call(court.url, method, BATCH)
        assert {(asked.method, asked.path) for asked in court.asked} == {("POST", f"/v1/batches/{BATCH}{path}")}

    def test_reading_and_listing(self, court: ScriptedService, call: Caller) -> None:
        """A batch is read by its id, and all of them a page at a time."""
        court.script = [batch("failed", errors={"data": [{"code": "invalid_json_line", "line": 3}]})]
        read = call(court.url, "batch", BATCH)
        assert read.status.final
        assert read.errors.data[0]["line"] == 3
        page = {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}
        court.script = [says(page)]
        assert call(court.url, "batches", limit=5, after=BATCH).data == []
        assert [asked.path for asked in court.asked] == [f"/v1/batches/{BATCH}", f"/v1/batches?limit=5&after={BATCH}"]

    def test_waiting(self, court: ScriptedService, call: Caller) -> None:
        """It is asked again until it has ended, or until the time is up, which is told with how it stands."""
        court.script = [batch(), batch("cancelling"), batch("expired")]
        assert call(court.url, "wait_batch", BATCH, timeout=60).status == "expired"
        assert len(call.naps) == 2
        court.script = [batch(), batch("expired")]
        assert call(court.url, "wait_batch", BATCH, timeout=None).status == "expired"
        court.script = [batch()]
        with pytest.raises(BatchNotEnded, match=r"in_progress .* 4 of 9 lines decided \(it is paused\)") as raised:
            call(court.url, "wait_batch", BATCH, timeout=0)
        assert isinstance(raised.value, TimeoutError)
        assert raised.value.passing
        assert pickle.loads(pickle.dumps(raised.value)).batch.id == BATCH  # noqa: S301 - our own

    def test_a_wait_outlasts_the_service(self, court: ScriptedService, call: Caller) -> None:
        """A night's wait goes on where the service is away for a while; where it still is at the end, both are told."""
        away = [DROP, openai_error(503, "unavailable"), GATEWAY]
        court.script = [*away, *away, batch(), *away, *away, batch("completed")]
        assert call(court.url, "wait_batch", BATCH, timeout=600).status == "completed"
        assert len(court.asked) == 14
        court.script = [batch(), DROP]
        with pytest.raises(BatchNotEnded) as raised:
            call(court.url, "wait_batch", BATCH, timeout=0.5)
        assert isinstance(raised.value.__cause__, ServerUnreachable)
        court.script = [batch(), openai_error(404, "not_found")]
        with pytest.raises(ServerProblem):
            call(court.url, "wait_batch", BATCH, timeout=600)

    def test_errors_in_openais_shape(self, court: ScriptedService, call: Caller) -> None:
        """They come out as any other problem: a code, a title, a sentence, the request's id and the field."""
        court.script = [openai_error(422, "invalid_request", "window.start: no.", "window.start")]
        with pytest.raises(ServerProblem) as raised:
            call(court.url, "create_batch", "file-1")
        document = raised.value.document
        assert str(raised.value) == "The request does not fit its schema: window.start: no."
        assert (document.status, document.code, document.request_id) == (422, "invalid_request", "req_9")
        assert [(each.field, each.message) for each in document.errors or []] == [("window.start", "window.start: no.")]
        court.script = [openai_error(418, "teapot")]
        with pytest.raises(ServerProblem, match=r"^I'm a [Tt]eapot: It is so\.$") as raised:
            call(court.url, "batch", BATCH)
        assert raised.value.document.errors is None

    def test_what_cannot_be_right_is_not_sent(self, court: ScriptedService, call: Caller) -> None:
        """Options and ids are looked at before anything is asked."""
        for wrong in ("soon", "1 day", "0h", "24h\n", "٣h", 24):
            with pytest.raises(
                InvalidRequest, match=r"completion_window: takes a whole number .* such as 90m, 24h or 7d"
            ):
                call(court.url, "create_batch", "file-1", wrong)
        with pytest.raises(InvalidRequest, match=r"window.timezone: .*no time zone"):
            call(court.url, "create_batch", "file-1", window={"start": "01:00", "end": "02:00", "timezone": "Mars"})
        for method in ("batch", "cancel_batch", "batch_results"):
            with pytest.raises(InvalidRequest, match="looks like batch_"):
                call(court.url, method, "../files")
        assert court.asked == []


class TestResults:
    def test_they_come_as_comparisons(self, court: ScriptedService, call: Caller) -> None:
        """A line ends where the server ended it, and nowhere else, whatever a name holds."""
        body = result(1, "a\u2028b\x85c") + result(2)
        court.script = [Answer(200, body, {"Content-Type": "application/jsonl; charset=utf-8"})]
        found = call(court.url, "batch_results", BATCH)
        assert [each.custom_id for each in found] == ["a\u2028b\x85c", "2"]
        assert found[0].error.code == "cancelled"
        assert court.asked[0].path == f"/v1/batches/{BATCH}/results"

    def test_none_yet(self, court: ScriptedService, call: Caller) -> None:
        """A batch of which nothing is decided has no results."""
        court.script = [results()]
        assert call(court.url, "batch_results", BATCH) == []

    def test_a_broken_connection_is_mended(self, court: ScriptedService, call: Caller) -> None:
        """Reading goes on after the last whole line, and no line comes twice."""
        court.script = [
            openai_error(503, "unavailable"),
            results(2, 5, 7, cut=True),
            results(2, 5, cut=True),
            results(2, 5, 7, 9),
        ]
        found = call(court.url, "batch_result_lines", BATCH)
        assert b"".join(line + b"\n" for line in found) == b"".join(map(result, (2, 5, 7, 9)))
        assert len(court.asked) == 4

    def test_what_does_not_mend_ends(self, court: ScriptedService, call: Caller) -> None:
        """After `max_retries` without a new line, what is the matter is raised."""
        court.script = [results(2, 5, cut=True)]
        with pytest.raises(ServerUnreachable, match="No nightcourt server answered"):
            call(court.url, "batch_results", BATCH, client={"max_retries": 2})
        assert len(court.asked) == 3
        court.script = [openai_error(404, "not_found", "There is no batch of this id.")]
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
    def test_another_programs_answer_is_told_apart(self, court: ScriptedService, call: Caller, answer: Answer) -> None:
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
