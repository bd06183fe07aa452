"""What there is to do, as one question: an idle dispatcher asks it at each turn, and nothing else."""

# ruff: noqa: S608 - put together from constants of our own alone; values are always bound

from dataclasses import dataclass

from sqlalchemy import Connection, text

from infra.roster import CAPACITY

# Each is the first entry of one small index, asked for by its order: of what only has to exist Postgres would read the
# whole table once it takes a good part of it for such. What is asked is what the moves look for: RELEASE, RELEASE_BULK
# and LATE of infra/docket_sql.py, `windows.tend`, FAN_OUT and RELEASE of infra/callbacks_sql.py.
_FIRSTS = {
    "interactive": """
        SELECT true FROM shards WHERE lane = 'interactive' AND state = 'waiting' AND due_at <= now()
        ORDER BY tenant, priority DESC, due_at, id LIMIT 1""",
    "bulk": """
        SELECT true FROM shards WHERE lane = 'bulk' AND state = 'waiting'
        ORDER BY tenant, priority DESC, due_at, id LIMIT 1""",
    "bulk_out": """
        SELECT true FROM shards WHERE lane = 'bulk' AND state IN ('released', 'running')
        ORDER BY lane, state LIMIT 1""",
    "late": """
        SELECT min(deadline_at) <= now() FROM shards
        WHERE deadline_at IS NOT NULL AND state IN ('waiting', 'released', 'running')""",
    "batches": "SELECT true FROM batches WHERE status IN ('in_progress', 'cancelling') ORDER BY id LIMIT 1",
    "events": "SELECT true FROM callback_events WHERE NOT fanned_out ORDER BY tenant, id LIMIT 1",
    "callbacks": "SELECT true FROM callbacks WHERE state = 'waiting' ORDER BY endpoint_id, due_at, id LIMIT 1",
}
_LOOK = text(f"""
    SELECT {", ".join(f"coalesce(({first}), false) AS {name}" for name, first in _FIRSTS.items())},
        CAST(capacity.slots AS int) AS slots, CAST(capacity.bulk_slots AS int) AS bulk_slots
    FROM ({CAPACITY}) capacity
""")


@dataclass(frozen=True, slots=True)
class Due:
    """What there is to do, and the workers' room for it."""

    interactive: bool
    """An interactive shard may be let go."""
    bulk: bool
    """A bulk shard waits, even if it may not be let go now."""
    bulk_out: bool
    """A bulk shard was let go, and has not ended."""
    late: bool
    """A shard is past its deadline."""
    batches: bool
    """A batch is in progress or being cancelled."""
    events: bool
    """Nobody has been told of an event."""
    callbacks: bool
    """A callback waits, even if for a later time."""
    slots: int
    """Of all workers that are alive. One that is to end leaves the roster, and what it gives back must not fill the
    others: what was done since is to be looked at again."""
    bulk_slots: int

    @property
    def nothing_is_left(self) -> bool:
        """Whether there are batches, and nothing is left to be judged of any."""
        return self.batches and not (self.bulk or self.bulk_out)


def look(connection: Connection, *, worker_seconds: float) -> Due:
    """See what there is to do. A worker not heard of for `worker_seconds` is not counted on."""
    row = connection.execute(_LOOK, {"within": worker_seconds}).one()
    return Due(**row._mapping)  # noqa: SLF001 - public, with an underscore so as not to hide a column
