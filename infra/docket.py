"""The docket: every move that a shard can make, in SQL of `docket_sql.py`.

    file -> waiting -> release -> released -> claim -> running -> finish -> done
                ^                    |                    |
                +---- withdraw ------+                    +-- give_back, fail, lose (`losses.py`) -> waiting
                                                          +-- split -> its parts, waiting
    cancel and expire end a shard from any of waiting, released and running.

A claim takes a lease: a time, and a fencing token that no other claim ever had. Whatever a worker writes afterwards is
written only where its token still stands in the row, so a worker that was frozen, or cut off, or declared lost, can
wake at any time and change nothing. Times are Postgres's own (`now()`); no other clock is asked.

Each function runs inside the caller's transaction (`claim` and `undecided` need none), on a synchronous connection; an
asynchronous one lends itself by `await connection.run_sync(docket.file, ...)`.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, TextClause

from infra import callbacks, docket_sql, outcomes
from infra.filed import Filed, from_rows, to_row
from infra.outcomes import Outcome
from schemas.problems import OutcomeError
from schemas.states import Fate, Lane, OutcomeStatus


class LeaseLostError(Exception):
    """The shard is no longer this claim's: its lease ran out, or it was cancelled. Nothing was written."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to write about a shard, for as long as its token stands in the row."""

    shard: int
    token: int


@dataclass(frozen=True, slots=True)
class Claim:
    """A shard that a worker has claimed."""

    lease: Lease
    tenant: str
    filing_id: UUID
    source_id: UUID
    first_line: int
    last_line: int
    lane: Lane
    attempt: int
    options: dict[str, Any]
    """What the batch says for lines that do not."""
    begun: bool
    """Whether some of its lines may have an outcome already."""
    careful: bool
    """Whether a worker was lost over it before, so that each line is to be noted before it is tried."""
    traceparent: str | None
    """Where its trace began; None where nothing of it is traced."""


# What an undecided line ends with where nobody judges it.
_EXPIRED = {
    "status": OutcomeStatus.EXPIRED,
    "code": OutcomeError.DEADLINE_PASSED,
    "message": "it was not decided by its deadline",
}
_CANCELLED = {
    "status": OutcomeStatus.CANCELLED,
    "code": OutcomeError.CANCELLED,
    "message": "it was called off before it was decided",
}


def file(
    connection: Connection,
    *,
    tenant: str,
    filing_id: UUID,
    lane: Lane,
    comparisons: Sequence[Filed],
    shard_lines: int = 1,
    priority: int = 0,
    deadline_in: float | None = None,
    notify: bool = False,
    traceparent: str | None = None,
) -> int:
    """Store comparisons and the shards that will carry them, waiting.

    Args:
        connection: in a transaction.
        tenant: whose they are.
        filing_id: what they are filed under; new.
        lane: which line to stand in.
        comparisons: lines with numbers of their own; a single one has line 0.
        shard_lines: how many lines travel together, at most.
        priority: higher goes first within the lane.
        deadline_in: seconds after which what is undecided expires; None for never.
        notify: whether the end of each is an event; it is one anyway where the tenant has an endpoint that wants it.
        traceparent: where their trace began.

    Returns:
        How many shards there are.
    """
    parameters = {
        "tenant": tenant,
        "filing_id": filing_id,
        "lane": lane,
        "comparisons": json.dumps([to_row(comparison) for comparison in comparisons]),
        "shard_lines": shard_lines,
        "priority": priority,
        "deadline_in": deadline_in,
        "notify": notify,
        "traceparent": traceparent,
    }
    return len(connection.execute(docket_sql.FILE, parameters).all())


def file_batch(connection: Connection, batch_id: UUID, *, notify: bool = False, traceparent: str | None = None) -> int:
    """Make the shards that will carry a batch's lines, waiting. The batch's row is there already.

    Args:
        connection: in a transaction.
        batch_id: the batch.
        notify: whether the end of each line is an event.
        traceparent: where its trace began.

    Returns:
        How many shards there are.
    """
    parameters = {"batch": batch_id, "notify": notify, "traceparent": traceparent}
    return len(connection.execute(docket_sql.FILE_BATCH, parameters).all())


def release_bulk(connection: Connection, *, room: int, limit: int, spare: int = 0) -> list[int]:
    """Let shards of open batches go: a fair share to each tenant, within one by priority, then by age.

    Args:
        connection: in a transaction; several dispatchers may do this at once.
        room: how many bulk shards may be out at a time, hinted or running.
        limit: how many to let go now, at most.
        spare: how many more may be out, for the first shards of tenants that have none out.
    """
    parameters = {"room": room, "spare": spare, "limit": limit}
    return [row.id for row in connection.execute(docket_sql.RELEASE_BULK, parameters)]


