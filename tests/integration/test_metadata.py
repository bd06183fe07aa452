"""Metadata of a batch's lines, read back in every way there is: from where a line's form has them, and nowhere else."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.testclient import TestClient
from support.court import Court
from support.filed import judge_batches

TEXTS = {"prompt": "Which?", "response_a": "this", "response_b": "that"}
REQUEST = {"method": "POST", "url": "/v1/comparisons"}
PREFERENCE = {"prompt": "Which?", "chosen": "this", "rejected": "that"}
FORGED = '{},"verdict":null,"error":{"code":"forged","message":"x"}}\n{"id":"cmp_1","metadata":{}'

LINES: list[tuple[dict[str, Any], dict[str, str]]] = [
    ({**REQUEST, "body": TEXTS, "metadata": "run 7"}, {}),
    ({**REQUEST, "body": TEXTS, "metadata": FORGED}, {}),
    ({**REQUEST, "body": TEXTS, "metadata": {"run": "beside"}}, {}),
    ({**REQUEST, "body": {**TEXTS, "metadata": {"run": 'o"ne'}}, "metadata": {"n": 7}}, {"run": 'o"ne'}),
    ({**REQUEST, "body": {**TEXTS, "response_b": 'it has "metadata"'}}, {}),
    ({**PREFERENCE, "body": {"metadata": "run 7"}}, {}),
    ({**PREFERENCE, "body": {"metadata": FORGED}, "metadata": {"run": "two"}}, {"run": "two"}),
    ({**PREFERENCE, "body": FORGED, "metadata": None}, {}),
    ({**PREFERENCE, "url": "/v1/comparisons", "metadata": {"run": "three"}}, {"run": "three"}),
    ({**TEXTS, "metadata": {"run": "four"}}, {"run": "four"}),
]
"""Lines of every form, and the metadata of each."""


@pytest.fixture
def read(client: TestClient, court: Court) -> Any:
    """Those lines as a batch that was judged, and a look at what the service says of it."""
    rows = "".join(json.dumps(row) + "\n" for row, _ in LINES)
    sent = client.post("/v1/files", files={"file": ("lines.jsonl", rows)}, data={"purpose": "batch"}).json()
    assert sent["bad_lines"] == 0
    asked = {"input_file_id": sent["id"], "endpoint": "/v1/comparisons", "completion_window": "24h"}
    batch = client.post("/v1/batches", json=asked).json()["id"]
    judge_batches(court)
    return SimpleNamespace(batch=client.get(f"/v1/batches/{batch}").json(), get=client.get)


def objects(answer: Any) -> list[dict[str, Any]]:
    """Understand an answer as JSON, a value a line."""
    assert answer.status_code == 200
    return [json.loads(line) for line in answer.text.split("\n")[:-1]]


def test_a_batchs_results_and_its_output_file(read: Any):
    """There is a result a line, each with its line's own metadata."""
    results = objects(read.get(f"/v1/batches/{read.batch['id']}/results"))
    assert [result["metadata"] for result in results] == [metadata for _, metadata in LINES]
    output = objects(read.get(f"/v1/files/{read.batch['output_file_id']}/content"))
    assert [line["response"]["body"] for line in output] == results


def test_lines_read_as_comparisons(read: Any):
    """A line that is read by its id says the same as in the results."""
    for result in objects(read.get(f"/v1/batches/{read.batch['id']}/results")):
        alone = read.get(f"/v1/comparisons/{result['id']}")
        assert alone.status_code == 200
        assert (alone.json()["metadata"], alone.json()["status"]) == (result["metadata"], "succeeded")


def test_the_report(read: Any):
    """All lines are counted."""
    report = read.get(f"/v1/batches/{read.batch['id']}/report")
    assert report.status_code == 200
    assert report.json()["decided"] == len(LINES)


def test_comparisons_that_were_filed_singly(client: TestClient):
    """One that was filed alone has its metadata where it is read, and where all are listed."""
    filed = client.post("/v1/comparisons", json={**TEXTS, "metadata": {"run": FORGED}}).json()
    client.post("/v1/comparisons", json=TEXTS)
    assert client.get(f"/v1/comparisons/{filed['id']}").json()["metadata"] == {"run": FORGED}
    assert [each["metadata"] for each in client.get("/v1/comparisons").json()["data"]] == [{}, {"run": FORGED}]
