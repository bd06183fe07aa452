"""Metadata of a batch's lines, read back in every way there is: from where a line's form has them, and nowhere else."""

import json
from collections.abc import Sequence
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Connection, text
from support.court import Court
from support.filed import file_batch, judge_batches, objects

from producer import uploads

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


def judged(client: TestClient, court: Court, lines: Sequence[dict[str, Any]]) -> Any:
    """Lines as a batch that was judged, and a look at what the service says of it."""
    rows = "".join(json.dumps(line) + "\n" for line in lines)
    sent = client.post("/v1/files", files={"file": ("lines.jsonl", rows)}, data={"purpose": "batch"}).json()
    assert sent["bad_lines"] == 0
    asked = {"input_file_id": sent["id"], "endpoint": "/v1/comparisons", "completion_window": "24h"}
    batch = client.post("/v1/batches", json=asked).json()["id"]
    judge_batches(court)
    return SimpleNamespace(batch=client.get(f"/v1/batches/{batch}").json(), get=client.get)


@pytest.fixture
def read(client: TestClient, court: Court) -> Any:
    """Those lines, judged."""
    return judged(client, court, [line for line, _ in LINES])


def test_a_batchs_results_and_its_output_file(read: Any):
    """There is a result a line, each with its line's own metadata."""
    results = objects(read.get(f"/v1/batches/{read.batch['id']}/results"))
    assert [result["metadata"] for result in results] == [metadata for _, metadata in LINES]
    output = objects(read.get(f"/v1/files/{read.batch['output_file_id']}/content"))
    assert [line["response"]["body"] for line in output] == results


@pytest.mark.parametrize("which", range(6))
def test_one_line_of_many_has_some(client: TestClient, court: Court, monkeypatch: pytest.MonkeyPatch, which: int):
    """Wherever it stands in its file, and in which of the pieces that the file is stored in."""
    monkeypatch.setattr(uploads, "SHARD_LINES", 1)
    monkeypatch.setattr(uploads, "_PIECE_RUNS", 2)
    lines = [{**TEXTS, "metadata": {"n": "1"}} if number == which else TEXTS for number in range(6)]
    read = judged(client, court, lines)
    results = objects(read.get(f"/v1/batches/{read.batch['id']}/results"))
    assert [result["metadata"] for result in results] == [line.get("metadata", {}) for line in lines]


def test_what_stands_between_pairs_is_not_theirs(client: TestClient, court: Court):
    """A result is no longer for blanks and repetitions in the metadata of its line, which nothing limits."""
    blanks, pair = "\r " * 100_000, '"k": 1e400000'
    line = f'{json.dumps(TEXTS)[:-1]}, "metadata": {{{pair},{blanks}"k": "v",{blanks}"w": "\\u00e9"}}}}\n'
    batch = file_batch(client, line + json.dumps(TEXTS) + "\n")
    judge_batches(court)
    answer = client.get(f"/v1/batches/{batch}/results")
    assert [result["metadata"] for result in objects(answer)] == [{"k": "v", "w": "é"}, {}]
    assert len(answer.content) < 2000


@pytest.mark.parametrize("letter", "metad")
def test_a_key_that_is_spelled_by_numbers(client: TestClient, court: Court, letter: str):
    """JSON may spell a letter of the key as an escape, and it is the same key."""
    key = "metadata".replace(letter, f"\\u{ord(letter):04x}")
    batch = file_batch(client, f'{json.dumps(TEXTS)[:-1]}, "{key}": {{"k": "v"}}}}\n')
    judge_batches(court)
    (result,) = objects(client.get(f"/v1/batches/{batch}/results"))
    assert result["metadata"] == {"k": "v"}
    assert client.get(f"/v1/comparisons/{result['id']}").json()["metadata"] == {"k": "v"}


@pytest.mark.parametrize("older", [False, True])
def test_no_line_has_any(client: TestClient, court: Court, connection: Connection, older: bool):
    """Whatever else its lines say; the same where an earlier release took the file in, and did not note it."""
    read = judged(client, court, [TEXTS, {**REQUEST, "body": TEXTS, "metadata": {"run": "beside"}}])
    searched = connection.execute(
        text("UPDATE files SET has_metadata = :or_so OR has_metadata RETURNING has_metadata"), {"or_so": older}
    )
    assert searched.scalars().all() == [older]
    connection.commit()
    assert [each["metadata"] for each in objects(read.get(f"/v1/batches/{read.batch['id']}/results"))] == [{}, {}]


def test_lines_read_as_comparisons(read: Any):
    """A line that is read by its id says the same as in the results: it was filed when its batch was made."""
    for result in objects(read.get(f"/v1/batches/{read.batch['id']}/results")):
        alone = read.get(f"/v1/comparisons/{result['id']}")
        assert alone.status_code == 200
        assert (alone.json()["metadata"], alone.json()["status"]) == (result["metadata"], "succeeded")
        assert datetime.fromisoformat(alone.json()["created_at"]) == datetime.fromisoformat(result["created_at"])


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
