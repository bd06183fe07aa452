"""The better response of a batch's lines: a preference row's verdict can be held against it wherever it is read."""

import json
from datetime import datetime
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Connection, text
from support.court import Court, ScriptedEngine
from support.filed import file_batch, judge_batches, objects

from producer import uploads
from schemas import lines as forms

TEXTS = {"prompt": "Which?", "response_a": "this", "response_b": "that"}
REQUEST = {"method": "POST", "url": "/v1/comparisons"}
PREFERENCES: list[dict[str, Any]] = [
    {"prompt": f"Which, {number}?", "chosen": "the good", "rejected": "the bad"} for number in range(12)
]
CONVERSATIONS = {
    "chosen": [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "this"}],
    "rejected": [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "that"}],
}
ROWS: list[dict[str, Any]] = [
    *PREFERENCES,
    CONVERSATIONS,
    {**PREFERENCES[0], "label": "neither", "prompt": "It goes by chosen and rejected."},
    {**TEXTS, "label": "A"},
    {**TEXTS, "label": "B", "metadata": {"run": "one", "label": "A"}, "id": 7},
    {**TEXTS, "label": None},
    TEXTS,
    {**REQUEST, "body": {**TEXTS, "metadata": {"label": "A"}}, "label": "A"},
    {**TEXTS, "response_b": 'It says "label": "A" and "chosen".\u2028\\u0001 é'},
]
"""Lines of every form; of the first, which are preference rows, a hash says which is response A."""
SPELLED = b'{"prompt":"Which?","response_a":"x","response_b":"y","l\\u0061bel":"B"}\n'
"""A name that JSON may spell otherwise."""


def labels(rows: list[dict[str, Any]]) -> list[str | None]:
    """The better response of each row as it is filed."""
    return [forms.unwrap(row).label for row in rows]


def filed(client: TestClient, court: Court, rows: list[dict[str, Any]], more: bytes = b"") -> dict[str, Any]:
    """Rows as a batch that was judged: the batch as it is read."""
    batch = file_batch(client, b"".join(json.dumps(row).encode() + b"\n" for row in rows) + more)  # type: ignore[arg-type]
    judge_batches(court)
    return client.get(f"/v1/batches/{batch}").json()


def results(client: TestClient, batch: dict[str, Any]) -> list[dict[str, Any]]:
    """The batch's results."""
    return objects(client.get(f"/v1/batches/{batch['id']}/results"))


def test_the_same_label_wherever_a_line_is_read(client: TestClient, court: Court):
    """In the results, in OpenAI's output file and where the line is read by its id: the whole object is the same."""
    batch = filed(client, court, ROWS, more=SPELLED)
    found = results(client, batch)
    assert [each["label"] for each in found] == [*labels(ROWS), "B"]
    assert {each["label"] for each in found[: len(PREFERENCES)]} == {"A", "B"}
    output = objects(client.get(f"/v1/files/{batch['output_file_id']}/content"))
    assert [line["response"]["body"] for line in output] == found
    for each in found:
        alone = client.get(f"/v1/comparisons/{each['id']}").json()
        assert alone.pop("waiting_for") is None
        for time in ("created_at", "decided_at"):
            alone[time], each[time] = datetime.fromisoformat(alone[time]), datetime.fromisoformat(each[time])
        assert alone == each


def test_whether_the_judge_preferred_what_was_chosen(client: TestClient, court: Court, engine: ScriptedEngine):
    """Whatever slot a hash put it into, winner and label together say it."""
    engine.log_odds = lambda prompt: 2.0 if prompt.index("the good") < prompt.index("the bad") else -2.0
    found = results(client, filed(client, court, PREFERENCES))
    assert all(each["verdict"]["winner"] == each["label"] for each in found)
    assert {each["verdict"]["winner"] for each in found} == {"A", "B"}


@pytest.mark.parametrize("which", range(6))
def test_one_line_of_many_has_one(client: TestClient, court: Court, monkeypatch: pytest.MonkeyPatch, which: int):
    """Wherever it stands in its file, and in which of the pieces that the file is stored in."""
    monkeypatch.setattr(uploads, "SHARD_LINES", 1)
    monkeypatch.setattr(uploads, "_PIECE_RUNS", 2)
    rows = [{**TEXTS, "label": "B"} if number == which else TEXTS for number in range(6)]
    assert [each["label"] for each in results(client, filed(client, court, rows))] == labels(rows)


@pytest.mark.parametrize("older", [False, True])
def test_no_line_has_any(client: TestClient, court: Court, connection: Connection, older: bool):
    """Nothing is searched; where an earlier release took the file in, and did not note it, all of it is."""
    batch = filed(client, court, [row for row in ROWS if forms.unwrap(row).label is None])
    searched = connection.execute(
        text("UPDATE files SET has_labels = :or_so OR has_labels RETURNING has_labels"), {"or_so": older}
    )
    assert searched.scalars().all() == [older]
    connection.commit()
    found = results(client, batch)
    assert found
    assert {each["label"] for each in found} == {None}
    assert {client.get(f"/v1/comparisons/{each['id']}").json()["label"] for each in found} == {None}


def test_lines_that_failed_and_lines_that_are_none(client: TestClient, court: Court):
    """What has no verdict has its label all the same; what is no comparison has none."""
    too_long = {**TEXTS, "prompt": "word " * 10_000, "label": "A"}
    rows = "".join(json.dumps(row) + "\n" for row in (too_long, PREFERENCES[1]))
    sent = client.post("/v1/files", files={"file": ("f", rows + "[]\n")}, data={"purpose": "batch"}).json()
    asked = {"input_file_id": sent["id"], "endpoint": "/v1/comparisons", "completion_window": "24h"}
    batch = client.post("/v1/batches", json=asked | {"on_bad_line": "skip"}).json()
    judge_batches(court)
    found = results(client, batch)
    assert [each["status"] for each in found] == ["errored", "succeeded", "errored"]
    assert [each["label"] for each in found] == ["A", *labels([PREFERENCES[1]]), None]


def test_a_line_that_this_release_would_not_take(client: TestClient, court: Court, connection: Connection):
    """One that an earlier release took in breaks no download: nobody knows its label."""
    batch = filed(client, court, [{**TEXTS, "label": "B"}, {**TEXTS, "label": "A"}])
    connection.execute(
        text("UPDATE comparisons SET body = :body WHERE line = 1"), {"body": json.dumps({**TEXTS, "label": "C"})}
    )
    connection.commit()
    assert [each["label"] for each in results(client, batch)] == [None, "A"]


def test_comparisons_that_were_filed_singly(client: TestClient):
    """Nobody says which is the better of them."""
    made = client.post("/v1/comparisons", json=TEXTS).json()
    assert made["label"] is None
    assert client.get("/v1/comparisons").json()["data"][0]["label"] is None
