"""The life of a batch, as the dispatcher sees to it: its window opens and closes, it is cancelled, it ends."""

# ruff: noqa: S608 - statements are put together from constants of this package alone; values are always bound

from datetime import timedelta

from sqlalchemy import Connection, text

from infra import callbacks, docket
from producer import hours, progress
from producer.progress import COUNTS

_LIVE = text("""
    SELECT id, tenant, paused, not_before, "window", open, status, now() AS now FROM batches
    WHERE status IN ('in_progress', 'cancelling') ORDER BY id
""")

# As everywhere here, nobody is waited for: what is passed over now comes round again at the next turn.
_OPEN = text("""
    UPDATE batches SET open = :open, samples = '[]'
    WHERE id = (SELECT id FROM batches WHERE id = :id AND status = 'in_progress' AND open <> :open AND paused = false
                FOR UPDATE SKIP LOCKED)
""")

# Whether anything is left is asked of two small indexes; sums over all shards are made of what has ended alone.
_OVER = text("""
    SELECT id FROM batches
    WHERE status IN ('in_progress', 'cancelling')
        AND NOT EXISTS (SELECT FROM shards WHERE filing_id = batches.id AND state = 'waiting')
        AND NOT EXISTS (SELECT FROM shards WHERE filing_id = batches.id AND lane = 'bulk'
                        AND state IN ('released', 'running'))
    FOR UPDATE SKIP LOCKED
""")

# What is left is counted under the lock: another dispatcher may have ended it, and its producer retried it, meanwhile.
# Lines that were cancelled stay so when the errored lines beside them are judged again.
_END = text(f"""
    UPDATE batches SET open = false, ended_at = now(), status = CASE
        WHEN batches.status = 'cancelling' OR n.cancelled > 0 THEN 'cancelled'
        WHEN n.expired > 0 THEN 'expired'
        WHEN n.succeeded = 0 THEN 'failed'
        ELSE 'completed' END
    FROM batches b {COUNTS}
    WHERE b.id = ANY(:over) AND b.id = batches.id AND n.live = 0
    RETURNING batches.id
""")


def tend(connection: Connection, *, clock_shift: float = 0.0, cancel_shards: int = 40) -> None:
    """Open and close windows, carry cancellations out, and end batches that have nothing left. The dispatcher's.

    Args:
        connection: in a transaction.
        clock_shift: seconds added to Postgres's clock, so that a test need not wait for the night.
        cancel_shards: how many shards to cancel at a time, of all batches together: everybody's release waits for it.
    """
    live = connection.execute(_LIVE).all()
    if live:
        progress.sample(connection)
    cancelling = [row for row in live if row.status == "cancelling"][:cancel_shards]
    for row in cancelling:
        docket.cancel(
            connection, tenant=row.tenant, filing_id=row.id, limit=cancel_shards // len(cancelling), wait=False
        )
    for row in live:
        if row.status == "cancelling":
            continue
        should = not row.paused and hours.may_run(row, row.now + timedelta(seconds=clock_shift))
        if should != row.open:
            connection.execute(_OPEN, {"id": row.id, "open": should})
    if live:
        # At every turn: a release that was under way when a batch was closed may have let a shard out since.
        docket.recall_closed(connection)
        if over := connection.execute(_OVER).scalars().all():
            ended = connection.execute(_END, {"over": over}).scalars().all()
            callbacks.tell_batches(connection, ended)
