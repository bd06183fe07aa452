"""Deleting: by age, by batch and by tenant, and nothing that is still at work."""

import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, TextClause, text
from sqlalchemy.exc import DBAPIError
from support.desk import Desk
from support.dockets import a_line, an_outcome
from support.reading import read_by
from support.waiting import wait_until

from infra import docket
from infra.callbacks_sql import NEW_ID
from producer import callback_endpoints, files, retention
from producer.cli import processes
from schemas.ids import new_filing_id
from schemas.problems import Problem
from schemas.states import Lane

TABLES = ("comparisons", "shards", "outcomes", "files", "file_runs", "bad_lines", "batches", "idempotency_keys")

MAKE_BATCH = (
    """INSERT INTO files (id, tenant, filename, purpose, state, lines)
       VALUES (:file, :tenant, '', '', 'processed', 5)""",
    """INSERT INTO comparisons (source_id, line, tenant, body)
       SELECT :file, n, :tenant, '{}' FROM generate_series(1, 5) n""",
    "INSERT INTO file_runs (file_id, first_line, last_line, lines, bytes) VALUES (:file, 1, 5, 5, 10)",
    "INSERT INTO bad_lines (file_id, line, code, message) VALUES (:file, 6, '-', '-')",
    """INSERT INTO batches (id, tenant, file_id, endpoint, status, options, completion_window, on_bad_line, total,
                            expires_at)
       VALUES (:batch, :tenant, :file, '', :status, '{}', '24h', 'skip', 6, now())""",
)
ERRORED_LINE = """
    INSERT INTO outcomes (filing_id, line, tenant, status, error_code) VALUES (:batch, 6, :tenant, 'errored', '-')
"""


def counts(connection: Connection) -> dict[str, int]:
    """How many rows each table has."""
    return {table: connection.execute(text(f"SELECT count(*) FROM {table}")).scalar() for table in TABLES}  # noqa: S608


def single(connection: Connection, *, tenant: str = "default", decided: bool) -> None:
    """File a single comparison, and decide it if asked."""
    docket.file(connection, tenant=tenant, filing_id=new_filing_id(), lane=Lane.INTERACTIVE, comparisons=[a_line(0)])
    if decided:
        [shard] = docket.release(connection, lane=Lane.INTERACTIVE, room=100, limit=100)
        claim = docket.claim(connection, shard, worker="w", lease_seconds=60)
        assert claim is not None
        docket.finish(connection, claim.lease, [an_outcome(0, good=True)])


def batch(connection: Connection, *, tenant: str = "default", status: str) -> uuid.UUID:
    """Make a file of five lines and a batch of it."""
    file_id, batch_id = new_filing_id(), new_filing_id()
    values = {"file": file_id, "batch": batch_id, "tenant": tenant, "status": status}
    for statement in MAKE_BATCH:
        connection.execute(text(statement), values)
    docket.file_batch(connection, batch_id)
    connection.execute(text(ERRORED_LINE), values)
    return batch_id


def age_ids(connection: Connection) -> None:
    """Let single comparisons have ids of years ago, which is when they were filed."""
    for table, column, line in (
        *(("comparisons", "source_id", "line"), ("outcomes", "filing_id", "line")),
        *(("shards", "filing_id", "first_line"), ("shards", "source_id", "first_line")),
    ):
        old = f"CAST('01800000' || substr(CAST({column} AS text), 9) AS uuid)"
        connection.execute(text(f"UPDATE {table} SET {column} = {old} WHERE {line} = 0"))  # noqa: S608


def age(connection: Connection) -> None:
    """Let everything be two days old, at the least."""
    age_ids(connection)
    for table, column in (("files", "created_at"), ("batches", "created_at"), ("outcomes", "decided_at")):
        connection.execute(text(f"UPDATE {table} SET {column} = {column} - interval '2 days'"))  # noqa: S608


@contextmanager
def keeping(database: Engine, monkeypatch: pytest.MonkeyPatch, *, days: float, again: bool = True) -> Iterator[None]:
    """Delete what the dispatcher deletes by itself, over and over, or once soon after its start."""
    monkeypatch.setattr(processes, "_FIRST_RETENTION_SECONDS", 0.01)
    monkeypatch.setattr(processes, "_RETENTION_SECONDS", 0.01 if again else 3600.0)
    stop = threading.Event()
    thread = threading.Thread(target=processes._delete_what_is_old, args=(database, days, stop))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(30)


