"""Why a batch, or one comparison, is not being judged yet: the reasons there are, how one is found, how it is said.

A reason is found by comparing states and times, and turned into a sentence by the two tables below and nowhere else.
"""

from collections.abc import Iterable
from datetime import UTC
from enum import StrEnum
from typing import Any, TypeVar

from sqlalchemy import Connection, Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from infra import roster
from producer import hours
from schemas.batch import BatchStatus, Hours
from schemas.ids import ComparisonKey
from schemas.states import Lane, ShardState

_T = TypeVar("_T")


class Reason(StrEnum):
    """Why nothing is judged now. These names stay inside: what anybody gets to see is the sentence."""

    CANCELLING = "cancelling"
    PAUSED = "paused"
    NOT_BEFORE = "not_before"
    """Its `not_before` lies ahead."""
    WINDOW_CLOSED = "window_closed"
    ATTEMPT_FAILED = "attempt_failed"
    """The engine failed, and the pause before the next attempt is not over."""
    NO_WORKER = "no_worker"
    NOT_HANDED_OUT = "not_handed_out"
    """The dispatcher has released nothing, or has not had its turn yet."""
    HANDED_OUT = "handed_out"
    """The dispatcher has released it, and no worker has claimed it yet."""
    WORKERS_BUSY = "workers_busy"
    BEHIND_OTHERS = "behind_others"
    NEXT = "next"


_OF_BATCH = {
    Reason.CANCELLING: "it is being cancelled",
    Reason.PAUSED: "it is paused; resume it",
    Reason.NOT_BEFORE: "its time has not come; nothing runs before {not_before:%Y-%m-%d %H:%M} UTC",
    Reason.WINDOW_CLOSED: "its window is closed; it opens at {opens}",
    Reason.ATTEMPT_FAILED: "the engine failed at what is left; it is tried again in {seconds:.0f} s",
    Reason.NO_WORKER: "no worker was heard of lately; start one",
    Reason.NOT_HANDED_OUT: "it waits to be handed out; if that stays so, see that the dispatcher runs and reaches "
    "Redis",
    Reason.WORKERS_BUSY: "workers are busy with other work",
}
_OF_COMPARISON = {
    Reason.CANCELLING: "its batch is being cancelled",
    Reason.PAUSED: "its batch is paused; resume it",
    Reason.NOT_BEFORE: "the time of its batch has not come; nothing of it runs before {not_before:%Y-%m-%d %H:%M} UTC",
    Reason.WINDOW_CLOSED: "the window of its batch is closed; it opens at {opens}",
    Reason.ATTEMPT_FAILED: "attempt {attempt} failed; it is tried again in {seconds:.0f} s",
    Reason.NO_WORKER: "no worker was heard of lately; start one",
    Reason.HANDED_OUT: "it was handed out, and the next worker that is free takes it",
    Reason.NOT_HANDED_OUT: "nobody hands it out, {due_for:.0f} s after its time; see that the dispatcher runs and "
    "reaches Redis",
    Reason.BEHIND_OTHERS: "it is behind {ahead} {lane} shards",
    Reason.NEXT: "it is next",
}

_MANY = 1000
"""Shards ahead of one are counted up to this."""
_PATIENCE_SECONDS = 10.0
"""How long something may be due before it is said that nobody hands it out."""

_HANDED_OUT = text("SELECT EXISTS (SELECT FROM queue WHERE state IN ('released', 'running'))")

