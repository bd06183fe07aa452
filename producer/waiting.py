"""Why a comparison still waits, in a sentence that somebody can act on."""

from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from producer import hours
from schemas.ids import ComparisonKey
from schemas.states import Lane

_MANY = 1000
"""Beyond so many shards ahead they are not counted on."""
_PATIENCE = 10.0
"""Seconds after which a shard that is due is wondered about."""

# Tenants take turns, so that of what waits its own tenant's alone is ahead of it. Of these the first few are looked at,
# in the order of their index, and of what is out as many: each statement that would look for both at once, or by a
# comparison of places, reads every shard that there is once very many wait.
_LOOK = text("""
    SELECT s.state, s.lane, s.attempt, extract(epoch FROM s.due_at - now()) AS due_in,
           extract(epoch FROM now() - s.due_at) AS due_for, b.paused, b.status AS batch,
           s.filing_id AS id, b.open, b."window", b.not_before, now() AS now, b.not_before > now() AS early,
           (SELECT count(*) FROM workers WHERE seen_at > now() - make_interval(secs => :within)) AS workers,
           EXISTS (SELECT FROM queue WHERE state IN ('released', 'running')) AS handing_out,
           CASE WHEN s.state = 'waiting' THEN
               (SELECT count(*) FROM (
                    SELECT FROM queue WHERE lane = s.lane AND state IN ('released', 'running') LIMIT :many + 1) out)
               + (SELECT count(*) FROM (
                    SELECT priority, due_at, id FROM shards
                    WHERE lane = s.lane AND tenant = s.tenant AND state = 'waiting' AND due_at <= now()
                    ORDER BY priority DESC, due_at, id LIMIT :many + 1) first
                  WHERE (-first.priority, first.due_at, first.id) < (-s.priority, s.due_at, s.id))
           ELSE 0 END AS ahead
    FROM shards s LEFT JOIN batches b ON b.id = s.filing_id
    WHERE s.filing_id = :filing_id AND :line BETWEEN s.first_line AND s.last_line
      AND s.state IN ('waiting', 'released', 'running')
    ORDER BY s.id DESC
    LIMIT 1
""")


async def why(connection: AsyncConnection, key: ComparisonKey, *, worker_seconds: float) -> str | None:
    """Say why a comparison that has no outcome is not being judged.

    Args:
        connection: reads only.
        key: whose it is has been checked.
        worker_seconds: a worker that was not heard of for this long counts for nothing.

    Returns:
        A sentence; None where a worker has it, or where it was decided meanwhile.
    """
    parameters = {"filing_id": key.filing_id, "line": key.line, "within": worker_seconds, "many": _MANY}
    row = (await connection.execute(_LOOK, parameters)).one_or_none()
    return None if row is None or row.state == "running" else _reason(row)


def _reason(row: Row[Any]) -> str:
    ahead = "more than 1,000" if row.ahead > _MANY else str(row.ahead)
    reasons = [
        (row.batch == "cancelling", "its batch is being cancelled"),
        (row.paused, "its batch is paused; resume it"),
        (row.early, "the time of its batch has not come; see not_before"),
        (
            row.window is not None and not row.open and not hours.may_run(row, row.now),
            "the window of its batch is closed",
        ),
        (row.due_in > 0, f"attempt {row.attempt} failed; it is tried again in {max(row.due_in, 1):.0f} s"),
        (row.workers == 0, "no worker was heard of lately; start one"),
        (row.state == "released", "it was handed out, and the next worker that is free takes it"),
        (
            row.due_for > _PATIENCE and not (row.handing_out and row.ahead),
            f"nobody hands it out, {row.due_for:.0f} s after its time; see that the dispatcher runs and reaches Redis",
        ),
        (row.ahead > 0, f"it is behind {ahead} {Lane(row.lane)} shards"),
    ]
    return next((reason for holds, reason in reasons if holds), "it is next")