def test_what_ended_long_ago_goes_and_the_rest_stays(database, connection):
    """Old verdicts, batches and files go; what is young, queued or running stays, however old."""
    single(connection, decided=True)
    single(connection, decided=False)
    batch(connection, status="completed")
    running = batch(connection, status="in_progress")
    age(connection)
    single(connection, decided=False)
    retention.delete_old(database, older_than=86400)
    left = counts(connection)
    assert (left["batches"], left["files"], left["file_runs"], left["bad_lines"]) == (1, 1, 1, 1)
    assert left["comparisons"] == 2 + 5
    assert connection.execute(text("SELECT id FROM batches")).scalar() == running
    assert left["outcomes"] == 1


def test_a_comparison_is_kept_from_its_end_on(database, connection):
    """One that was filed long ago, and waited, goes no sooner than others that ended with it."""
    single(connection, decided=True)
    age_ids(connection)
    assert retention.delete_old(database, older_than=86400) == 0
    assert (counts(connection)["comparisons"], counts(connection)["outcomes"]) == (1, 1)
    connection.execute(text("UPDATE outcomes SET decided_at = decided_at - interval '2 days'"))
    retention.delete_old(database, older_than=86400)
    assert (counts(connection)["comparisons"], counts(connection)["outcomes"]) == (0, 0)


def test_a_batch_goes_with_its_outcomes_and_leaves_its_file(database, connection):
    """Deleting a batch lets its file be used again, or deleted next."""
    gone = batch(connection, status="completed")
    retention.delete_batch(database, gone)
    left = counts(connection)
    assert (left["batches"], left["outcomes"], left["shards"]) == (0, 0, 0)
    assert (left["files"], left["comparisons"]) == (1, 5)


def test_a_tenant_goes_without_a_trace(database, connection):
    """Everything of one tenant goes, what is at work included, and nothing of another's."""
    single(connection, decided=True)
    batch(connection, status="in_progress")
    before = counts(connection)
    single(connection, tenant="other", decided=True)
    single(connection, tenant="other", decided=False)
    batch(connection, tenant="other", status="in_progress")
    batch(connection, tenant="other", status="completed")
    retention.delete_tenant(database, "other")
    assert counts(connection) == before


COUNT_STEPS = """
    CREATE TABLE IF NOT EXISTS steps (gone bigint);
    CREATE OR REPLACE FUNCTION count_step() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN INSERT INTO steps SELECT count(*) FROM gone; RETURN NULL; END $$;
    CREATE TRIGGER count_step AFTER DELETE ON {table} REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION count_step()
"""


def test_it_goes_in_small_steps(database, connection, monkeypatch):
    """However much there is, no statement deletes more than a step."""
    monkeypatch.setattr(retention, "STEP", 2)
    for _ in range(5):
        single(connection, decided=True)
    batch(connection, status="completed")
    age(connection)
    for table in counts(connection):
        connection.execute(text(COUNT_STEPS.format(table=table)))
    retention.delete_old(database, older_than=86400)
    assert connection.execute(text("SELECT max(gone) FROM steps")).scalar_one() == 2
    assert set(counts(connection).values()) == {0}


YOUNG, OLD = NEW_ID, "CAST('01800000-0000-7000-8000-000000000001' AS uuid)"
MAKE = {
    "comparisons": (
        "INSERT INTO comparisons (source_id, line, tenant, body) SELECT {id}, 0, '{tenant}', '{{}}' FROM {several}",
        """INSERT INTO outcomes (filing_id, line, tenant, status, error_code, decided_at)
           SELECT source_id, 0, tenant, 'errored', '-', now() - interval '2 days' FROM comparisons
           ON CONFLICT DO NOTHING""",
    ),
    "events": (
        """INSERT INTO callback_events (id, tenant, type, subject_id, line, at, fanned_out)
           SELECT {id}, '{tenant}', '', gen_random_uuid(), 0, now(), true FROM {several}""",
    ),
    "requests": (
        """INSERT INTO callback_endpoints (id, tenant, url, registered)
           VALUES ('00000000-0000-7000-8000-000000000001', '', '', false) ON CONFLICT DO NOTHING""",
        """INSERT INTO callback_requests (filing_id, tenant, endpoint_id, url)
           SELECT {id}, '{tenant}', '00000000-0000-7000-8000-000000000001', '' FROM {several}""",
    ),
}


