"""The worker's heartbeat: it renews the leases in hand and keeps the worker on the roster."""

import threading
from dataclasses import asdict

import structlog
from sqlalchemy.exc import SQLAlchemyError

from infra import docket, metrics, roster
from worker.judging import Bench

log = structlog.get_logger()


def beat(bench: Bench, *, slots: int, bulk_slots: int) -> None:
    """Renew what the worker holds and report that it is alive, once."""
    card = asdict(bench.engine.card)
    with bench.database.begin() as connection:
        roster.report(connection, worker=bench.rules.worker, slots=slots, bulk_slots=bulk_slots, engine=card)
        held = tuple(bench.leases)
        if held:
            still = docket.renew(connection, held, lease_seconds=bench.rules.lease_seconds)
            for lease in set(held) - still:
                log.info("lease_not_renewed", shard=lease.shard)


def keep_beating(bench: Bench, *, slots: int, bulk_slots: int, every: float, stop: threading.Event) -> None:
    """Beat now and every so many seconds until told to stop. A failed beat is logged; the next may succeed."""
    while True:
        try:
            beat(bench, slots=slots, bulk_slots=bulk_slots)
        except SQLAlchemyError as error:
            bench.meters.add(metrics.HEARTBEATS_FAILED)
            log.warning("heartbeat_failed", error=type(error).__name__)
        if stop.wait(every):
            return
