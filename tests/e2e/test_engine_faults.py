"""Engines that crash, hang or never come to an end, under real processes: one comparison pays, nobody beside it."""

import json
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from support.service import QUESTION, Service, running_service
from support.waiting import wait_until

# A lease that runs out within seconds, for the one test that waits for that.
IMPATIENT = {"lease_seconds": 4.0, "heartbeat_seconds": 0.5, "sweep_seconds": 0.5, "hint_seconds": 3.0}
POISON = "<<poison>>"


def starts(service: Service) -> int:
    """How often a worker has come to be ready, which is when an engine was loaded."""
    return sum(line["event"] == "worker_ready" for line in service.log("worker"))


def see_three_more(service: Service) -> None:
    """Wait for the worker after the third that died: of these the dispatcher may have seen to the last."""
    wait_until(lambda: starts(service) > 3, within=60, what="the next worker is ready")
    assert starts(service) == 1 + 3


def file_batch(service: Service, questions: list[str]) -> str:
    """File one pair for each question as a batch, and give its id."""
    rows = [{**QUESTION, "custom_id": f"row-{n}", "prompt": question} for n, question in enumerate(questions, 1)]
    data = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    file = service.http.post("/v1/files", files={"file": ("pairs.jsonl", data)}, data={"purpose": "batch"}).json()
    body = {"input_file_id": file["id"], "endpoint": "/v1/comparisons", "completion_window": "24h"}
    return service.http.post("/v1/batches", json=body).json()["id"]


def ended(service: Service, batch_id: str, *, within: float) -> dict[str, Any]:
    """Wait for the end of a batch."""
    return wait_until(
        lambda: found if (found := service.http.get(f"/v1/batches/{batch_id}").json())["status"] == "completed" else 0,
        within=within,
        what="the batch ends",
    )


def query(service: Service, statement: str) -> list[tuple[Any, ...]]:
    """Look into the tables."""
    database = create_engine(service.database_url.replace("postgresql:", "postgresql+psycopg:"))
    try:
        with database.connect() as connection:
            return [tuple(row) for row in connection.execute(text(statement))]
    finally:
        database.dispose()


def test_poison_is_found_and_the_others_are_judged(tmp_path: Path, request: pytest.FixtureRequest):
    """A line that crashes the engine each time is errored alone, after three starts of the engine and no more."""
    count = 5000 if request.config.getoption("--full") else 600
    questions = [f"Question {n}?" for n in range(1, count + 1)]
    questions[count // 3] = f"Is this {POISON}?"
    # A lease that nobody waits for: the next worker proves that the one before it is dead.
    with running_service(tmp_path / "data", simulated_poison=POISON, lease_seconds=60.0, sweep_seconds=0.5) as service:
        batch = ended(service, file_batch(service, questions), within=240)
        counts = batch["request_counts"]
        assert (counts["succeeded"], counts["errored"]) == (count - 1, 1)
        [(line, code, message, attempt)] = query(
            service, "SELECT line, error_code, error_message, attempt FROM outcomes WHERE status <> 'succeeded'"
        )
        assert (line, code, attempt) == (count // 3 + 1, "engine_crashed", 3)
        assert [message.count(f"attempt {number} until") for number in (1, 2, 3)] == [1, 1, 1]
        see_three_more(service)
        assert query(service, "SELECT count(*), count(DISTINCT (filing_id, line)) FROM outcomes") == [(count, count)]


def test_poison_among_single_comparisons(tmp_path: Path):
    """Comparisons that are filed singly, and are in the process when it crashes time and again, are all judged."""
    with running_service(tmp_path / "data", simulated_poison=POISON, simulated_tokens_per_second=20_000.0) as service:
        filed = {
            service.file({**QUESTION, "prompt": POISON if n == 20 else f"Question {n}?"}).json()["id"]: n
            for n in range(60)
        }
        ends = {n: service.read(each, wait=60) for each, n in filed.items()}
        assert ends[20]["error"]["code"] == "engine_crashed"
        assert Counter(each["status"] for each in ends.values()) == {"succeeded": 59, "errored": 1}
        see_three_more(service)


def test_without_proof_the_lease_brings_it_back(tmp_path: Path):
    """Where nothing proves that a worker is dead, its lease has to run out, and poison is found all the same."""
    with running_service(tmp_path / "data", simulated_poison=POISON, presence_dir="/proc/none", **IMPATIENT) as service:
        batch = ended(service, file_batch(service, ["One?", POISON, "Three?"]), within=120)
        assert (batch["request_counts"]["succeeded"], batch["request_counts"]["errored"]) == (2, 1)
        assert query(service, "SELECT line, error_code FROM outcomes WHERE status = 'errored'") == [
            (2, "engine_crashed")
        ]
        assert any(line["event"] == "presence_not_held" for line in service.log("worker"))


def test_an_engine_that_hangs_is_ended(tmp_path: Path):
    """A worker whose engine does not come back ends itself: the line at which it hangs is found as poison is."""
    with running_service(
        tmp_path / "data", simulated_hang="<<hang>>", engine_deadline_seconds=4.0, heartbeat_seconds=0.5
    ) as service:
        batch = ended(service, file_batch(service, ["One?", "<<hang>>", "Three?"]), within=120)
        assert (batch["request_counts"]["succeeded"], batch["request_counts"]["errored"]) == (2, 1)
        assert query(service, "SELECT line, error_code FROM outcomes WHERE status = 'errored'") == [
            (2, "engine_crashed")
        ]
        hangs = [line for line in service.log("worker") if line["event"] == "engine_hangs"]
        assert len(hangs) == 3
        assert all(4.0 <= line["seconds"] < 60 and line["shards"] for line in hangs)


def test_a_drain_that_takes_too_long_is_cut_short(tmp_path: Path):
    """Told to end while a step takes hours, a worker gives its work back in time, and no attempt is burnt."""
    with running_service(
        tmp_path / "data", simulated_tokens_per_second=0.01, drain_seconds=1.0, lease_seconds=60.0
    ) as service:
        filed = service.file().json()["id"]
        wait_until(lambda: service.read(filed)["status"] == "running", within=60, what="a worker claims it")
        [(first,)] = query(service, "SELECT lease_owner FROM shards")
        service.signal("worker", signal.SIGTERM)
        wait_until(
            lambda: any(line["event"] == "drain_cut_short" for line in service.log("worker")),
            within=60,
            what="the drain is cut short",
        )
        wait_until(
            lambda: query(service, "SELECT lease_owner FROM shards") not in ([(first,)], [(None,)]),
            within=60,
            what="the next worker claims it",
        )
        assert query(service, "SELECT attempt, losses FROM shards") == [(1, [])]