def read_in_a_step(connection: Connection, statement: TextClause, **parameters: Any) -> int:
    """How many rows of tables a statement reads; it is carried out, for ten rows at most."""
    return read_by(connection, statement, {**parameters, "step": 10}).total()


@pytest.mark.parametrize("kind", MAKE)
def test_what_is_young_is_not_read(connection, kind):
    """However much there is that is younger, an old row is found beside it; of whatever tenant."""
    for id_, tenant, count in ((YOUNG, "early", 20_000), (OLD, "late", 1)):
        for statement in MAKE[kind]:
            several = f"generate_series(1, {count})"
            connection.execute(text(statement.format(id=id_, tenant=tenant, several=several)))
    connection.execute(text("ANALYZE"))
    [statement] = retention.OLD[kind].args
    assert 0 < read_in_a_step(connection, statement, older_than=86400) < 100
    all_of_it = text(statement.text.replace(":older_than", "0"))
    assert connection.execute(all_of_it, {"step": 100_000}).one().gone == 20_000


def test_shards_of_comparisons_are_found_beside_those_of_a_large_batch(connection):
    """Those of a batch are not read for the one of a comparison."""
    single(connection, decided=True)
    age(connection)
    shards = """
        INSERT INTO shards (tenant, filing_id, source_id, first_line, last_line, lane, state)
        SELECT '', CAST('01900000-0000-7000-8000-000000000001' AS uuid), gen_random_uuid(), n, n, 'bulk', 'done'
        FROM generate_series(1, 20000) n
    """
    connection.execute(text(shards))
    connection.execute(text("ANALYZE"))
    assert 0 < read_in_a_step(connection, retention._OLD_SINGLES, older_than=86400) < 100


def test_what_cannot_be_deleted_keeps_nothing_else(database, connection, monkeypatch):
    """A kind of rows that fails is passed over by the dispatcher, and the next one goes."""
    batch(connection, status="completed")
    connection.execute(text("DELETE FROM batches"))
    age(connection)
    connection.execute(text("ALTER TABLE idempotency_keys RENAME TO elsewhere"))
    with keeping(database, monkeypatch, days=1):
        wait_until(lambda: not connection.execute(text("SELECT FROM files")).all(), within=30, what="the file goes")


def test_what_was_told_long_ago(desk: Desk):
    """Old events go with their callbacks and attempts; what is still on its way stays, and so does what is new."""
    url = "http://127.0.0.1:1/nobody"
    desk.tell(2, callback_url=url)
    desk.do("UPDATE callback_events SET id = CAST('01800000' || substr(CAST(id AS text), 9) AS uuid)")
    desk.deliver()
    desk.do("UPDATE callbacks SET state = 'dead', ended_at = now() WHERE attempt > 0")
    desk.tell(callback_url=url)
    desk.fan_out()
    retention.delete_old(desk.database, older_than=86400)
    assert desk.states() == ["waiting", "waiting"]
    assert desk.one("SELECT count(*) FROM callback_attempts") == 0


def test_a_receiver_that_nothing_refers_to_goes(desk: Desk):
    """Of receivers that requests named those go that no filing and no callback is of; a registered one stays."""
    urls = [f"http://127.0.0.{number}:1" for number in range(1, 6)]
    filed, called, *_ = [desk.file(callback_url=url) for url in urls[:4]]
    desk.add_endpoint(urls[4])
    desk.do("DELETE FROM callback_requests WHERE filing_id <> :filed", filed=filed)
    desk.do("UPDATE callback_endpoints SET created_at = now() - interval '2 days' WHERE url <> :url", url=urls[3])
    owed = """
        WITH told AS (
            INSERT INTO callback_events (id, tenant, type, subject_id, line, at, fanned_out)
            VALUES (gen_random_uuid(), 'default', '', :called, 0, now(), true) RETURNING id
        )
        INSERT INTO callbacks (id, tenant, event_id, endpoint_id, url, state, due_at)
        SELECT gen_random_uuid(), 'default', told.id, e.id, url, 'waiting', now()
        FROM told, callback_endpoints e WHERE url = :url
    """
    desk.do(owed, called=called, url=urls[1])
    assert retention.delete_old(desk.database, older_than=86400) == 1
    left = [row.url for row in desk.rows("SELECT url FROM callback_endpoints ORDER BY url")]
    assert left == [urls[0], urls[1], urls[3], urls[4]]


