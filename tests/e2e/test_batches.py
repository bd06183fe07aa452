"""Batches over HTTP, with real processes: files in, verdicts out."""

import json
from pathlib import Path
from typing import Any

import openai
import pytest
from support.clerk import Clerk, adds_up, lines
from support.service import Service, running_service
from support.waiting import wait_until


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
