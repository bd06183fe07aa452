"""The roster: which workers are alive and how much they can take, and which judges have ever sat."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

from schemas.verdict import Judge

_REPORT = text("""
    INSERT INTO workers (id, slots, bulk_slots, engine) VALUES (:id, :slots, :bulk_slots, CAST(:engine AS jsonb))
    ON CONFLICT (id) DO UPDATE SET seen_at = now()
""")

_LEAVE = text("DELETE FROM workers WHERE id = :id")

_FORGET = text("DELETE FROM workers WHERE seen_at < now() - make_interval(secs => :older_than)")

CAPACITY = """
    SELECT count(*) AS workers, coalesce(sum(slots), 0) AS slots, coalesce(sum(bulk_slots), 0) AS bulk_slots
    FROM workers WHERE seen_at > now() - make_interval(secs => :within)
"""
"""SQL for what the workers heard of within `:within` seconds can take together."""
_CAPACITY = text(CAPACITY)

_PRESENT = text("""
    SELECT id, slots, engine, started_at, seen_at FROM workers
    WHERE seen_at > now() - make_interval(secs => :within) ORDER BY started_at
""")


@dataclass(frozen=True, slots=True)
class Capacity:
    """What the workers that are alive can take together."""

    workers: int
    slots: int
    bulk_slots: int


def report(connection: Connection, *, worker: str, slots: int, bulk_slots: int, engine: dict[str, Any]) -> None:
    """Say that a worker is alive, and what it can do."""
    connection.execute(_REPORT, {"id": worker, "slots": slots, "bulk_slots": bulk_slots, "engine": json.dumps(engine)})


def leave(connection: Connection, *, worker: str) -> None:
    """Take a worker off the roster: it ends of its own will."""
    connection.execute(_LEAVE, {"id": worker})


def forget(connection: Connection, *, older_than: float) -> None:
    """Drop workers that have not been heard of for `older_than` seconds."""
    connection.execute(_FORGET, {"older_than": older_than})


def capacity(connection: Connection, *, within: float) -> Capacity:
    """Add up the workers heard of within the last `within` seconds."""
    row = connection.execute(_CAPACITY, {"within": within}).one()
    return Capacity(workers=row.workers, slots=int(row.slots), bulk_slots=int(row.bulk_slots))


def present(connection: Connection, *, within: float) -> list[dict[str, Any]]:
    """List the workers heard of within the last `within` seconds."""
    return [dict(row._mapping) for row in connection.execute(_PRESENT, {"within": within})]  # noqa: SLF001


_ENROLL = text("""
    INSERT INTO judges (id, card) VALUES (:id, CAST(:card AS jsonb)) ON CONFLICT (id) DO NOTHING
""")


def enroll(connection: Connection, judge: Judge) -> str:
    """Store what verdicts will be made with, once, and return the id that outcomes refer to it by."""
    card = judge.model_dump_json()
    judge_id = "jdg_" + hashlib.sha256(card.encode()).hexdigest()[:32]
    connection.execute(_ENROLL, {"id": judge_id, "card": card})
    return judge_id
