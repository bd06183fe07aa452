"""How results are read out of tables that have just been filled, of which Postgres' planner knows nothing."""

import json
from typing import Any

import pytest
from fastapi.testclient import TestClient
from support.court import Court
from support.filed import file_batch, judge_batches, objects
from support.reading import explaining, scans_of

TEXTS = {"response_a": "this", "response_b": "that"}
LINES = 300


@pytest.mark.parametrize("more", [{}, {"metadata": {"run": "one"}}, {"label": "A"}])
def test_a_span_is_one_look_into_either_table(client: TestClient, court: Court, more: dict[str, Any]):
    """Not one for each line; and nothing is compiled for it, which would take longer than all of the reading."""
    rows = [{"prompt": f"Which, {number}?", **TEXTS, **more} for number in range(LINES)]
    batch = file_batch(client, "".join(json.dumps(row) + "\n" for row in rows))
    judge_batches(court)
    plans: list[dict[str, Any]] = []
    with explaining(plans.append):
        assert len(objects(client.get(f"/v1/batches/{batch}/results"))) == LINES
    # The query for the spans looks for the last outcome; the spans are read after it.
    reading = [plan for plan in plans if scans_of(plan, "comparisons")]
    assert [(scans_of(plan, "comparisons"), scans_of(plan, "outcomes")) for plan in reading] == [(1, 1)]
