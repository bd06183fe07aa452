"""The watchdog: it ends a worker whose engine hangs, and one that was told to end and does not come to it."""

import os
import signal
import threading
import time
from contextlib import suppress
from functools import partial

import structlog
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from infra import docket, losses, roster
from infra.database import persist
from infra.docket import Lease, LeaseLostError
from worker.bench import Bench

log = structlog.get_logger()

_PATIENCE_SECONDS = 0.2
"""What a worker does last is tried once more: its connection may have died while nobody used it."""


def give_up(bench: Bench) -> None:
    """End this process, as its engine is of no more use. Whoever supervises it starts another."""
    bench.draining.set()  # nothing is claimed any more
    bury = partial(losses.bury, worker=bench.rules.worker, max_attempts=bench.rules.max_attempts)
    with suppress(SQLAlchemyError):  # where Postgres does not answer now, the leases bring the work back
        persist(bench.database, bury, patience_seconds=_PATIENCE_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)
    os._exit(1)  # the first process of a container is deaf to its own signals


def _in_hand(bench: Bench) -> list[Lease]:
    """List what the worker holds, of which the slots take and end some meanwhile; by id, as locks are taken."""
    return sorted(bench.leases, key=lambda lease: lease.shard)


def _leave(bench: Bench) -> None:
    """End this process, which was told to: what it has not come to the end of goes back, uncounted."""

    def leave(connection: Connection) -> None:
        for lease in _in_hand(bench):
            with suppress(LeaseLostError):
                docket.give_back(connection, lease)
        roster.leave(connection, worker=bench.rules.worker)

    with suppress(SQLAlchemyError):
        persist(bench.database, leave, patience_seconds=_PATIENCE_SECONDS)
    os._exit(0)


def keep_watch(bench: Bench, *, engine_deadline: float, drain: float, stop: threading.Event) -> None:
    """Watch until told to stop. Times are seconds.

    Args:
        bench: whose engine, and whose work.
        engine_deadline: how long one call of the engine may take.
        drain: how long the work in hand may take once the worker is to end.
        stop: ends the watch.
    """
    every = min(1.0, engine_deadline / 4, drain / 4)
    draining_since: float | None = None
    while not stop.wait(every):
        if (seconds := bench.engine.longest_call()) > engine_deadline:
            log.error("engine_hangs", seconds=round(seconds, 1), shards=[lease.shard for lease in _in_hand(bench)])
            give_up(bench)
        if bench.draining.is_set():
            draining_since = draining_since or time.monotonic()
            if time.monotonic() - draining_since > drain:
                log.warning("drain_cut_short", shards=[lease.shard for lease in _in_hand(bench)])
                _leave(bench)
