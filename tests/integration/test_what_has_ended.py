"""What has ended, or is not due, costs nothing: what is looked at often reads of what goes on alone."""

from collections.abc import Callable
from functools import partial

from sqlalchemy import Connection, text
from support.desk import Desk
from support.dockets import a_line, batch, reads

from infra import callbacks, docket
from infra.database import at_once
from producer import callback_endpoints, due, lifecycle, survey, waiting
from producer.cli import doctor
from producer.dashboard import receivers
from schemas.ids import new_filing_id
from schemas.states import Lane

MANY = 20_000
FEW = 200

DONE = text("""
    INSERT INTO shards (tenant, filing_id, source_id, first_line, last_line, lane, state, ended_at)
    SELECT 'default', gen_random_uuid(), gen_random_uuid(), 0, 0, 'interactive', 'done', now()
    FROM generate_series(1, :count)
""")

COMPLETED = text("""
    INSERT INTO batches (id, tenant, file_id, endpoint, status, options, completion_window, on_bad_line, total,
                         expires_at)
    SELECT gen_random_uuid(), 'default', gen_random_uuid(), '', 'completed', '{}', '24h', 'fail', 1, now()
    FROM generate_series(1, :count)
""")

# To each of the endpoints.
DELIVERED = """
    WITH told AS (
        INSERT INTO callback_events (id, tenant, type, subject_id, line, at, fanned_out)
        SELECT gen_random_uuid(), 'default', 'comparison.succeeded', gen_random_uuid(), 0, now(), true
        FROM generate_series(1, :count) RETURNING id
    )
    INSERT INTO callbacks (id, tenant, event_id, endpoint_id, url, state, due_at, ended_at)
    SELECT gen_random_uuid(), 'default', told.id, e.id, e.url, 'delivered', now() - interval '9 days', now()
    FROM told, callback_endpoints e
"""


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
        "why": partial(connection.execute, waiting._SHARD, asked),
        "doctor": partial(doctor._docket, connection),
        "dispatcher": partial(due.look, connection, worker_seconds=30),
    }
    assert greedy(connection, "shards", looks) == {}


def test_shards_of_which_a_good_part_waits(connection: Connection):
    """What there is to do is told without reading them, however many of them there are."""
    connection.execute(DONE, {"count": MANY})
    batch(connection, MANY // 4)
    connection.execute(text("VACUUM ANALYZE shards"))
    assert greedy(connection, "shards", {"dispatcher": partial(due.look, connection, worker_seconds=30)}) == {}


def test_batches_that_are_completed(connection: Connection):
    """Which batches are open, and which are over, is told from those in progress."""
    connection.execute(COMPLETED, {"count": MANY})
    batch(connection, 3)
    connection.execute(text("VACUUM ANALYZE batches"))
    looks = {
        "release": partial(docket.release_bulk, connection, room=2, limit=2),
        "tend": partial(lifecycle.tend, connection),
        "dispatcher": partial(due.look, connection, worker_seconds=30),
    }
    assert greedy(connection, "batches", looks) == {}


def test_callbacks_that_were_delivered(desk: Desk):
    """What is owed, and what is past hope, is told from the callbacks that are not delivered."""
    disabled, failing, well = (desk.add_endpoint(f"http://127.0.0.{number}:9/") for number in (1, 2, 3))
    desk.do(DELIVERED, count=MANY // 3)
    desk.tell(2)
    desk.fan_out()
    desk.release()
    desk.do("UPDATE callback_endpoints SET state = 'disabled', failures = 20 WHERE id = :id", id=disabled)
    fails = """
        UPDATE callback_endpoints SET
            failures = 5, failing_since = now() - interval '5 days', open_until = now() + interval '1 h' WHERE id = :id
    """
    desk.do(fails, id=failing)
    desk.do("UPDATE callbacks SET due_at = now() - interval '5 days' WHERE state = 'waiting'")
    shown = {"tenant": "default", "most": 100, "counted": 1000}
    with at_once(desk.database) as connection:
        connection.execute(text("VACUUM ANALYZE callbacks"))
        looks = {
            "survey": partial(connection.execute, survey._CALLBACKS, {"open_after": callbacks.OPEN_AFTER}),
            "receivers": partial(connection.execute, receivers._RECEIVERS, shown),
            "all receivers": partial(connection.execute, receivers._ALL, shown),
            "doctor": partial(doctor._callbacks, connection),
            "bury": partial(callbacks.bury, connection, limit=1000),
            "dispatcher": partial(due.look, connection, worker_seconds=30),
        }
        assert greedy(connection, "callbacks", looks) == {}
    ended = desk.rows("SELECT endpoint_id, reason, count(*) FROM callbacks WHERE state = 'dead' GROUP BY 1, 2")
    assert {tuple(row) for row in ended} == {(disabled, "endpoint_disabled", 2), (failing, "circuit_open", 1)}
    assert desk.one("SELECT count(*) FROM callbacks WHERE endpoint_id = :id AND state = 'waiting'", id=well) == 1


def test_receivers_that_take_what_they_are_sent(desk: Desk):
    """Whether a request may name another receiver is told from those that do not: of the others no row is read."""
    desk.do("""
        INSERT INTO callback_endpoints (id, tenant, url, registered, succeeded_at)
        SELECT gen_random_uuid(), 'default', n::text, false, now() FROM generate_series(1, 2000) n
    """)
    with at_once(desk.database) as connection:
        connection.execute(text("VACUUM ANALYZE callback_endpoints"))
        asked = {"tenant": "default", "origin": "http://127.0.0.1:9", "most": 1000, "days": 5}
        look = partial(connection.execute, callback_endpoints._TOO_MANY, asked)
        assert greedy(connection, "callback_endpoints", {"name": look}) == {}


def test_receivers_that_nothing_is_due_for(desk: Desk):
    """What to let go is told from the receivers that something is due for: of the others no row is read."""
    desk.tell(callback_url="http://127.0.0.1:9/")
    desk.do("""
        INSERT INTO callback_endpoints (id, tenant, url, registered)
        SELECT gen_random_uuid(), 'default', n::text, false FROM generate_series(1, 2000) n
    """)
    desk.do(DELIVERED, count=1)
    desk.do("UPDATE callbacks SET state = 'waiting', ended_at = NULL, due_at = now() + interval '1 day'")
    desk.fan_out()
    with at_once(desk.database) as connection:
        connection.execute(text("VACUUM ANALYZE callbacks, callback_endpoints"))
        look = partial(callbacks.release, connection, room=256, cap=8, limit=256)
        assert greedy(connection, "callback_endpoints", {"release": look}) == {}
    assert desk.one("SELECT count(*) FROM callbacks WHERE state = 'released'") == 1
