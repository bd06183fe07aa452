"""Deleting: by age, by batch and by tenant, and nothing that is still at work."""

import uuid

from sqlalchemy import Connection, text
from support.desk import Desk
from support.dockets import a_line, an_outcome

from infra import docket
from producer import retention
from schemas.ids import new_filing_id
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


def age(connection: Connection) -> None:
    """Let everything be two days old."""
    beginnings = [(table, "created_at") for table in ("comparisons", "files", "batches")]
    for table, column in (*beginnings, ("outcomes", "decided_at")):
        connection.execute(text(f"UPDATE {table} SET {column} = {column} - interval '2 days'"))  # noqa: S608


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
    connection.execute(text("UPDATE comparisons SET created_at = created_at - interval '2 days'"))
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


def test_it_goes_in_small_steps(database, connection, monkeypatch):
    """However much there is, no transaction deletes more than a step."""
    monkeypatch.setattr(retention, "STEP", 2)
    for _ in range(5):
        single(connection, decided=True)
    age(connection)
    retention.delete_old(database, older_than=86400)
    assert counts(connection)["comparisons"] == 0


def test_what_was_told_long_ago(desk: Desk):
    """Old events go with their callbacks and attempts; what is still on its way stays, and so does what is new."""
    url = "http://127.0.0.1:1/nobody"
    desk.tell(2, callback_url=url)
    desk.deliver()
    desk.do("UPDATE callbacks SET state = 'dead', ended_at = now() WHERE attempt > 0")
    desk.do("UPDATE callback_events SET created_at = now() - interval '2 days'")
    desk.tell(callback_url=url)
    desk.fan_out()
    retention.delete_old(desk.database, older_than=86400)
    assert desk.states() == ["waiting", "waiting"]
    assert desk.one("SELECT count(*) FROM callback_attempts") == 0


def test_a_tenants_callbacks_go_with_it(desk: Desk):
    """Endpoints, secrets, events and callbacks of a tenant are deleted with everything else of it."""
    desk.add_endpoint("http://127.0.0.1:1/nobody")
    desk.tell(callback_url="http://127.0.0.1:1/nobody")
    desk.deliver()
    retention.delete_tenant(desk.database, "default")
    for table in ("endpoints", "secrets", "requests", "events", "attempts"):
        assert desk.one(f"SELECT count(*) FROM callback_{table}") == 0, table  # noqa: S608
    assert desk.states() == []
