"""Batches over HTTP, with real processes: files in, verdicts out, and every brake there is."""

import gzip
import json
import signal
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import openai
import pytest
import zstandard
from support.service import Service, running_service
from support.waiting import wait_until

from infra.filed import Filed, from_body
from worker.engines.simulated import SimulatedEngine, fingerprint
from worker.prompts import build

# Of leases nobody waits for the end here: a worker that died is proved dead, and one that was kept waiting is not.
IMPATIENT = {"lease_seconds": 60.0, "heartbeat_seconds": 0.5, "sweep_seconds": 0.5, "hint_seconds": 3.0}


def lines(count: int, **changes: Any) -> bytes:
    """Make a file of bare pairs, each unlike the others."""
    rows = (
        {
            "custom_id": f"row-{n}",
            "prompt": f"Question {n}?",
            "response_a": f"this {n}",
            "response_b": "that",
            **changes,
        }
        for n in range(1, count + 1)
    )
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


class Clerk:
    """Someone who files batches with a service, and reads them."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.http = service.http

    def upload(self, data: bytes, name: str = "pairs.jsonl") -> Any:
        """Upload a file and give the answer."""
        return self.http.post("/v1/files", files={"file": (name, data)}, data={"purpose": "batch"})

    def create(self, data: bytes, **options: Any) -> dict[str, Any]:
        """Upload a file and make a batch of it."""
        body = {
            "input_file_id": self.upload(data).json()["id"],
            "endpoint": "/v1/comparisons",
            "completion_window": "24h",
            **options,
        }
        answer = self.http.post("/v1/batches", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def read(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Read a batch as it stands."""
        return self.http.get(f"/v1/batches/{batch['id']}").json()

    def act(self, batch: dict[str, Any], action: str) -> Any:
        """Pause, resume, cancel or retry a batch."""
        return self.http.post(f"/v1/batches/{batch['id']}/{action}")

    def until(self, batch: dict[str, Any], *statuses: str, within: float = 60) -> dict[str, Any]:
        """Wait until a batch has come to one of these statuses."""
        return wait_until(
            lambda: found if (found := self.read(batch))["status"] in statuses else None,
            within=within,
            what=f"the batch is {' or '.join(statuses)}; it is {self.read(batch)}",
        )

    def results(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        """Read what came of it so far."""
        return [json.loads(line) for line in self.http.get(f"/v1/batches/{batch['id']}/results").text.splitlines()]


@pytest.fixture
def clerk(service: Service) -> Clerk:
    """A clerk at a service whose engine answers at once."""
    return Clerk(service)


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clerk]:
    """A clerk at a service that judges about twenty pairs a second."""
    with running_service(
        tmp_path_factory.mktemp("slow") / "data", simulated_tokens_per_second=10_000.0, **IMPATIENT
    ) as running:
        yield Clerk(running)


def adds_up(batch: dict[str, Any]) -> bool:
    """Whether every line of an ended batch is accounted for."""
    counts = batch["request_counts"]
    ended = counts["succeeded"] + counts["errored"] + counts["cancelled"] + counts["expired"]
    return counts["total"] == ended == counts["completed"] + counts["failed"]