def release(connection: Connection, *, lane: Lane, room: int, limit: int) -> list[int]:
    """Let shards of a lane go that are due, and say which. Their hints are to be sent next.

    The tenant that has least out goes first; within a tenant, the most urgent. Where others have filled the room, a
    tenant may still have its equal share of it out.

    Args:
        connection: in a transaction; several dispatchers may do this at once.
        lane: the lane. In the bulk lane running shards fill the room too, in the interactive lane only hints do.
        room: how many shards of the lane may be out at a time.
        limit: how many to let go now, at most.
    """
    counted = ["released", "running"] if lane is Lane.BULK else ["released"]
    result = connection.execute(docket_sql.RELEASE, {"lane": lane, "room": room, "counted": counted, "limit": limit})
    return [row.id for row in result]


def oldest_due(connection: Connection) -> float:
    """Tell for how many seconds an interactive shard has been due that was not released yet; 0 where none is."""
    return float(connection.execute(docket_sql.OLDEST_DUE).scalar_one())


def withdraw(connection: Connection, shards: Sequence[int]) -> None:
    """Take back a release whose hints could not be sent. Shards that a worker has claimed meanwhile stay claimed."""
    connection.execute(docket_sql.WITHDRAW, {"shards": list(shards)})


def hint_again(connection: Connection, *, lane: Lane, older_than: float, limit: int) -> list[int]:
    """Name released shards whose hint must have been lost, since nobody claimed them for `older_than` seconds."""
    result = connection.execute(docket_sql.HINT_AGAIN, {"lane": lane, "older_than": older_than, "limit": limit})
    return [row.id for row in result]


def traced(connection: Connection, shards: Sequence[int]) -> dict[int, str]:
    """Of these shards, name those that are traced, each with where its trace began."""
    result = connection.execute(docket_sql.TRACED, {"shards": list(shards)})
    return {row.id: row.traceparent for row in result}


def traceparent_of(connection: Connection, filing_id: UUID, line: int) -> str | None:
    """Tell where the trace of a line of a filing, or of those before it, began."""
    return connection.execute(docket_sql.TRACEPARENT, {"filing_id": filing_id, "line": line}).scalar()


def claim(connection: Connection, shard: int, *, worker: str, lease_seconds: float) -> Claim | None:
    """Take a released shard: a lease with a fresh token, and one attempt counted before any work is done.

    Returns:
        The claim; None where there is nothing to claim, because the hint was late, doubled or wrong.
    """
    holder = {"shard": shard, "worker": worker, "lease_seconds": lease_seconds}
    row = connection.execute(docket_sql.CLAIM, holder).one_or_none()
    if row is None:
        return None
    return Claim(
        lease=Lease(shard=row.id, token=row.lease_token),
        tenant=row.tenant,
        filing_id=row.filing_id,
        source_id=row.source_id,
        first_line=row.first_line,
        last_line=row.last_line,
        lane=Lane(row.lane),
        attempt=row.attempt,
        options=row.options or {},
        begun=row.begun,
        careful=row.careful,
        traceparent=row.traceparent,
    )


def undecided(connection: Connection, claim: Claim, *, own_profile: str = "own") -> list[Filed]:
    """Read the lines of a claimed shard that have no outcome yet: what was stored before a crash is not done again.

    Args:
        connection: in a transaction or not.
        claim: whose lines.
        own_profile: what lines that ask for the judge's own profile are to have.

    Raises:
        LeaseLostError: the lease does not hold; they are somebody else's to judge.
    """
    span = {"source_id": claim.source_id, "first_line": claim.first_line, "last_line": claim.last_line}
    which = docket_sql.LINES_LEFT if claim.begun else docket_sql.LINES
    rows = connection.execute(which, asdict(claim.lease) | span).all()
    if not rows:
        fenced(connection, docket_sql.HOLD, claim.lease)
    return from_rows(rows, claim.options, own_profile)


def renew(connection: Connection, leases: Sequence[Lease], *, lease_seconds: float) -> set[Lease]:
    """Prolong leases, and say which of them still hold."""
    result = connection.execute(
        docket_sql.RENEW,
        {
            "shards": [lease.shard for lease in leases],
            "tokens": [lease.token for lease in leases],
            "lease_seconds": lease_seconds,
        },
    )
    return {Lease(shard=row.id, token=row.lease_token) for row in result}


def record(connection: Connection, lease: Lease, decided: Sequence[Outcome], *, lease_seconds: float) -> int:
    """Store outcomes of some of a shard's lines and go on holding it.

    Returns:
        How many were new.

    Raises:
        LeaseLostError: the lease does not hold; nothing was stored.
    """
    return _store(connection, lease, decided, docket_sql.RECORD, {"lease_seconds": lease_seconds})


def finish(connection: Connection, lease: Lease, decided: Sequence[Outcome]) -> int:
    """Store the last outcomes of a shard and end it.

    Returns:
        How many were new.

    Raises:
        LeaseLostError: the lease does not hold; nothing was stored.
    """
    return _store(connection, lease, decided, docket_sql.FINISH, {})