# Tenants take turns, so only its own tenant's shards count as ahead of a shard that waits, beside those that are out
# already. Both counts stop at `:many`, and each reads the head of one index in that index's order: written as one
# count, or as "how many have a lower place", Postgres would read every shard that waits.
_SHARD = text("""
    SELECT s.state, s.lane, s.attempt, extract(epoch FROM s.due_at - now()) AS due_in,
           extract(epoch FROM now() - s.due_at) AS due_for, b.paused, b.status AS batch_status,
           s.filing_id AS id, b.open, b."window", b.not_before, now() AS now,
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


def why_idle(connection: Connection, *, within: float) -> Reason:
    """Tell why nothing is judged of a batch that could go.

    Args:
        connection: reads only.
        within: a worker not heard of for so many seconds counts for nothing.
    """
    if roster.capacity(connection, within=within).workers == 0:
        return Reason.NO_WORKER
    handed_out = connection.execute(_HANDED_OUT).scalar_one()
    return Reason.WORKERS_BUSY if handed_out else Reason.NOT_HANDED_OUT


def why_batch(row: Row[Any], idle: Reason | None) -> str | None:
    """Say why nothing of a batch is being judged now.

    Args:
        row: of `batches`, with `producer.progress.COUNTS` and `now` beside.
        idle: what `why_idle` tells; None where no batch that was read is in progress without a running shard.

    Returns:
        A sentence; None where a shard of it runs, or it has ended.
    """
    if BatchStatus(row.status).final or row.running:
        return None
    # Shards that wait, none of them due: each has failed and waits for its next attempt.
    all_failed = not row.next and row.due_in is not None
    reason = _first(
        *_held_back(row, row.status),
        (all_failed and idle is not Reason.NO_WORKER, Reason.ATTEMPT_FAILED),
        (True, idle),
    )
    if reason is None:
        return None
    return _OF_BATCH[reason].format(seconds=max(row.due_in or 0, 1), **_hours(row))


async def why_comparison(connection: AsyncConnection, key: ComparisonKey, *, worker_seconds: float) -> str | None:
    """Say why a comparison that has no outcome is not being judged.

    Args:
        connection: reads only.
        key: whose it is has been checked.
        worker_seconds: a worker not heard of for this long counts for nothing.

    Returns:
        A sentence; None where a worker has it, or where it was decided meanwhile.
    """
    parameters = {"filing_id": key.filing_id, "line": key.line, "within": worker_seconds, "many": _MANY}
    row = (await connection.execute(_SHARD, parameters)).one_or_none()
    if row is None or row.state == ShardState.RUNNING:
        return None
    moves_on = row.handing_out and row.ahead
    reason = _first(
        *_held_back(row, row.batch_status),
        (row.due_in > 0, Reason.ATTEMPT_FAILED),
        (row.workers == 0, Reason.NO_WORKER),
        (row.state == ShardState.RELEASED, Reason.HANDED_OUT),
        (row.due_for > _PATIENCE_SECONDS and not moves_on, Reason.NOT_HANDED_OUT),
        (row.ahead > 0, Reason.BEHIND_OTHERS),
        (True, Reason.NEXT),
    )
    return _OF_COMPARISON[reason].format(
        attempt=row.attempt,
        seconds=max(row.due_in, 1),
        due_for=row.due_for,
        ahead=f"more than {_MANY:,}" if row.ahead > _MANY else row.ahead,
        lane=Lane(row.lane),
        **_hours(row),
    )


def _held_back(row: Row[Any], status: str | None) -> Iterable[tuple[bool, Reason]]:
    """What holds a batch back whatever workers and dispatcher do; nothing of it holds for a single comparison."""
    early = row.not_before is not None and row.now < row.not_before
    closed = row.window is not None and not row.open and not hours.may_run(row, row.now)
    return (
        (status == BatchStatus.CANCELLING, Reason.CANCELLING),
        (bool(row.paused), Reason.PAUSED),
        (early, Reason.NOT_BEFORE),
        (closed, Reason.WINDOW_CLOSED),
    )


def _hours(row: Row[Any]) -> dict[str, Any]:
    """Give what a sentence says of the times in which a batch may run."""
    window = None if row.window is None else Hours.model_validate(row.window)
    opens = window and f"{window.start.isoformat('seconds').removesuffix(':00')} {window.timezone}"
    return {"not_before": row.not_before and row.not_before.astimezone(UTC), "opens": opens}


def _first(*reasons: tuple[bool, _T]) -> _T:
    """Give the first reason that holds. The last one always does."""
    return next(reason for holds, reason in reasons if holds)
