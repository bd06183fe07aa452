"""The worker's heartbeat: it renews the leases in hand and keeps the worker on the roster."""

import threading
from dataclasses import asdict

import structlog
from sqlalchemy import Engine as Database
from sqlalchemy.exc import SQLAlchemyError

from infra import docket, metrics, roster
from worker.bench import Bench

log = structlog.get_logger()


def beat(bench: Bench, database: Database, *, slots: int, bulk_slots: int) -> None:
    """Renew what the worker holds and report that it is alive, once; or that it is to end, and takes nothing more.

    Args:
        bench: whose leases.
        database: a connection of the heart's own: it must not wait for those that the slots have taken.
        slots: how many the worker has.
        bulk_slots: how many of them are for bulk.
    """
    card = asdict(bench.engine.card)
    with database.begin() as connection:
        if bench.draining.is_set():
            roster.leave(connection, worker=bench.rules.worker)
        else:
            roster.report(connection, worker=bench.rules.worker, slots=slots, bulk_slots=bulk_slots, engine=card)
        held = tuple(bench.leases)
        if held:
            still = docket.renew(connection, held, lease_seconds=bench.rules.lease_seconds)
            for lease in set(held) - still:
                log.info("lease_not_renewed", shard=lease.shard)


def keep_beating(
    bench: Bench, database: Database, *, slots: int, bulk_slots: int, every: float, stop: threading.Event
) -> None:
    """Beat now, every so many seconds and when the worker is to end, until told to stop.

    A failed beat is logged; the next may succeed.
    """
    while not stop.is_set():
        told = bench.draining.is_set()
        try:
            beat(bench, database, slots=slots, bulk_slots=bulk_slots)
        except SQLAlchemyError as error:
            bench.meters.add(metrics.HEARTBEATS_FAILED)
            log.warning("heartbeat_failed", error=type(error).__name__)
        # Off the roster at once: what this worker gives back must not be let go into the room that it had.
        (stop if told else bench.draining).wait(every)