def fenced(connection: Connection, move: TextClause, lease: Lease, **parameters: Any) -> Row[Any]:
    """Make a move that the holder of a lease alone may make; LeaseLostError where it does not hold."""
    row = connection.execute(move, {**asdict(lease), **parameters}).one_or_none()
    if row is None:
        raise LeaseLostError
    return row


def _store(
    connection: Connection, lease: Lease, decided: Sequence[Outcome], move: TextClause, parameters: dict[str, Any]
) -> int:
    """Lock the shard by its token, copy outcomes in, and make the move that counts them (docs/decisions/0008)."""
    held = fenced(connection, docket_sql.HOLD, lease)
    new = outcomes.unstored(connection, held.filing_id, decided)
    if new:
        outcomes.copy_in(connection, new, filing_id=held.filing_id, tenant=held.tenant, attempt=held.attempt)
        if held.notify:
            callbacks.tell_comparisons(connection, filing_id=held.filing_id, lines=[each.line for each in new])
    connection.execute(move, {**asdict(lease), **outcomes.counts(new), **parameters})
    return len(new)


def note(connection: Connection, lease: Lease, line: int) -> None:
    """Note the line that is about to be alone in the engine. Storing its outcome takes the note away.

    Raises:
        LeaseLostError: the lease does not hold; nothing was changed.
    """
    fenced(connection, docket_sql.NOTE, lease, line=line)


def give_back(connection: Connection, lease: Lease) -> Fate:
    """Put a shard back untried: the worker is being ended, or nobody is answered. The attempt is not counted.

    Raises:
        LeaseLostError: the lease does not hold; nothing was changed.
    """
    fenced(connection, docket_sql.GIVE_BACK, lease)
    return "given_back"


def fail(
    connection: Connection, claim: Claim, *, code: OutcomeError, message: str, retry_in: float, max_attempts: int
) -> Fate:
    """Report that an attempt failed. A shard of several lines is split, so that one line cannot fail the rest.

    A shard of one line waits `retry_in` seconds for its next attempt; after its last it ends errored.

    Returns:
        What became of it.

    Raises:
        LeaseLostError: the lease does not hold; nothing was changed.
    """
    fenced(connection, docket_sql.HOLD, claim.lease)
    if left_over(connection, claim.lease) > 1:
        split(connection, claim.lease)
        return "split"
    failed = fenced(
        connection,
        docket_sql.FAIL,
        claim.lease,
        status=OutcomeStatus.ERRORED,
        code=code,
        message=message,
        retry_in=retry_in,
        max_attempts=max_attempts,
    )
    return "errored" if failed.state == "done" else "retried"


def left_over(connection: Connection, lease: Lease) -> int:
    """Count the undecided lines of a shard that this transaction has locked."""
    return int(connection.execute(docket_sql.COUNT_LEFT, asdict(lease)).scalar_one())


def split(connection: Connection, lease: Lease, *, suspect: int | None = None) -> None:
    """Divide a shard's undecided lines into shards that carry on, due at once: two halves, or a suspect and the others.

    They keep the attempts made before this one, which proved nothing of them; it counts against a suspect alone.

    Raises:
        LeaseLostError: the lease does not hold; nothing was changed.
    """
    fenced(connection, docket_sql.SPLIT, lease, suspect=suspect)


def expire(connection: Connection, *, limit: int) -> int:
    """End shards whose deadline has passed. Returns how many comparisons expired by that."""
    late = connection.execute(docket_sql.LATE, {"limit": limit})
    return _end(connection, docket_sql.EXPIRE, {"shards": late.scalars().all(), **_EXPIRED})


def cancel(connection: Connection, *, tenant: str, filing_id: UUID, limit: int = 1000, wait: bool = True) -> int:
    """Call off `limit` shards of a filing, with `wait` those too that others are at. Returns how many comparisons."""
    find = docket_sql.CALLED_OFF if wait else docket_sql.CALLED_OFF_UNLOCKED
    called = connection.execute(find, {"filing_id": filing_id, "tenant": tenant, "limit": limit})
    return _end(connection, docket_sql.CANCEL, {"shards": called.scalars().all(), **_CANCELLED})


def _end(connection: Connection, move: TextClause, parameters: dict[str, Any]) -> int:
    return int(connection.execute(move, parameters).scalar_one()) if parameters["shards"] else 0


def recall(connection: Connection, filing_id: UUID) -> int:
    """Take all of a filing's shards back from Redis and from workers: it is paused, or its window has closed.

    What workers are at is lost to them at their next write; no attempt is counted. Returns how many were out.
    """
    return len(connection.execute(docket_sql.RECALL, {"filing_id": filing_id}).all())


def recall_closed(connection: Connection) -> int:
    """Recall what is out of every batch in progress that is not open, and what nobody is at. Returns how many were."""
    return len(connection.execute(docket_sql.RECALL_CLOSED).all())
