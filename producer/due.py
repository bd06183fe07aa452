"""What there is to do, as one question: an idle dispatcher asks it at each turn, and nothing else."""

# ruff: noqa: S608 - put together from constants of this package alone; values are always bound

from dataclasses import dataclass

from sqlalchemy import Connection, text

from infra.roster import CAPACITY

# Each is a look at the beginning of one small index.
_LOOK = text(f"""
    SELECT
        EXISTS (SELECT FROM shards WHERE lane = 'interactive' AND state = 'waiting' AND due_at <= now()) AS interactive,
        EXISTS (SELECT FROM shards WHERE lane = 'bulk' AND state = 'waiting')
            OR EXISTS (SELECT FROM shards WHERE lane = 'bulk' AND state IN ('released', 'running')) AS bulk,
        EXISTS (SELECT FROM shards
                WHERE deadline_at <= now() AND state IN ('waiting', 'released', 'running')) AS late,
        EXISTS (SELECT FROM batches WHERE status IN ('in_progress', 'cancelling')) AS batches,
        EXISTS (SELECT FROM callback_events WHERE NOT fanned_out)
            OR EXISTS (SELECT FROM callbacks WHERE state = 'waiting') AS callbacks,
        CAST(workers.slots AS int) AS slots, CAST(workers.bulk_slots AS int) AS bulk_slots
    FROM ({CAPACITY}) workers
""")


@dataclass(frozen=True, slots=True)
class Due:
    """What there is to do, and the workers' room for it."""

    interactive: bool
    """An interactive shard may be let go."""
    bulk: bool
    """A bulk shard has not ended, if it may not be let go now."""
    late: bool
    """A shard is past its deadline."""
    batches: bool
    """A batch is in progress or being cancelled."""
    callbacks: bool
    """An event is fresh, or a callback waits, if for a later time."""
    slots: int
    """Of all workers. As it is now: a worker that is to end leaves the roster, and what it gives back must not fill the
    others."""
    bulk_slots: int


def look(connection: Connection, *, worker_seconds: float) -> Due:
    """See what there is to do. A worker not heard of for `worker_seconds` is not counted on."""
    return Due(*connection.execute(_LOOK, {"within": worker_seconds}).one())
