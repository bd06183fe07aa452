"""Deleting what is old or no longer wanted, in steps so small that intake never waits for one."""

from uuid import UUID

from sqlalchemy import Engine as Database
from sqlalchemy import TextClause, text

STEP = 2_000
"""Rows that one transaction deletes at most."""

_OLD_BATCHES = text("""
    SELECT id FROM batches WHERE status NOT IN ('in_progress', 'cancelling')
      AND coalesce(ended_at, created_at) < now() - make_interval(secs => :older_than)
    ORDER BY id LIMIT 10
""")
_OLD_FILES = text("""
    SELECT id FROM files f WHERE created_at < now() - make_interval(secs => :older_than)
      AND NOT EXISTS (SELECT FROM batches b WHERE b.file_id = f.id)
    ORDER BY id LIMIT 10
""")
# Single comparisons that have ended. Their ids sort by time, so the oldest stand first in the index.
_OLD_SINGLES = text("""
    WITH old AS MATERIALIZED (
        SELECT c.source_id FROM comparisons c
        JOIN outcomes o ON o.filing_id = c.source_id AND o.line = 0
        WHERE c.line = 0 AND c.created_at < now() - make_interval(secs => :older_than)
          AND (CAST(:tenant AS text) IS NULL OR c.tenant = :tenant)
        ORDER BY c.tenant, c.source_id LIMIT :step
    ), shards_gone AS (DELETE FROM shards s USING old WHERE s.filing_id = old.source_id),
    outcomes_gone AS (DELETE FROM outcomes o USING old WHERE o.filing_id = old.source_id),
    keys_gone AS (DELETE FROM idempotency_keys k USING old WHERE k.filing_id = old.source_id)
    DELETE FROM comparisons c USING old WHERE c.source_id = old.source_id AND c.line = 0
""")
# What was told long ago, with its callbacks and their attempts, unless one is still on its way.
_OLD_EVENTS = text("""
    DELETE FROM callback_events WHERE id = ANY(ARRAY(
        SELECT id FROM callback_events e
        WHERE e.fanned_out AND e.created_at < now() - make_interval(secs => :older_than)
          AND NOT EXISTS (SELECT FROM callbacks c WHERE c.event_id = e.id
                          AND c.state IN ('waiting', 'released', 'sending'))
        LIMIT :step))
""")
# Where a filing calls back to, once the filing itself is gone.
_OLD_REQUESTS = text("""
    DELETE FROM callback_requests WHERE filing_id = ANY(ARRAY(
        SELECT filing_id FROM callback_requests r
        WHERE r.created_at < now() - make_interval(secs => :older_than)
          AND NOT EXISTS (SELECT FROM shards s WHERE s.filing_id = r.filing_id)
          AND NOT EXISTS (SELECT FROM batches b WHERE b.id = r.filing_id)
          AND NOT EXISTS (SELECT FROM callback_events e WHERE e.subject_id = r.filing_id AND NOT e.fanned_out)
        LIMIT :step))
""")


def _rows_of(table: str, column: str) -> TextClause:
    """Delete a step of a table's rows that belong to one id."""
    return text(f"""
        DELETE FROM {table} WHERE ctid = ANY(ARRAY(SELECT ctid FROM {table} WHERE {column} = :id LIMIT :step))
    """)  # noqa: S608 - table and column are constants of this module


_OF_BATCH = tuple(_rows_of(*each) for each in (("outcomes", "filing_id"), ("shards", "filing_id"), ("batches", "id")))
_OF_FILE = tuple(
    _rows_of(*each)
    for each in (("comparisons", "source_id"), ("bad_lines", "file_id"), ("file_runs", "file_id"), ("files", "id"))
)


def _in_steps(database: Database, statement: TextClause, parameters: dict[str, object]) -> int:
    """Run a deleting statement until it deletes nothing, each time in a transaction of its own."""
    total = 0
    while True:
        with database.begin() as connection:
            gone = connection.execute(statement, {**parameters, "step": STEP}).rowcount
        total += gone
        if gone == 0:
            return total


def delete_batch(database: Database, batch_id: UUID) -> int:
    """Delete an ended batch with its outcomes; the file it was made of stays. Returns how many rows went."""
    return sum(_in_steps(database, statement, {"id": batch_id}) for statement in _OF_BATCH)


def delete_file(database: Database, file_id: UUID) -> int:
    """Delete a file with its lines; no batch may refer to it any more. Returns how many rows went."""
    return sum(_in_steps(database, statement, {"id": file_id}) for statement in _OF_FILE)


def delete_old(database: Database, *, older_than: float) -> int:
    """Delete what ended, or was uploaded and never used, more than `older_than` seconds ago.

    What is still queued or running is never touched, however old. Returns how many rows went.
    """
    total = _in_steps(database, _OLD_SINGLES, {"older_than": older_than, "tenant": None})
    for find, delete in ((_OLD_BATCHES, delete_batch), (_OLD_FILES, delete_file)):
        while True:
            with database.connect() as connection:
                found = [row.id for row in connection.execute(find, {"older_than": older_than})]
            if not found:
                break
            total += sum(delete(database, each) for each in found)
    return total + sum(_in_steps(database, each, {"older_than": older_than}) for each in (_OLD_EVENTS, _OLD_REQUESTS))


_CALL_OFF = text("""
    UPDATE batches SET status = 'cancelled', open = false, ended_at = now(), cancelling_at = now()
    WHERE tenant = :tenant AND status IN ('in_progress', 'cancelling')
""")
_SHARDS_OF_TENANT = text("""
    DELETE FROM shards WHERE id = ANY(ARRAY(SELECT id FROM shards WHERE tenant = :tenant LIMIT :step))
""")
_OF_TENANT = tuple(
    text(f"DELETE FROM {table} WHERE ctid = ANY(ARRAY(SELECT ctid FROM {table} WHERE tenant = :tenant LIMIT :step))")  # noqa: S608
    for table in (
        *("outcomes", "comparisons", "idempotency_keys", "batches"),
        *("callback_events", "callback_requests", "callback_secrets", "callback_endpoints"),
    )
)
_FILES_OF_TENANT = text("SELECT id FROM files WHERE tenant = :tenant")


def delete_tenant(database: Database, tenant: str) -> int:
    """Delete everything of a tenant, running work included. Returns how many rows went.

    Shards go first: a worker that is at one finds at its next write that its lease is no more.
    """
    with database.begin() as connection:
        connection.execute(_CALL_OFF, {"tenant": tenant})
        files = [row.id for row in connection.execute(_FILES_OF_TENANT, {"tenant": tenant})]
    total = _in_steps(database, _SHARDS_OF_TENANT, {"tenant": tenant})
    total += sum(_in_steps(database, statement, {"tenant": tenant}) for statement in _OF_TENANT)
    return total + sum(delete_file(database, each) for each in files)
