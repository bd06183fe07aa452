"""From submit to verdict on an idle service with the simulated engine, beside the same service's bare round trip.

The bare round trip is a GET of a comparison on the same connection: what of the time is HTTP and Postgres alone.
"""

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from infra import settings
from infra.local.supervisor import Stack
from producer.client import Client

_ROUNDS = 300


def _milliseconds(call: Callable[[], object], rounds: int) -> dict[str, float]:
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        call()
        times.append((time.perf_counter() - started) * 1000)
    cuts = statistics.quantiles(times, n=100)
    return {"p50_ms": round(cuts[49], 2), "p99_ms": round(cuts[98], 2)}


def measure() -> dict[str, Any]:
    """Measure on a stack of its own, with everything on disk as in use."""
    chosen = settings.load(engine="simulated", log_level="warning")
    with (
        tempfile.TemporaryDirectory() as folder,
        Stack(chosen, Path(folder) / "data", port=0) as stack,
        Client(stack.info.api_url, api_key=stack.info.key) as client,
    ):
        number = itertools.count()

        def judge() -> str:
            # Each unlike the others: what was judged before would be answered from the stored verdict.
            return client.judge(f"Which, {next(number)}?", "this", "that").id

        known = judge()
        _milliseconds(judge, 20)  # warm up
        verdict = _milliseconds(judge, _ROUNDS)
        bare = _milliseconds(lambda: client.get(known), _ROUNDS)
    return {
        "rounds": _ROUNDS,
        "submit_to_verdict": verdict,
        "bare_get": bare,
        "ratio_p50": round(verdict["p50_ms"] / bare["p50_ms"], 2),
    }
