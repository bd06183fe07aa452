"""The whole service over the stand-in of TensorRT-LLM: real processes, Celery threads, Postgres and Redis; no model.

What is proven is everything but the GPU's own work: that nothing is lost, doubled or mixed up while requests are
refused, late or called off, and while an executor dies under its worker.
"""

import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from support.checkpoints import write_pairs
from support.gpu import build_engine, gpu_host
from support.service import IMPATIENT, Service, running_service
from support.waiting import wait_until

from infra.engine_folder import build_of, read_manifest
from infra.environment import child_environment

PATIENT = {"lease_seconds": 60.0, "heartbeat_seconds": 1.0, "engine_timeout_seconds": 60.0}


@pytest.fixture(scope="module")
def engine_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine for all services here."""
    return build_engine(
        tmp_path_factory.mktemp("engine"), pairs=20, max_batch_size=64, max_num_tokens=32768, max_seq_len=4096
    )


@pytest.fixture
def engine(engine_folder: Path) -> dict[str, Any]:
    """Settings of a worker with 64 slots on it."""
    return {
        "engine": "tensorrt_llm",
        "engine_folder": engine_folder,
        "slots": 80,
        "bulk_slots": 64,
        "engine_timeout_seconds": 2.0,
        "log_level": "info",
        **IMPATIENT,
    }


def submitted(service: Service, file: Path) -> str:
    """File a batch and return its id."""
    with file.open("rb") as content:
        uploaded = service.http.post("/v1/files", data={"purpose": "batch"}, files={"file": ("pairs.jsonl", content)})
    body = {"input_file_id": uploaded.json()["id"], "endpoint": "/v1/comparisons", "completion_window": "24h"}
    return service.http.post("/v1/batches", json=body).json()["id"]


def ended(service: Service, batch: str) -> dict[str, Any] | None:
    """The batch, once all of it is decided."""
    found = service.http.get(f"/v1/batches/{batch}").json()
    return found if found["status"] == "completed" else None


def outcomes(service: Service) -> list[Any]:
    """Every outcome row."""
    database = create_engine(service.database_url.replace("postgresql:", "postgresql+psycopg:"))
    with database.connect() as connection:
        rows = connection.execute(text("SELECT filing_id, line, status, attempt, tally FROM outcomes")).all()
    database.dispose()
    return list(rows)


def counted(folder: Path) -> Counter[str]:
    """What the stand-ins' executors counted, all processes together; the most in flight is the most of any."""
    total: Counter[str] = Counter()
    for file in folder.glob("*.json"):
        counts = json.loads(file.read_text())
        most = max(total["in_flight_most"], counts.pop("in_flight_most"))
        total.update(counts)
        total["in_flight_most"] = most
    return total


def judge_many(service: Service, tmp_path: Path, many: int) -> dict[str, Any]:
    """Judge a batch to its end, and see that each line has exactly one outcome."""
    batch = submitted(service, write_pairs(tmp_path / "many.jsonl", many, words=4))
    found = wait_until(lambda: ended(service, batch), within=280, every=0.5, what="the batch ends")
    rows = outcomes(service)
    assert len(rows) == many
    assert len({(row.filing_id, row.line) for row in rows}) == many
    assert {row.status for row in rows} == {"succeeded"}
    return found


@pytest.mark.parametrize("many", [1000, pytest.param(5000, marks=pytest.mark.slow)])
def test_thousands_of_comparisons_through_threads(
    engine: dict[str, Any], tmp_path: Path, engine_folder: Path, many: int
) -> None:
    """Comparisons in both orders, 64 and more prompts in flight: one outcome each, and no number given out twice."""
    with (
        gpu_host(report=str(tmp_path), tokens_per_second=200_000),
        running_service(tmp_path / "data", **engine | PATIENT) as service,
    ):
        judge_many(service, tmp_path, many)
        alone = service.file(wait=60).json()
        service.signal("worker", signal.SIGTERM)
        counts = wait_until(lambda: counted(tmp_path), within=60, what="the executor leaves its counts")
    assert counts["requests"] == 2 * many + 2
    assert counts["duplicate_ids"] == 0
    assert counts["aborted"] == 0
    assert counts["in_flight_most"] >= 64
    assert counts["reused"] > 0
    judge = alone["verdict"]["judge"]
    manifest = read_manifest(engine_folder)
    assert judge["engine"] == "tensorrt_llm"
    assert build_of(manifest) in judge["engine_build"]
    assert (judge["weights"], judge["quantisation"]) == (manifest.weights, "fp8")
    assert "has not passed" in judge["caveat"]


def test_refusals_and_lateness_cost_attempts_and_nothing_else(engine: dict[str, Any], tmp_path: Path) -> None:
    """Refused and late requests fail their step, are called off and tried again; every line is decided once."""
    with (
        gpu_host(report=str(tmp_path), refuse_every=401, late_every=577),
        running_service(tmp_path / "data", **engine | {"engine_timeout_seconds": 5.0}, max_attempts=5) as service,
    ):
        judge_many(service, tmp_path, 800)
        failed = [line for line in service.log("worker") if line["event"] == "attempt_failed"]
        service.signal("worker", signal.SIGTERM)
        counts = wait_until(lambda: counted(tmp_path), within=60, what="the executor leaves its counts")
    assert counts["aborted"] > 0
    assert counts["duplicate_ids"] == 0
    assert {line["error"] for line in failed} == {"EngineError"}


def test_an_executor_that_dies_takes_its_process_along(engine: dict[str, Any], tmp_path: Path) -> None:
    """The worker ends itself, another starts, and what was in hand is decided once each."""
    marker = tmp_path / "died"
    with (
        gpu_host(report=str(tmp_path), die_after=500, die_once=str(marker), tokens_per_second=200_000),
        running_service(tmp_path / "data", **engine | PATIENT, max_attempts=5) as service,
    ):
        first = service.pid("worker")
        judge_many(service, tmp_path, 800)
        gone = [line for line in service.log("worker") if line["event"] == "engine_gone"]
        assert marker.exists()
        assert gone
        assert service.pid("worker") != first
        started = [line for line in service.log("worker") if line["event"] == "worker_ready"]
        assert len(started) == 2
    assert counted(tmp_path)["duplicate_ids"] == 0


@pytest.fixture
def deaf(engine: dict[str, Any], tmp_path: Path) -> Iterator[Service]:
    """A service whose engine takes requests and answers none."""
    with gpu_host(hang_after=0), running_service(tmp_path / "data", **engine) as service:
        yield service


def test_an_engine_that_answers_nothing_ends_its_process(deaf: Service) -> None:
    """After the time that a step may take, the worker ends rather than hold work that nobody does."""
    first = deaf.pid("worker")
    deaf.file()
    wait_until(lambda: deaf.pid("worker") != first, within=120, what="another worker starts")
    assert any(line["event"] == "engine_gone" for line in deaf.log("worker"))


def test_a_worker_on_the_wrong_gpu_says_so_and_ends(engine_folder: Path) -> None:
    """The engine is refused with a sentence, and the worker does not run without one."""
    with gpu_host(capability=[8, 0], gpu="NVIDIA A100-SXM4-80GB"):
        settings = {"NIGHTCOURT_ENGINE": "tensorrt_llm", "NIGHTCOURT_ENGINE_FOLDER": str(engine_folder)}
        ended = subprocess.run(
            [sys.executable, "-P", "-m", "worker.app"],
            env=child_environment(settings),
            capture_output=True,
            timeout=120,
            check=False,
        )
    assert ended.returncode == 2
    assert b"engines do not run on another" in ended.stdout + ended.stderr
