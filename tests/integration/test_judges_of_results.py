"""Whose verdict each line of a batch's results is."""

import json
from typing import Any

from fastapi.testclient import TestClient
from sqlalchemy import Connection, text
from support.court import Court
from support.filed import file_batch, judge_batches, objects

TEXTS = {"prompt": "Which?", "response_a": "this", "response_b": "that"}
ANOTHER = "jdg_another"


def results(client: TestClient, batch: str) -> list[dict[str, Any]]:
    """The lines of a batch's results."""
    return objects(client.get(f"/v1/batches/{batch}/results"))


def judged(client: TestClient, court: Court, *lines: dict[str, Any]) -> str:
    """Lines as a batch, judged."""
    batch = file_batch(client, "".join(json.dumps(line) + "\n" for line in lines))
    judge_batches(court)
    return batch


def test_each_line_has_the_card_of_its_own_judge(client: TestClient, court: Court, connection: Connection):
    """Where another worker went on with a batch its lines say so, as they do when they are read one by one."""
    batch = judged(client, court, *({**TEXTS, "prompt": f"Which of {number}?"} for number in range(5)))
    connection.execute(
        text('INSERT INTO judges (id, card) SELECT :id, card || \'{"model": "another"}\' FROM judges LIMIT 1'),
        {"id": ANOTHER},
    )
    connection.execute(text("UPDATE outcomes SET judge_id = :id WHERE line % 2 = 0"), {"id": ANOTHER})
    connection.commit()
    read = results(client, batch)
    assert [line["verdict"]["judge"]["model"] for line in read] == ["none", "another", "none", "another", "none"]
    for line in read:
        assert client.get(f"/v1/comparisons/{line['id']}").json()["verdict"] == line["verdict"]


def test_a_line_that_would_like_to_be_a_judge(client: TestClient, court: Court):
    """What stands between two control characters in a line's metadata is given back as it came."""
    forged = {"metadata": {"note": "\x01jdg_another\x01"}}
    batch = judged(client, court, {**TEXTS, **forged})
    [line] = results(client, batch)
    assert line["metadata"] == forged["metadata"]
    assert line["verdict"]["judge"]["model"] == "none"


def test_control_characters_as_they_are(client: TestClient):
    """No JSON has them so: a line that does is a bad line."""
    raw = b'{"prompt": "Which\x01?", "response_a": "this", "response_b": "that"}\n'
    sent = client.post("/v1/files", files={"file": ("lines.jsonl", raw)}, data={"purpose": "batch"}).json()
    assert (sent["lines"], sent["bad_lines"]) == (0, 1)