def test_the_official_openai_client_drives_it(service: Service, tmp_path: Path):
    """Upload, create, retrieve, list, cancel and download with the openai package, unpatched."""
    requests = [
        {
            "custom_id": f"r{n}",
            "method": "POST",
            "url": "/v1/comparisons",
            "body": {"prompt": f"Q{n}", "response_a": "x", "response_b": "y"},
        }
        for n in range(20)
    ]
    path = tmp_path / "requests.jsonl"
    path.write_text("\n".join(json.dumps(request) for request in requests))
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key=service.key) as client:
        with path.open("rb") as file:
            uploaded = client.files.create(file=file, purpose="batch")
        assert uploaded.purpose == "batch"
        batch = client.batches.create(
            input_file_id=uploaded.id, endpoint="/v1/comparisons", completion_window="24h", metadata={"run": "one"}
        )
        done = wait_until(
            lambda: found if (found := client.batches.retrieve(batch.id)).status == "completed" else None,
            within=60,
            what="the batch is completed",
        )
        assert done.request_counts is not None
        assert (done.request_counts.total, done.request_counts.completed, done.request_counts.failed) == (20, 20, 0)
        assert done.usage is not None
        assert done.usage.input_tokens > 0
        output = [json.loads(line) for line in client.files.content(done.output_file_id or "").text.splitlines()]
        assert [line["custom_id"] for line in output] == [f"r{n}" for n in range(20)]
        assert {line["response"]["status_code"] for line in output} == {200}
        assert output[0]["response"]["body"]["verdict"]["winner"] in {"A", "B"}
        assert client.files.content(uploaded.id).text.splitlines() == path.read_text().splitlines()
        assert batch.id in [each.id for each in client.batches.list(limit=100)]
        assert uploaded.id in [each.id for each in client.files.list()]
        with pytest.raises(openai.ConflictError) as refused:
            client.batches.cancel(batch.id)
        assert refused.value.code == "batch_ended"
        with pytest.raises(openai.NotFoundError):
            client.batches.retrieve("batch_none")


class TestFiles:
    @pytest.mark.parametrize(
        ("name", "fold"),
        [
            ("plain", lambda data: data),
            ("gzip", gzip.compress),
            ("zstd", lambda data: zstandard.ZstdCompressor().compress(data)),
            ("gzip in members", lambda data: gzip.compress(data[:500]) + gzip.compress(data[500:])),
        ],
    )
    def test_a_file_is_taken_as_it_comes(self, clerk: Clerk, name: str, fold: Any):
        """JSON lines, gzip and zstd are told by their first bytes, and come out as the same lines."""
        data = lines(600)
        file = clerk.upload(fold(data), name).json()
        assert (file["lines"], file["bad_lines"], file["bytes"]) == (600, 0, len(data))
        assert clerk.http.get(f"/v1/files/{file['id']}/content").content == data

    def test_a_file_is_given_back_as_it_came(self, clerk: Clerk):
        """Backslashes, tabs and carriage returns inside lines come out as they went in."""
        data = b'{"prompt":\t"a\\\\t \\n \\\\",\r "response_a": "\\\\\\"", "response_b": "C:\\\\tmp"}\n' * 2
        file = clerk.upload(data).json()
        assert file["lines"] == 2
        assert clerk.http.get(f"/v1/files/{file['id']}/content").content == data

    def test_lines_end_at_line_feeds_alone(self, clerk: Clerk):
        """A BOM, blank lines, carriage returns, a missing last line feed and line separators in text are no trouble."""
        row = '{"prompt": "a\u2028b\u0085c", "response_a": "x", "response_b": "y"}'
        data = b"\xef\xbb\xbf" + f"{row}\r\n\n  \n{row}".encode()
        assert clerk.upload(data).json()["lines"] == 2

    def test_bad_lines_are_counted_and_named(self, clerk: Clerk):
        """Each line that is no comparison is kept in mind with its number and the reason."""
        bad = [
            b"{",
            b"[]",
            b'{"prompt": "p", "response_a": "a"}',
            b'{"prompt": "p", "response_a": "\\u0000", "response_b": "b"}',
            b'{"prompt": "\xff", "response_a": "a", "response_b": "b"}',
            b'{"custom_id": "x", "method": "POST", "url": "/v1/embeddings", "body": {}}',
            b'{"prompt": "p", "response_a": "a", "response_b": "b", "label": "C"}',
        ]
        batch = clerk.create(lines(3) + b"\n".join(bad))
        assert batch["status"] == "failed"
        assert [error["line"] for error in batch["errors"]["data"]] == [4, 5, 6, 7, 8, 9, 10]
        assert "column 1" in batch["errors"]["data"][0]["message"]
        assert batch["errors"]["data"][2]["param"] == "response_b"

    def test_an_id_of_null_is_no_name(self, clerk: Clerk):
        """Rows of tables have empty columns: such lines have no name, and are not each other's namesakes."""
        row = {"id": None, "prompt": "p", "response_a": "a", "response_b": "b"}
        preference = {"id": None, "prompt": "p", "chosen": "a", "rejected": "b"}
        file = clerk.upload(b"\n".join(json.dumps(each).encode() for each in (row, row, preference))).json()
        assert (file["lines"], file["bad_lines"]) == (3, 0)

    def test_the_same_custom_id_twice_is_a_bad_line(self, clerk: Clerk):
        """The first line keeps the name; the second is named with the line of the first."""
        batch = clerk.create(lines(300) + lines(1))
        [error] = batch["errors"]["data"]
        assert error["line"] == 301
        assert error["code"] == "duplicate_custom_id"
        assert error["message"] == "custom_id: stands already on line 1"

    @pytest.mark.parametrize(
        ("data", "status", "code"),
        [
            (gzip.compress(b" " * 50_000_000), 413, "body_too_large"),
            (gzip.compress(b"{}")[:12] + b"rubbish" * 9, 400, "bad_compression"),
            (b" " * (5 * 1024 * 1024), 413, "body_too_large"),
        ],
        ids=["a bomb", "broken gzip", "an endless line"],
    )
    def test_what_is_no_file_of_lines_is_refused_whole(self, clerk: Clerk, data: bytes, status: int, code: str):
        """Bombs, broken compression and endless lines end the upload, and nothing of it is kept."""
        before = clerk.http.get("/v1/files").json()["data"]
        answer = clerk.upload(data)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
        assert clerk.http.get("/v1/files").json()["data"] == before

    def test_a_file_refused_late_leaves_no_line(self, clerk: Clerk):
        """Pieces that are being stored when an upload turns out bad are taken out with those before them."""
        import psycopg  # noqa: PLC0415 - as below

        with psycopg.connect(clerk.service.database_url, autocommit=True) as connection:
            kept = "SELECT (SELECT count(*) FROM comparisons), (SELECT count(*) FROM file_runs)"
            before = connection.execute(kept).fetchone()
            assert clerk.upload(lines(9000) + b" " * (5 * 1024 * 1024)).status_code == 413
            assert connection.execute(kept).fetchone() == before

    def test_a_wrong_purpose_is_refused(self, clerk: Clerk):
        """Files are for batches."""
        answer = clerk.http.post("/v1/files", files={"file": ("x", lines(1))}, data={"purpose": "fine-tune"})
        assert answer.status_code == 422
        assert answer.json()["error"]["param"] == "purpose"

    def test_a_file_can_be_deleted_until_a_batch_is_made_of_it(self, clerk: Clerk):
        """What verdicts refer to stays."""
        free, used = clerk.upload(lines(2)).json()["id"], clerk.create(lines(2))["input_file_id"]
        assert clerk.http.delete(f"/v1/files/{free}").json() == {"id": free, "object": "file", "deleted": True}
        assert clerk.http.get(f"/v1/files/{free}").status_code == 404
        assert clerk.http.delete(f"/v1/files/{used}").status_code == 422


