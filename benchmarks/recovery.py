"""How long what a worker held takes to be decided once the worker is gone, at the default settings.

Ten workers hold comparisons at an engine that takes minutes for one; two others decide at once whatever comes back.
Killed (`kill -9`), nobody can prove that they are dead: leases have to run out, as where a whole machine is lost. Told
to end (SIGTERM), they give back what they hold, and no attempt may be counted and nothing decided twice.
"""

import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg

from benchmarks.service import wait_until
from infra import settings
from infra.environment import child_environment
from infra.local.child import Child, start_child
from infra.local.supervisor import Stack
from producer.client import Client

_VICTIMS = 10
_SLOW_TOKENS_PER_SECOND = 5.0
_ROUNDS = {signal.SIGKILL: 3, signal.SIGTERM: 1}
_BOUND_SECONDS = 75.0
_PATIENCE_SECONDS = 400.0

_HELD = "SELECT filing_id FROM shards WHERE state = 'running' AND lease_owner LIKE %s"
_NOW = "SELECT extract(epoch FROM clock_timestamp())::float8"
_LIVE = "SELECT count(*) FROM shards WHERE state IN ('waiting', 'released', 'running')"
_OUTCOMES = """
    SELECT count(*), count(DISTINCT filing_id), extract(epoch FROM max(decided_at))::float8,
           count(*) FILTER (WHERE attempt > 1), count(*) FILTER (WHERE status <> 'succeeded')
    FROM outcomes WHERE filing_id = ANY(%s)
"""

Database = psycopg.Connection[Any]


@dataclass(frozen=True, slots=True)
class Loss:
    """A worker that was ended, and the filings that it held. `at` is Postgres's clock, in seconds."""

    at: float
    held: list[UUID]


@contextmanager
def _victims(stack: Stack, folder: Path) -> Iterator[list[Child]]:
    """Run slow workers of which nobody can tell that they died."""
    environment = child_environment(
        {
            "NIGHTCOURT_DATABASE_URL": stack.info.database_url,
            "NIGHTCOURT_REDIS_URL": stack.info.redis_url,
            "NIGHTCOURT_ENGINE": "simulated",
            "NIGHTCOURT_SIMULATED_TOKENS_PER_SECOND": str(_SLOW_TOKENS_PER_SECOND),
        }
    )
    command = [sys.executable, "-P", "-m", "worker.app"]
    victims = [
        start_child(f"victim-{number}", command, log=folder / f"victim-{number}.log", environment=environment)
        for number in range(_VICTIMS)
    ]
    try:
        yield victims
    finally:
        for victim in victims:
            victim.kill()


def _held(database: Database, victim: Child) -> list[UUID]:
    return [filing for (filing,) in database.execute(_HELD, (f"%-{victim.pid}-%",))]


def _round(stack: Stack, database: Database, folder: Path, how: signal.Signals, chance: random.Random) -> list[Loss]:
    """Let each of ten workers hold something, end one after another, and wait until all of it is decided."""
    losses = []
    with _victims(stack, folder) as victims, Client(stack.info.api_url, api_key=stack.info.key) as client:

        def all_hold() -> bool:
            client.submit(prompt=f"Which, {chance.random()}?", response_a="this", response_b="that")
            return all(_held(database, victim) for victim in victims)

        wait_until(all_hold, within=_PATIENCE_SECONDS, what="each worker holds something")
        for victim in victims:
            time.sleep(chance.uniform(0, 2))  # so that it falls anywhere between two heartbeats
            held = _held(database, victim)
            [(now,)] = database.execute(_NOW).fetchall()
            victim.send(how)
            losses.append(Loss(now, held))
        wait_until(
            lambda: database.execute(_LIVE).fetchall() == [(0,)], within=_PATIENCE_SECONDS, what="everything is decided"
        )
        statuses = [victim.wait(60) for victim in victims]
    if set(statuses) != {0 if how == signal.SIGTERM else -how}:
        raise RuntimeError(f"workers ended with {statuses}")
    return losses


def _tell(database: Database, losses: list[Loss]) -> dict[str, Any]:
    """Add up what became of what the workers held."""
    seconds, counted = [], Counter[str]()
    for loss in losses:
        rows, filings, last, tried_again, errored = database.execute(_OUTCOMES, (loss.held,)).fetchall()[0]
        seconds.append(last - loss.at)
        counted.update(
            held=len(loss.held),
            lost=len(loss.held) - filings,
            decided_twice=rows - filings,
            later_attempts=tried_again,
            errored=errored,
        )
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return {
        "workers": len(losses),
        **counted,
        "p50_seconds": round(cuts[49], 1),
        "p99_seconds": round(cuts[98], 1),
        "max_seconds": round(max(seconds), 1),
    }


def measure(seed: int = 7) -> dict[str, Any]:
    """Kill thirty workers and tell ten to end, on one stack with default times."""
    chosen = settings.load(engine="simulated", workers=2, log_level="warning")
    chance = random.Random(seed)  # noqa: S311 - it is to be the same again
    with (
        tempfile.TemporaryDirectory() as folder,
        Stack(chosen, Path(folder) / "data", port=0) as stack,
        psycopg.connect(stack.info.database_url, autocommit=True) as database,
    ):
        rounds = {how: partial(_round, stack, database, Path(folder), how, chance) for how in _ROUNDS}
        told = {
            how.name: _tell(database, [loss for _ in range(times) for loss in rounds[how]()])
            for how, times in _ROUNDS.items()
        }
    killed = told["SIGKILL"]
    return {
        "lease_seconds": chosen.lease_seconds,
        "heartbeat_seconds": chosen.heartbeat_seconds,
        "sweep_seconds": chosen.sweep_seconds,
        "killed": killed,
        "told_to_end": told["SIGTERM"],
        "bound_seconds": _BOUND_SECONDS,
        "within_bound": killed["p99_seconds"] < _BOUND_SECONDS,
    }
