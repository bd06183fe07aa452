"""What the service is doing: lanes, and the workers with what each has in hand.

Workers and lanes are everybody's. Of work that is another tenant's nothing is told but that there is some.
"""

from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from infra import roster
from producer import survey
from schemas import ids
from schemas.ids import SINGLE_LINE, ComparisonKey
from schemas.states import Lane, ShardState

# The queue tells of everybody's shards; the shard itself is there for its tenant alone.
_IN_HAND = text("""
    SELECT q.lease_owner, q.taken, q.lane, q.attempt, s.filing_id, s.first_line, s.last_line, s.id IS NOT NULL AS own,
           CASE WHEN isfinite(q.released_at) THEN q.released_at END AS since
    FROM (
        SELECT id, lane, attempt, lease_owner, released_at, count(*) OVER (PARTITION BY lease_owner) AS taken,
               row_number() OVER (PARTITION BY lease_owner ORDER BY id) AS place
        FROM queue WHERE state = 'running'
    ) q LEFT JOIN shards s ON s.id = q.id AND s.tenant = :tenant
    WHERE q.place <= :most ORDER BY q.place
""")
_MOST = 16
"""Shards that are shown of a worker, the oldest first. All that it has in hand are counted."""


@dataclass(frozen=True, slots=True)
class LaneStand:
    """How many shards of a lane are where, and how long the first of those that wait has been due, in seconds."""

    lane: Lane
    waiting: int
    released: int
    running: int
    oldest: float


@dataclass(frozen=True, slots=True)
class Task:
    """A shard that a worker has in hand. Its ids and lines are told of one's own alone."""

    lane: Lane
    batch: str | None
    comparison: str | None
    first_line: int | None
    last_line: int | None
    attempt: int
    since: datetime | None


@dataclass(frozen=True, slots=True)
class Member:
    """A worker that was heard of lately."""

    id: str
    slots: int
    engine: dict[str, Any]
    """Its engine's card."""
    started_at: datetime
    seen_at: datetime
    taken: int
    """Shards that it has in hand."""
    tasks: list[Task]


def lanes(connection: Connection) -> list[LaneStand]:
    """Count the shards that are not done, by lane: interactive first."""
    shards = survey.standing(connection)

    def of(lane: Lane, state: ShardState) -> int:
        row = shards.get((lane, state))
        return int(row.shards) if row else 0

    stands = []
    for lane in Lane:
        waiting: Any = shards.get((lane, ShardState.WAITING))
        oldest = float(waiting.oldest) if waiting else 0.0
        stands.append(
            LaneStand(
                lane,
                of(lane, ShardState.WAITING),
                of(lane, ShardState.RELEASED),
                of(lane, ShardState.RUNNING),
                oldest,
            )
        )
    return stands


def members(connection: Connection, *, tenant: str, within: float) -> list[Member]:
    """List the workers heard of within so many seconds, with what each has in hand."""
    taken: Counter[str] = Counter()
    tasks: dict[str, list[Task]] = {}
    for row in connection.execute(_IN_HAND, {"tenant": tenant, "most": _MOST}):
        taken[row.lease_owner] = row.taken
        tasks.setdefault(row.lease_owner, []).append(_task(row))
    present = roster.present(connection, within=within)
    return [Member(**each, taken=taken[each["id"]], tasks=tasks.get(each["id"], [])) for each in present]


def _task(row: Any) -> Task:
    single = row.last_line == SINGLE_LINE
    return Task(
        lane=Lane(row.lane),
        batch=ids.batch_id(row.filing_id) if row.own and not single else None,
        comparison=ids.comparison_id(ComparisonKey(row.filing_id, SINGLE_LINE)) if row.own and single else None,
        first_line=row.first_line,
        last_line=row.last_line,
        attempt=row.attempt,
        since=row.since,
    )
