"""What there is to do, as one question: an idle dispatcher asks it at each turn, and nothing else."""

# ruff: noqa: S608 - put together from constants of our own alone; values are always bound

from dataclasses import dataclass

from sqlalchemy import Connection, text

from infra.roster import CAPACITY

# Each question repeats the condition of the move that it stands for (RELEASE, RELEASE_BULK and LATE of
# infra/docket_sql.py, `lifecycle.tend`, FAN_OUT and RELEASE of infra/callbacks_sql.py);
# tests/integration/test_due.py holds the two together. Each reads the first entry of one small partial index, in that
# index's order: asked with EXISTS, which gives no order, Postgres chooses to read the whole table once many of its
# rows match.
_QUESTIONS = {
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
    SELECT {", ".join(f"coalesce(({question}), false) AS {name}" for name, question in _QUESTIONS.items())},
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
    """Slots of all workers that are alive. They are counted afresh at each look: a worker that is draining leaves the
    roster, and the shards that it gives back must not be released as if its slots were still there."""
    bulk_slots: int
    """Those of them that bulk shards may take."""

    @property
    def nothing_is_left(self) -> bool:
        """Whether there are batches, and nothing is left to be judged of any."""
        return self.batches and not (self.bulk or self.bulk_out)


def look(connection: Connection, *, worker_seconds: float) -> Due:
    """See what there is to do. A worker not heard of for `worker_seconds` is not counted on."""
    row = connection.execute(_LOOK, {"within": worker_seconds}).one()
    return Due(**row._mapping)  # noqa: SLF001 - public, with an underscore so as not to hide a column
