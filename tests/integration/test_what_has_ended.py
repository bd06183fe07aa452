"""What has ended costs nothing: beside a great deal of it, what is looked at often reads of what goes on alone."""

from collections.abc import Callable
from functools import partial

from sqlalchemy import Connection, text
from support.dockets import a_line, reads

from infra import docket
from producer import survey, waiting
from producer.cli import doctor
from schemas.ids import new_filing_id
from schemas.states import Lane

MANY = 20_000
FEW = 200

DONE = text("""
    INSERT INTO shards (tenant, filing_id, source_id, first_line, last_line, lane, state, ended_at)
    SELECT 'default', gen_random_uuid(), gen_random_uuid(), 0, 0, 'interactive', 'done', now()
    FROM generate_series(1, :count)
""")


def greedy(connection: Connection, table: str, looks: dict[str, Callable[[], object]]) -> dict[str, int]:
    """Those of the looks that read more than a few rows of the table, and how many."""
    read = {}
    for name, look in looks.items():
        before = reads(connection, table)
        look()
        read[name] = reads(connection, table) - before
    return {name: rows for name, rows in read.items() if rows > FEW}


def test_shards_that_are_done(connection: Connection):
    """How the docket stands, and why a comparison waits, is told from the shards that are not done."""
    connection.execute(DONE, {"count": MANY})
    for _ in range(3):
        last = new_filing_id()
        docket.file(connection, tenant="default", filing_id=last, lane=Lane.INTERACTIVE, comparisons=[a_line(0)])
    docket.release(connection, lane=Lane.INTERACTIVE, room=1, limit=1)
    connection.execute(text("VACUUM ANALYZE shards"))
    asked = {"filing_id": last, "line": 0, "within": 30, "many": 1000}
    looks = {
        "survey": partial(survey.standing, connection),
        "why": partial(connection.execute, waiting._LOOK, asked),
        "doctor": partial(doctor._docket, connection),
    }
    assert greedy(connection, "shards", looks) == {}
