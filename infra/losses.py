"""What becomes of a shard whose worker was lost: killed, crashed by its engine, hung, or cut off.

The first loss says nothing of any line: whatever was in the process may have ended it. From then on the shard is worked
carefully, each line alone in the engine and noted before it is tried. So the next loss either names one line, which is
set apart with its attempts while the others carry on, or proves that none of this shard's was in the engine. A line
that is named at its last attempt is errored (docs/decisions/0016).
"""

from collections import Counter
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection

from infra import docket, docket_sql
from infra.docket import Lease
from infra.outcomes import Outcome
from schemas.problems import OutcomeError
from schemas.states import Fate, OutcomeStatus

_LOSSES_PER_ATTEMPT = 10
"""How many losses that name no line are taken for accidents, for each attempt that a comparison has."""


def reclaim(connection: Connection, *, max_attempts: int, limit: int) -> Counter[Fate]:
    """Bring back shards whose lease ran out.

    Returns:
        What became of them: how many leases had run out is the total.
    """
    return _lose_all(connection, docket_sql.LAPSED, {"limit": limit}, max_attempts)


def longest_lapsed(connection: Connection) -> float:
    """Tell how many seconds ago the oldest lease ran out that was not reclaimed yet; 0 where there is none."""
    return float(connection.execute(docket_sql.LONGEST_LAPSED).scalar_one())


def bury(connection: Connection, worker: str, *, max_attempts: int) -> Counter[Fate]:
    """Bring back at once what a worker held that is known to be dead, the hints that it had taken too.

    Returns:
        What became of the shards that it held: how many those were is the total.
    """
    connection.execute(docket_sql.DOUBT_HINTS)
    return _lose_all(connection, docket_sql.HELD_BY, {"worker": worker}, max_attempts)


def _lose_all(connection: Connection, which: Any, parameters: dict[str, Any], max_attempts: int) -> Counter[Fate]:
    # The lock on these rows keeps their holders from renewing while we act in their place, with their tokens.
    rows = connection.execute(which, parameters).all()
    return Counter(
        [lose(connection, Lease(shard=row.id, token=row.lease_token), max_attempts=max_attempts) for row in rows]
    )


def lose(connection: Connection, lease: Lease, *, max_attempts: int) -> Fate:
    """Take note that a shard's worker was lost, and put back what it had not decided.

    Returns:
        What became of it.

    Raises:
        LeaseLostError: the lease does not hold; nothing was changed.
    """
    lost = docket.fenced(connection, docket_sql.LOSE, lease)
    if lost.at_work is None:
        return _lose_unnoted(connection, lease, lost, max_attempts)
    if lost.attempt >= max_attempts:
        message = f"the worker's process ended at each attempt: {'; '.join(lost.losses)}"
        crashed = Outcome(
            line=lost.at_work,
            status=OutcomeStatus.ERRORED,
            error_code=OutcomeError.ENGINE_CRASHED,
            error_message=message,
        )
        if docket.left_over(connection, lease) > 1:
            docket.record(connection, lease, [crashed], lease_seconds=0)
            _put_back(connection, lease, lost.attempt - 1)
        else:
            docket.finish(connection, lease, [crashed])
        return "errored"
    if docket.left_over(connection, lease) > 1:
        docket.split(connection, lease, suspect=lost.at_work)
        return "split"
    return _put_back(connection, lease, lost.attempt)


def _lose_unnoted(connection: Connection, lease: Lease, lost: Any, max_attempts: int) -> Fate:
    if len(lost.losses) < max_attempts * _LOSSES_PER_ATTEMPT:
        was_careful = len(lost.losses) > 1
        # The first loss counts, as it may have been this shard's fault, but is never the end; later ones were not.
        return _put_back(connection, lease, lost.attempt - 1 if was_careful else min(lost.attempt, max_attempts - 1))
    if docket.left_over(connection, lease) > 1:
        docket.split(connection, lease)
        return "split"
    ending = {
        "status": OutcomeStatus.ERRORED,
        "code": OutcomeError.WORKER_LOST,
        "message": f"the worker was lost {len(lost.losses)} times before it came to this comparison",
        "retry_in": 0,
        "max_attempts": 0,
    }
    connection.execute(docket_sql.FAIL, {**asdict(lease), **ending})
    return "errored"


def _put_back(connection: Connection, lease: Lease, attempt: int) -> Fate:
    connection.execute(docket_sql.PUT_BACK, {**asdict(lease), "attempt": attempt})
    return "retried"
