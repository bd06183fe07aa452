"""A batch that was filed over HTTP and judged by a bench of the test's own, for pages to show."""

import json
import re
from types import SimpleNamespace
from typing import Any

from sqlalchemy import text

from infra import docket
from support.canaries import MARK
from support.court import Court, ScriptedEngine
from worker.judging import judge_shard

LINES = 60
TOO_LONG = 7
"""The line whose prompt is longer than the judge takes."""


def rows() -> str:
    """Preference pairs, one of them too long, and one that would like to be a script."""
    made = []
    for number in range(1, LINES + 1):
        prompt = (
            "word " * 10_000 if number == TOO_LONG else f"Question {number}? {MARK} <script>alert({number})</script>"
        )
        made.append(
            {
                "custom_id": f"row-{number}",
                "prompt": prompt,
                "response_a": f"this & that {number} {MARK}",
                "response_b": [{"role": "assistant", "content": "<b>the other</b>"}],
                "label": "B",
            }
        )
    return "".join(json.dumps(row) + "\n" for row in made)


def opinion(prompt: str) -> float:
    """Prefer one response or the other by the question's number, a tenth surely, and sometimes the first slot."""
    number = int(found[1]) if (found := re.search(r"Question (\d+)", prompt)) else 0
    first = prompt.index("this & that") < prompt.index("<b>the other</b>")
    side = (1.0 if number % 2 else -1.0) * (1.0 if first else -1.0)
    return side * (0.1 if number % 10 == 0 else 2.0) + (3.0 if number % 7 == 1 else 0.0)


def file_batch(client: Any, lines: str) -> str:
    """File lines as a batch, and give its id."""
    sent = client.post("/v1/files", files={"file": ("<i>pairs</i>.jsonl", lines)}, data={"purpose": "batch"}).json()
    asked = {"input_file_id": sent["id"], "endpoint": "/v1/comparisons", "completion_window": "24h"}
    return client.post("/v1/batches", json=asked).json()["id"]


def objects(answer: Any) -> list[dict[str, Any]]:
    """Understand an answer as JSON, a value a line."""
    assert answer.status_code == 200
    return [json.loads(line) for line in answer.text.split("\n")[:-1]]


def file_and_judge(client: Any, court: Court, engine: ScriptedEngine) -> Any:
    """File a batch and a single comparison with a client of the API, and judge both.

    Returns:
        The batch's id, the comparison's, and the batch's results.
    """
    engine.log_odds = opinion
    batch = file_batch(client, rows())
    body = {"prompt": "Question 2", "response_a": "this & that", "response_b": "<b>the other</b>", "custom_id": "spot"}
    single = client.post("/v1/comparisons", json=body).json()["id"]
    court.sit_until_quiet()
    judge_batches(court)
    lines = client.get(f"/v1/batches/{batch}/results").text.splitlines()
    return SimpleNamespace(batch=batch, single=single, results=[json.loads(line) for line in lines])


def judge_batches(court: Court) -> None:
    """Open every batch, judge it, and end it."""
    court.connection.execute(text("UPDATE batches SET open = true"))
    while shards := docket.release_bulk(court.connection, room=100, limit=100):
        for shard in shards:
            judge_shard(court.bench, shard)
    court.connection.execute(text("UPDATE batches SET status = 'completed', ended_at = now(), open = false"))
