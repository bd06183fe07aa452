"""The survey: how the docket and the callbacks stand, read every few seconds by the dispatcher, for its gauges.

One process reads, and not each that is asked for metrics. What grows for ever, such as outcomes, is not counted.
"""

import shutil
import threading
import time
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import Connection, Row, text
from sqlalchemy import Engine as Database
from sqlalchemy.exc import SQLAlchemyError

from infra import losses, metrics, roster
from infra.callbacks import OPEN_AFTER
from infra.meters import Meters
from infra.metrics import Metric
from schemas.message import CALLBACK_QUEUE, QUEUES
from schemas.states import Lane

log = structlog.get_logger()

_EVERY_SECONDS = 5.0
_MOST_SHARE = 0.05
"""Of Postgres' time, how much reading may take: where it takes long, it is done less often."""

# Here and below each part of the condition has an index of its own: a list of all three states has none, and all that
# ever was would be read every few seconds.
# Ages are told of what somebody should see to: a batch that is paused, or whose window is closed, is not late. What was
# handed out is as old as what waits: where nobody takes it, its hint is repeated, and its release looks fresh for ever.
_SHARDS = text("""
    SELECT lane, state, count(*) AS shards,
           coalesce(extract(epoch FROM now() - min(CASE
               WHEN state = 'running' THEN CASE WHEN isfinite(released_at) THEN released_at END
               WHEN due_at <= now() AND open THEN due_at END)), 0)::float8 AS oldest
    FROM queue WHERE state = 'waiting' OR state IN ('released', 'running') GROUP BY lane, state
""")

_RELEASED = text("""
    SELECT lane, count(*) AS released FROM queue WHERE state = 'released' GROUP BY lane
    UNION ALL SELECT NULL, count(*) FROM callbacks WHERE state = 'released'
""")

_BATCHES = text("SELECT status, count(*) AS batches FROM batches GROUP BY status")

_CALLBACKS = text("""
    SELECT c.state, count(*) AS callbacks, coalesce(extract(epoch FROM now() - min(c.due_at) FILTER (
               WHERE c.state <> 'sending' AND c.due_at <= now() AND e.state = 'enabled' AND e.failures < :open_after
                 AND coalesce(e.open_until <= now(), true)
           )), 0)::float8 AS oldest
    FROM callbacks c JOIN callback_endpoints e ON e.id = c.endpoint_id
    WHERE c.state = 'waiting' OR c.state IN ('released', 'sending')
    GROUP BY c.state
""")

# Of a receiver that failed, and is owed nothing any more, nobody finds out whether it does well again: it keeps its
# failures for ever, and would be told of for as long.
_CIRCUITS = text("""
    SELECT CASE WHEN state = 'disabled' THEN 'disabled'
                WHEN open_until > now() THEN 'open'
                WHEN failures >= :open_after AND (
                    EXISTS (SELECT FROM callbacks c WHERE c.endpoint_id = e.id AND c.state = 'waiting')
                    OR EXISTS (SELECT FROM callbacks c
                               WHERE c.endpoint_id = e.id AND c.state IN ('released', 'sending'))
                ) THEN 'half_open'
                ELSE 'closed' END AS state, count(*) AS receivers
    FROM callback_endpoints e GROUP BY 1
""")

_DATABASE = text("SELECT pg_database_size(current_database())")


def standing(connection: Connection) -> dict[tuple[str, str], Row[Any]]:
    """Count shards that are not done by lane and state, with the seconds that the oldest of each has been there.

    Of those that are not running, the oldest is one that is due and might run.
    """
    return {(row.lane, row.state): row for row in connection.execute(_SHARDS)}


def released(connection: Connection) -> dict[str, int]:
    """Count what was handed out and is not taken yet, by the queue in Redis where its hints stand, or stood."""
    return {
        CALLBACK_QUEUE if row.lane is None else QUEUES[Lane(row.lane)]: row.released
        for row in connection.execute(_RELEASED)
    }


def take(connection: Connection, meters: Meters, *, worker_seconds: float) -> None:
    """Read how everything stands, once.

    Args:
        connection: in or out of a transaction.
        meters: the dispatcher's.
        worker_seconds: a worker not heard of for this long is not counted.
    """
    began = time.monotonic()
    shards = standing(connection)
    for lane in metrics.SHARDS.labels["lane"]:
        for state in metrics.SHARDS.labels["state"]:
            row: Any = shards.get((lane, state))
            meters.set(metrics.SHARDS, row.shards if row else 0, lane=lane, state=state)
            meters.set(metrics.OLDEST_SHARD, row.oldest if row else 0, lane=lane, state=state)
    meters.set(metrics.LEASE_OVERDUE, losses.longest_lapsed(connection))
    capacity = roster.capacity(connection, within=worker_seconds)
    meters.set(metrics.WORKERS, capacity.workers)
    meters.set(metrics.SLOTS, capacity.slots, of="all")
    meters.set(metrics.SLOTS, capacity.bulk_slots, of="bulk")
    _set_all(meters, metrics.BATCHES, "status", {row.status: row.batches for row in connection.execute(_BATCHES)})
    callbacks = connection.execute(_CALLBACKS, {"open_after": OPEN_AFTER}).all()
    _set_all(meters, metrics.CALLBACKS, "state", {row.state: row.callbacks for row in callbacks})
    meters.set(metrics.OLDEST_CALLBACK, max((row.oldest for row in callbacks), default=0))
    circuits = connection.execute(_CIRCUITS, {"open_after": OPEN_AFTER})
    _set_all(meters, metrics.CIRCUITS, "state", {row.state: row.receivers for row in circuits})
    meters.set(metrics.DATABASE_BYTES, connection.execute(_DATABASE).scalar_one())
    meters.set(metrics.READ_SECONDS, time.monotonic() - began)
    meters.set(metrics.READ_AT, time.time())


def _set_all(meters: Meters, metric: Metric, label: str, counts: dict[str, int]) -> None:
    for value in metric.labels[label]:
        meters.set(metric, counts.get(value, 0), **{label: value})


def keep_taking(
    database: Database,
    meters: Meters,
    stop: threading.Event,
    *,
    worker_seconds: float,
    data_dir: Path | None,
) -> None:
    """Take the survey every few seconds until told to stop. Where Postgres is away, the gauges stay as they were.

    Args:
        database: where to read.
        meters: the dispatcher's.
        stop: ends it.
        worker_seconds: as in `take`.
        data_dir: the folder whose disk is looked at; None for no look.
    """
    pause = 0.0
    while not stop.wait(pause):
        began = time.monotonic()
        try:
            with database.connect() as connection:
                take(connection, meters, worker_seconds=worker_seconds)
            if data_dir is not None:
                disk = shutil.disk_usage(data_dir)
                meters.set(metrics.DISK_FREE, disk.free)
                meters.set(metrics.DISK, disk.total)
        except (SQLAlchemyError, OSError) as error:
            log.warning("survey_failed", error=type(error).__name__)
        pause = max(_EVERY_SECONDS, (time.monotonic() - began) / _MOST_SHARE)