def test_a_tenants_callbacks_go_with_it(desk: Desk):
    """Endpoints, secrets, events and callbacks of a tenant are deleted with everything else of it."""
    desk.add_endpoint("http://127.0.0.1:1/nobody")
    desk.tell(callback_url="http://127.0.0.1:1/nobody")
    desk.deliver()
    retention.delete_tenant(desk.database, "default")
    for table in ("endpoints", "secrets", "requests", "events", "attempts"):
        assert desk.one(f"SELECT count(*) FROM callback_{table}") == 0, table  # noqa: S608
    assert desk.states() == []


def test_a_tenants_secrets_go_before_the_large_tables_are_read(desk: Desk):
    """A purge that is broken off where it looks for the last outcomes has left no URL and no secret behind."""
    desk.add_endpoint("http://127.0.0.1:1/nobody")
    desk.do(ERRORED_LINE, batch=uuid.uuid4(), tenant="default")
    desk.do("""
        CREATE FUNCTION break_off() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'broken off'; END $$;
        CREATE TRIGGER break_off BEFORE DELETE ON outcomes FOR EACH ROW EXECUTE FUNCTION break_off();
    """)
    with pytest.raises(DBAPIError, match="broken off"):
        retention.delete_tenant(desk.database, "default")
    for table in ("endpoints", "secrets"):
        assert desk.one(f"SELECT count(*) FROM callback_{table}") == 0, table  # noqa: S608


def test_a_tenants_shards_are_found_by_their_index(connection):
    """Shards of another tenant are not read for those that ended."""
    shards = """
        INSERT INTO shards (tenant, filing_id, source_id, first_line, last_line, lane, state, ended_at)
        SELECT :tenant, gen_random_uuid(), gen_random_uuid(), 0, 0, 'interactive', 'done', now()
        FROM generate_series(1, :count)
    """
    for tenant, count in (("other", 20_000), ("theirs", 3)):
        connection.execute(text(shards), {"tenant": tenant, "count": count})
    connection.execute(text("ANALYZE"))
    assert read_in_a_step(connection, retention._SHARDS[0], tenant="theirs") < 100
    assert connection.execute(text("SELECT DISTINCT tenant FROM shards")).scalars().all() == ["other"]


def test_a_busy_receiver_goes_in_small_steps(desk: Desk, monkeypatch):
    """However many callbacks an endpoint has had, no statement deletes more than a step of them with it."""
    monkeypatch.setattr(retention, "STEP", 2)
    desk.do(COUNT_STEPS.format(table="callbacks"))
    endpoint = desk.add_endpoint("http://127.0.0.1:1/nobody")
    desk.tell(5)
    desk.fan_out()
    desk.run(callback_endpoints.remove, tenant="default", endpoint=endpoint)
    assert desk.states() == []
    assert desk.one("SELECT max(gone) FROM steps") == 2
    with pytest.raises(Problem):
        desk.run(callback_endpoints.remove, tenant="default", endpoint=endpoint)


def test_a_file_goes_in_small_steps_too(desk: Desk, monkeypatch):
    """So does what the API takes out: a large file is gone, whoever waits for it."""
    monkeypatch.setattr(retention, "STEP", 2)
    desk.do(COUNT_STEPS.format(table="comparisons"))
    with desk.database.begin() as connection:
        batch(connection, status="failed")
    desk.run(files.take_out, desk.one("SELECT id FROM files"))
    assert desk.rows("SELECT gone FROM steps WHERE gone > 0") == [(2,), (2,), (1,)]
    assert desk.one("SELECT count(*) FROM files") == 0


def test_an_upload_that_was_broken_off_goes(database, connection, monkeypatch):
    """A day later, also where nothing is deleted by its age; one that may be coming in stays, and so do whole files."""
    for _ in range(3):
        batch(connection, status="failed")
    connection.execute(text("DELETE FROM batches"))
    old, young, whole = connection.execute(text("SELECT id FROM files ORDER BY id")).scalars()
    for file_id, state, hours in ((old, "uploading", 25), (young, "uploading", 23), (whole, "processed", 25)):
        change = "UPDATE files SET state = :state, created_at = now() - make_interval(hours => :hours) WHERE id = :id"
        connection.execute(text(change), {"id": file_id, "state": state, "hours": hours})
    with keeping(database, monkeypatch, days=0, again=False):
        wait_until(lambda: counts(connection)["files"] == 2, within=30, what="the upload goes")
    assert set(connection.execute(text("SELECT source_id FROM comparisons")).scalars()) == {young, whole}
    assert (counts(connection)["file_runs"], counts(connection)["bad_lines"]) == (2, 2)
