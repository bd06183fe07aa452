"""What the service is doing: lanes, and the workers with what each has in hand.

Workers and lanes are everybody's. Of work that is another tenant's nothing is told but that there is some.
"""

from dataclasses import dataclass, field
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
    SELECT q.lease_owner, q.lane, q.attempt, s.filing_id, s.first_line, s.last_line, s.id IS NOT NULL AS own,
           CASE WHEN isfinite(q.released_at) THEN q.released_at END AS since
    FROM queue q LEFT JOIN shards s ON s.id = q.id AND s.tenant = :tenant
    WHERE q.state = 'running' ORDER BY q.lease_owner, q.id LIMIT :most
""")
_MOST = 1000


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
    tasks: list[Task] = field(default_factory=list)


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
    crew = {row["id"]: Member(**row) for row in roster.present(connection, within=within)}
    for row in connection.execute(_IN_HAND, {"tenant": tenant, "most": _MOST}):
        if row.lease_owner in crew:
            single = row.last_line == SINGLE_LINE
            crew[row.lease_owner].tasks.append(
                Task(
                    lane=Lane(row.lane),
                    batch=ids.batch_id(row.filing_id) if row.own and not single else None,
                    comparison=(
                        ids.comparison_id(ComparisonKey(row.filing_id, SINGLE_LINE)) if row.own and single else None
                    ),
                    first_line=row.first_line,
                    last_line=row.last_line,
                    attempt=row.attempt,
                    since=row.since,
                )
            )
    return list(crew.values())
