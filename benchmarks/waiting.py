"""How long a person waits while a batch saturates the worker, beside how long they wait when nothing else is done.

The simulated engine is given a speed at which one engine step takes some tens of milliseconds. The bound to hold is
twice the idle p99 plus one step: interactive work waits for the step in flight and for nothing else.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx2

from infra import settings
from infra.local.supervisor import Stack
from worker.engines.simulated import SimulatedEngine

_TOKENS_PER_SECOND = 200_000.0
_ROUNDS = 200
_BULK_LINES = 20_000


def _p99_of_posts(http: httpx2.Client, name: str, rounds: int) -> float:
    times = []
    for number in range(rounds):
        body = {"prompt": f"{name} {number}", "response_a": "this", "response_b": "that"}
        started = time.perf_counter()
        answer = http.post("/v1/comparisons", json=body, headers={"Prefer": "wait=30"})
        times.append(time.perf_counter() - started)
        if answer.status_code != httpx2.codes.OK:
            raise RuntimeError(f"not decided in time: {answer.text}")
    return statistics.quantiles(times, n=100)[98]


def measure() -> dict[str, Any]:
    """Measure idle and under load, in one run on one stack."""
    chosen = settings.load(engine="simulated", simulated_tokens_per_second=_TOKENS_PER_SECOND, log_level="warning")
    step_seconds = SimulatedEngine(tokens_per_second=_TOKENS_PER_SECOND).card.step_tokens / _TOKENS_PER_SECOND
    with (
        tempfile.TemporaryDirectory() as folder,
        Stack(chosen, Path(folder) / "data", port=0) as stack,
        httpx2.Client(base_url=stack.info.api_url, timeout=60) as http,
    ):
        http.headers["Authorization"] = f"Bearer {stack.info.key}"
        _p99_of_posts(http, "warm up", 20)
        idle = _p99_of_posts(http, "idle", _ROUNDS)
        rows = (
            json.dumps({"prompt": f"Bulk {number}?", "response_a": "a " * 300, "response_b": "b " * 300})
            for number in range(_BULK_LINES)
        )
        data = "\n".join(rows).encode()
        file = http.post("/v1/files", files={"file": ("bulk.jsonl", data)}, data={"purpose": "batch"}).json()
        asked = {"input_file_id": file["id"], "endpoint": "/v1/comparisons", "completion_window": "24h"}
        batch = http.post("/v1/batches", json=asked).json()
        while not http.get(f"/v1/batches/{batch['id']}").json()["progress"]["decided"]:
            time.sleep(0.1)
        loaded = _p99_of_posts(http, "loaded", _ROUNDS)
        still = http.get(f"/v1/batches/{batch['id']}").json()["status"]
        http.post(f"/v1/batches/{batch['id']}/cancel")
        stack.hurry()
    return {
        "rounds": _ROUNDS,
        "batch_was_running_throughout": still == "in_progress",
        "step_ms": round(step_seconds * 1000, 1),
        "idle_p99_ms": round(idle * 1000, 1),
        "loaded_p99_ms": round(loaded * 1000, 1),
        "bound_ms": round((2 * idle + step_seconds) * 1000, 1),
        "within_bound": loaded <= 2 * idle + step_seconds,
    }