class TestABatch:
    def test_results_come_in_the_order_of_the_file(self, clerk: Clerk):
        """Every line has a comparison object, with its name, in its place."""
        batch = clerk.until(clerk.create(lines(700)), "completed")
        assert [each["custom_id"] for each in clerk.results(batch)] == [f"row-{n}" for n in range(1, 701)]
        assert adds_up(batch)
        assert batch["usage"]["input_tokens"] > 0

    def test_what_a_line_sent_along_comes_back(self, clerk: Clerk):
        """Names and metadata stand in the results, whatever the form of the line."""
        meta = {"note": 'quo"te \\ tab\t é 😀'}
        pair = {"custom_id": 'a"b\\c', "prompt": "p", "response_a": "a", "response_b": "e", "metadata": meta}
        body = {"prompt": "p", "response_a": "a", "response_b": "f", "metadata": meta}
        request = {"custom_id": "r", "method": "POST", "url": "/v1/comparisons", "body": body}
        data = "\n".join(json.dumps(row) for row in (pair, request)).encode()
        results = clerk.results(clerk.until(clerk.create(data), "completed"))
        assert [each["metadata"] for each in results] == [meta, meta]
        assert [each["custom_id"] for each in results] == ['a"b\\c', "r"]
        assert clerk.service.read(results[1]["id"])["metadata"] == meta

    def test_a_line_of_a_batch_can_be_read_by_its_id(self, clerk: Clerk):
        """The id in the results is that of a comparison like any other."""
        batch = clerk.until(clerk.create(lines(3)), "completed")
        second = clerk.results(batch)[1]
        assert clerk.service.read(second["id"])["verdict"] == second["verdict"]

    def test_lines_of_all_forms_are_judged(self, clerk: Clerk):
        """OpenAI's requests, bare pairs and preference rows, explicit, implicit and conversational, in one file."""
        said = [{"role": "user", "content": "Hi"}]
        good, bad = {"role": "assistant", "content": "Hello"}, {"role": "assistant", "content": "No"}
        rows = [
            {
                "custom_id": "1",
                "method": "POST",
                "url": "/v1/comparisons",
                "body": {"prompt": "p", "response_a": "a", "response_b": "b"},
            },
            {"id": 2, "dataset": "d", "subset": "s", "prompt": "p", "response_a": "a", "response_b": "c", "label": "A"},
            {"prompt": "p", "chosen": "a", "rejected": "d", "chosen_model": "m"},
            {"prompt": said, "chosen": [good], "rejected": [bad]},
            {"chosen": [*said, good], "rejected": [*said, bad]},
        ]
        batch = clerk.until(clerk.create(b"\n".join(json.dumps(row).encode() for row in rows)), "completed", "failed")
        assert batch["request_counts"]["succeeded"] == 5, clerk.results(batch)

    def test_the_batchs_options_hold_for_lines_that_do_not_say(self, clerk: Clerk):
        """The order asked for the batch holds, but a line's own order comes first."""
        own = json.dumps({"prompt": "own", "response_a": "a", "response_b": "b", "order": "ab"}).encode()
        batch = clerk.until(clerk.create(lines(1) + own, order="ba"), "completed")
        orders = [[ballot["order"] for ballot in each["verdict"]["ballots"]] for each in clerk.results(batch)]
        assert orders == [["ba"], ["ab"]]

    def test_bad_lines_are_skipped_if_asked(self, clerk: Clerk):
        """With on_bad_line=skip the rest is judged, and the one is listed with its reason."""
        batch = clerk.until(
            clerk.create(lines(300) + b"{\n" + lines(1, custom_id="last"), on_bad_line="skip"), "completed"
        )
        assert batch["request_counts"]["total"] == 302
        assert batch["request_counts"]["errored"] == 1
        assert adds_up(batch)
        [error] = clerk.http.get(f"/v1/files/{batch['error_file_id']}/content").text.splitlines()
        assert json.loads(error)["line"] == 301
        assert json.loads(error)["error"]["code"] == "bad_line"

    def test_a_bad_line_is_listed_under_its_own_name(self, clerk: Clerk):
        """The error file names a bad line by the custom_id that it had, where that could be read."""
        bad = b'{"custom_id": "mine", "prompt": "Q?", "response_a": "a"}\n'
        ended = clerk.until(clerk.create(lines(2) + bad, on_bad_line="skip"), "completed")
        [error] = clerk.http.get(f"/v1/files/{ended['error_file_id']}/content").text.splitlines()
        assert (json.loads(error)["custom_id"], json.loads(error)["line"]) == ("mine", 3)
        assert clerk.results(ended)[2]["custom_id"] == "mine"

    def test_a_batch_that_failed_whole_is_failed(self, clerk: Clerk):
        """When no line has a verdict the batch is `failed`, with the commonest reason."""
        batch = clerk.until(clerk.create(lines(5, prompt="word " * 40_000)), "completed", "failed")
        assert batch["status"] == "failed"
        assert batch["errors"]["data"][0]["code"] == "context_length_exceeded"
        assert adds_up(batch)

    def test_errored_lines_alone_are_retried(self, clerk: Clerk):
        """Retrying judges the errored lines again; what succeeded stands."""
        batch = clerk.until(clerk.create(lines(4) + lines(1, custom_id="long", prompt="word " * 40_000)), "completed")
        before = clerk.results(batch)
        retried = clerk.act(batch, "retry").json()
        assert retried["status"] == "in_progress"
        again = clerk.until(batch, "completed")
        assert again["request_counts"]["errored"] == 1
        assert adds_up(again)
        assert clerk.results(batch)[:4] == before[:4]

    def test_the_same_comparison_is_not_judged_twice(self, clerk: Clerk):
        """A second batch of the same file is answered from stored verdicts, and says so."""
        data = lines(50, prompt="Only once?")
        first = clerk.until(clerk.create(data), "completed")
        second = clerk.until(clerk.create(data), "completed")
        fresh = clerk.until(clerk.create(data, reuse=False), "completed")
        assert [each["request_counts"]["reused"] for each in (first, second, fresh)] == [0, 50, 0]
        assert [each["verdict"]["winner"] for each in clerk.results(second)] == [
            each["verdict"]["winner"] for each in clerk.results(first)
        ]

    @pytest.mark.parametrize(
        ("change", "param"),
        [
            ({"endpoint": "/v1/embeddings"}, "endpoint"),
            ({"completion_window": "soon"}, "completion_window"),
            ({"window": {"start": "22:00", "end": "06:00", "timezone": "Mars/Olympus"}}, "window.timezone"),
            ({"window": {"start": "25:00", "end": "06:00"}}, "window.start"),
            ({"window": {"start": "22:00Z", "end": "06:00"}}, "window.start"),
            ({"window": {"start": "22:00", "end": "06:00+01:00"}}, "window.end"),
            ({"window": {"start": 79200, "end": "06:00"}}, "window.start"),
            ({"not_before": 1_767_323_045_000}, "not_before"),
            ({"priority": 1000}, "priority"),
            ({"surprise": 1}, "surprise"),
            ({"input_file_id": "file-none"}, "input_file_id"),
        ],
    )
    def test_a_bad_request_names_the_field(self, clerk: Clerk, change: dict[str, Any], param: str):
        """Errors are in OpenAI's shape, with the field as `param`."""
        body = {
            "input_file_id": clerk.upload(lines(1)).json()["id"],
            "endpoint": "/v1/comparisons",
            "completion_window": "24h",
        }
        answer = clerk.http.post("/v1/batches", json={**body, **change})
        assert answer.status_code == 422
        assert answer.json()["error"]["param"] == param

    def test_progress_comes_as_events(self, clerk: Clerk):
        """The event stream tells the batch object until the batch has ended."""
        batch = clerk.create(lines(300))
        with clerk.http.stream("GET", f"/v1/batches/{batch['id']}/events") as stream:
            told = [json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: ")]
        assert told[-1]["status"] == "completed"
        assert told[-1]["progress"]["decided"] == 300


class TestBrakes:
    def test_pausing_takes_everything_back_and_resuming_goes_on(self, slow: Clerk):
        """Within two seconds of a pause nothing of the batch is decided any more; resumed, it ends whole."""
        batch = slow.create(lines(120))
        wait_until(lambda: slow.read(batch)["progress"]["decided"], within=60, what="judging has begun")
        assert slow.act(batch, "pause").json()["paused"] is True
        decided = slow.read(batch)["progress"]["decided"]
        # Nothing is out: the whole rest waits, and says why.
        assert slow.read(batch)["progress"]["waiting_for"] == "it is paused; resume it"
        single = slow.service.file({"prompt": "meanwhile", "response_a": "a", "response_b": "b"}, wait=60)
        assert single.status_code == 200
        assert slow.read(batch)["progress"]["decided"] == decided
        slow.act(batch, "resume")
        ended = slow.until(batch, "completed")
        assert ended["request_counts"]["succeeded"] == 120

    def test_cancelling_keeps_what_was_decided(self, slow: Clerk):
        """A cancelled batch ends soon; its verdicts stay, and the rest is accounted for as cancelled."""
        batch = slow.create(lines(400))
        wait_until(lambda: slow.read(batch)["progress"]["decided"], within=60, what="judging has begun")
        assert slow.act(batch, "cancel").json()["status"] == "cancelling"
        ended = slow.until(batch, "cancelled")
        assert adds_up(ended)
        counts = Counter(each["status"] for each in slow.results(batch))
        assert counts["succeeded"] == ended["request_counts"]["succeeded"] > 0
        assert counts["cancelled"] == ended["request_counts"]["cancelled"] > 0
        assert slow.act(batch, "pause").status_code == 409

    def test_a_line_of_a_batch_is_not_cancelled_alone(self, slow: Clerk):
        """Whoever asks for it is sent to the batch, and neither the line nor any other is called off."""
        batch = slow.create(lines(3), not_before=int((datetime.now(UTC) + timedelta(hours=1)).timestamp()))
        line = f"cmp_{batch['id'].removeprefix('batch_')}_2"
        answer = slow.http.post(f"/v1/comparisons/{line}/cancel")
        assert (answer.status_code, answer.json()["code"]) == (409, "part_of_a_batch")
        assert batch["id"] in answer.json()["detail"]
        assert slow.read(batch)["request_counts"]["cancelled"] == 0
        slow.act(batch, "cancel")

    def test_nothing_runs_before_its_time(self, slow: Clerk):
        """A batch with not_before waits, and says so."""
        later = int((datetime.now(UTC) + timedelta(hours=1)).timestamp())
        batch = slow.create(lines(2), not_before=later)
        other = slow.create(lines(2, prompt="now"))
        slow.until(other, "completed")
        assert slow.read(batch)["request_counts"]["completed"] == 0
        assert slow.read(batch)["progress"]["waiting_for"] == "its time has not come; see not_before"
        slow.act(batch, "cancel")

    def test_a_window_opens_and_closes_by_the_clock(self, tmp_path: Path):
        """With the clock shifted into the window the batch runs; shifted past its end, it is taken back."""
        now = datetime.now(UTC)
        window = {"start": f"{now + timedelta(hours=5):%H:%M}", "end": f"{now + timedelta(hours=7):%H:%M}"}
        folder = tmp_path / "data"
        shift = {"simulated_tokens_per_second": 10_000.0, **IMPATIENT}
        with running_service(folder, **shift) as service:
            clerk = Clerk(service)
            # More than are judged while processes start.
            batch = clerk.create(lines(3000), window=window)
            probe = clerk.create(lines(2, prompt="probe"))
            clerk.until(probe, "completed")
            assert clerk.read(batch)["progress"]["decided"] == 0
            assert clerk.read(batch)["progress"]["waiting_for"] == "its window is closed"
        with running_service(folder, clock_shift_seconds=6 * 3600.0, **shift) as service:
            clerk = Clerk(service)
            wait_until(lambda: clerk.read(batch)["progress"]["decided"], within=60, what="the window is open")
        with running_service(folder, clock_shift_seconds=8 * 3600.0, **shift) as service:
            clerk = Clerk(service)
            wait_until(
                lambda: clerk.read(batch)["progress"]["waiting_for"] == "its window is closed",
                within=60,
                what="the window is closed again",
            )
            assert 0 < clerk.read(batch)["progress"]["decided"] < 3000

    def test_the_deadline_expires_what_is_left(self, slow: Clerk):
        """After its completion window a batch ends as expired, with what was decided kept."""
        batch = slow.create(lines(400, prompt="late"), completion_window="1m")
        wait_until(lambda: slow.read(batch)["progress"]["decided"], within=60, what="judging has begun")
        shorten(slow.service, batch)
        ended = slow.until(batch, "expired")
        assert adds_up(ended)
        assert ended["request_counts"]["succeeded"] > 0
        errors = slow.http.get(f"/v1/files/{ended['error_file_id']}/content").text.splitlines()
        assert {json.loads(line)["error"]["code"] for line in errors} == {"batch_expired"}


def shorten(service: Service, batch: dict[str, Any]) -> None:
    """Let a batch's deadline be now."""
    import psycopg  # noqa: PLC0415 - most tests here see no more than a caller does

    with psycopg.connect(service.database_url) as connection:
        connection.execute(
            "UPDATE shards SET deadline_at = now() WHERE filing_id = %s AND deadline_at IS NOT NULL",
            (batch["id"].removeprefix("batch_"),),
        )


def test_everything_killed_and_started_again_judges_no_line_twice(tmp_path: Path):
    """After kill -9 of every process a batch ends with each line accounted for; what was stored is not asked again."""
    asked = tmp_path / "asked.log"
    with running_service(
        tmp_path / "data", durable=True, simulated_tokens_per_second=20_000.0, simulated_call_log=asked, **IMPATIENT
    ) as service:
        clerk = Clerk(service)
        batch = clerk.create(lines(400))
        wait_until(lambda: clerk.read(batch)["progress"]["decided"] > 160, within=60, what="40 % are decided")
        stored = {int(each["id"].rpartition("_")[2]) for each in clerk.results(batch)}
        for part in ("worker", "dispatcher", "redis", "postgres", "api"):
            service.signal(part, signal.SIGKILL)

        def again() -> Any:
            try:
                return clerk.read(batch)["status"] == "completed"
            except Exception:  # noqa: BLE001 - whatever a dead service answers
                return False

        wait_until(again, within=120, every=0.5, what="the batch is completed")
        assert adds_up(clerk.read(batch))
        assert len({each["id"] for each in clerk.results(batch)}) == 400
    times = Counter(asked.read_text().split())
    engine = SimulatedEngine()
    prompts_of = {
        number: [fingerprint(engine.encode(build(filed(number, line), order))) for order in ("ab", "ba")]
        for number, line in enumerate(lines(400).splitlines(), start=1)
    }
    assert {times[mark] for number in stored for mark in prompts_of[number]} == {1}
    assert {number for number, marks in prompts_of.items() if not all(times[mark] for mark in marks)} == set()
    # What the kill cost: the steps in hand, and outcomes not yet stored, of at most a second.
    assert sum(times.values()) - 800 < 400


def test_a_batch_sent_again_under_its_key_is_the_same(clerk: Clerk):
    """An Idempotency-Key makes a batch once; with another body it is refused, in OpenAI's form of an error."""
    body = {
        "input_file_id": clerk.upload(lines(2)).json()["id"],
        "endpoint": "/v1/comparisons",
        "completion_window": "24h",
    }
    headers = {"Idempotency-Key": "tonight"}
    first = clerk.http.post("/v1/batches", json=body, headers=headers)
    again = clerk.http.post("/v1/batches", json=body, headers=headers)
    assert (first.status_code, again.json()["id"]) == (200, first.json()["id"])
    assert ("idempotent-replayed" in first.headers, again.headers["idempotent-replayed"]) == (False, "true")
    other = clerk.http.post("/v1/batches", json={**body, "priority": 1}, headers=headers)
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")


def filed(number: int, line: bytes) -> Filed:
    """Understand a line as a worker does."""
    return from_body(line.decode(), {}, line=number)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_one_bad_line_among_a_million(tmp_path: Path):
    """`fail` rejects before anything runs and names line and column; `skip` judges the others and lists the one."""
    count = 1_000_000
    path = tmp_path / "million.jsonl"
    with path.open("wb") as out:
        for n in range(1, count + 1):
            row = b'{"prompt": "%d?", "response_a": "a", "response_b": "b"}\n' % n
            out.write(b'{"prompt": "%d?", "response_a" "a"}\n' % n if n == count // 2 else row)
    with running_service(tmp_path / "data", log_level="warning") as service, path.open("rb") as data:
        answer = service.http.post(
            "/v1/files", files={"file": ("million.jsonl", data)}, data={"purpose": "batch"}, timeout=600
        )
        body = {"input_file_id": answer.json()["id"], "endpoint": "/v1/comparisons", "completion_window": "24h"}
        failed = service.http.post("/v1/batches", json=body).json()
        assert failed["status"] == "failed"
        assert failed["errors"]["data"][0]["line"] == count // 2
        assert "column" in failed["errors"]["data"][0]["message"]
        clerk = Clerk(service)
        skipped = service.http.post("/v1/batches", json={**body, "on_bad_line": "skip"}).json()
        ended = clerk.until(skipped, "completed", within=1200)
        assert (ended["request_counts"]["succeeded"], ended["request_counts"]["errored"]) == (count - 1, 1)
