"""Deleting what is old or no longer wanted, in steps so small that intake never waits for one."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from uuid import UUID

from sqlalchemy import Engine as Database
from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncEngine

STEP = 2_000
"""Rows that one transaction deletes at most."""

_COUNTED = "SELECT (SELECT count(*) FROM chosen) AS chosen, (SELECT count(*) FROM gone) AS gone"
"""Of a step it is told how many rows were chosen, too: somebody else may have deleted some, and more may be left."""


def rows(table: str, which: str, key: str) -> TextClause:
    """Delete a step of a table's rows, by a statement for `in_steps_async`.

    By `ctid` go rows that nobody changes. A row that somebody is changing has to be named by its key: once that is
    committed it has another ctid, and would be passed over.
    """
    return text(f"""
        WITH chosen AS MATERIALIZED (SELECT {key} FROM {table} WHERE {which} LIMIT :step),
        gone AS (DELETE FROM {table} WHERE {key} = ANY(ARRAY(SELECT {key} FROM chosen)) RETURNING 1)
        {_COUNTED}
    """)  # noqa: S608 - constants of this module, and of those that call it


# Batches that ended long ago, and those whose deletion was begun and broken off.
_IS_OLD = """(status = 'deleting' OR status NOT IN ('in_progress', 'cancelling')
      AND coalesce(ended_at, created_at) <= now() - make_interval(secs => :older_than))"""
_OLD_BATCHES = text(f"SELECT id FROM batches WHERE {_IS_OLD} ORDER BY id LIMIT 10")  # noqa: S608 - a constant
# From here on nobody reads a batch or retries it. Whoever was at that has been waited for, and is then looked at again.
_CLOSE_BATCH = text(f"UPDATE batches SET status = 'deleting' WHERE id = :id AND {_IS_OLD}")  # noqa: S608 - the same
# Once its idempotency key is gone, the same request makes a batch anew.
_FREE_KEY = text("DELETE FROM idempotency_keys WHERE filing_id = :id")
# Files whose upload or deletion was broken off are found by `_ABANDONED`.
_OLD_FILES = text("""
    SELECT id FROM files f WHERE state = 'processed' AND created_at < now() - make_interval(secs => :older_than)
      AND NOT EXISTS (SELECT FROM batches b WHERE b.file_id = f.id)
    ORDER BY id LIMIT 10
""")
# After CLOSE_FILE nobody makes a batch of the file. LOCK_FILE, a statement of its own before it, waits for a
# transaction that is making one: a statement sees what was committed before it began, so only the next one sees that
# batch.
LOCK_FILE = text("SELECT FROM files WHERE id = :id FOR UPDATE")
CLOSE_FILE = text("""
    UPDATE files SET state = 'uploading' WHERE id = :id AND NOT EXISTS (SELECT FROM batches WHERE file_id = :id)
""")
# Ids sort by the milliseconds that they begin with (schemas/ids.py): this is the first that is not older.
_FIRST_YOUNG = """CAST(rpad(lpad(to_hex(greatest(0, floor(
    1000 * extract(epoch FROM now() - make_interval(secs => :older_than))))::bigint), 12, '0'), 32, '0') AS uuid)"""
# Single comparisons that ended long ago. None ended before it was filed: by their ids the young are passed over, which
# Postgres 18 does in the index without reading them. Outcomes are looked up one by one: joined, all that there are
# would be read as soon as little is old, for no index tells when they were decided.
_OLD_SINGLES = text(f"""
    WITH chosen AS MATERIALIZED (
        SELECT c.source_id FROM comparisons c
        CROSS JOIN LATERAL (
            SELECT decided_at FROM outcomes WHERE filing_id = c.source_id AND line = 0 OFFSET 0
        ) o
        WHERE c.line = 0 AND c.source_id < {_FIRST_YOUNG}
          AND o.decided_at < now() - make_interval(secs => :older_than)
        ORDER BY c.tenant, c.source_id LIMIT :step
    ), shards_gone AS (DELETE FROM shards s USING chosen WHERE s.filing_id = chosen.source_id AND s.first_line = 0),
    outcomes_gone AS (DELETE FROM outcomes o USING chosen WHERE o.filing_id = chosen.source_id AND o.line = 0),
    keys_gone AS (DELETE FROM idempotency_keys k USING chosen WHERE k.filing_id = chosen.source_id),
    gone AS (DELETE FROM comparisons c USING chosen WHERE c.source_id = chosen.source_id AND c.line = 0 RETURNING 1)
    {_COUNTED}
""")  # noqa: S608 - a constant
# What was told long ago, with its callbacks and their attempts, unless one is still on its way.
_OLD_EVENTS = rows(
    "callback_events",
    f"""fanned_out AND id < {_FIRST_YOUNG}
        AND NOT EXISTS (SELECT FROM callbacks c WHERE c.event_id = callback_events.id
                        AND c.state IN ('waiting', 'released', 'sending'))
        ORDER BY id""",
    "id",
)
# The callback URLs of requests, once what they filed is gone.
_OLD_REQUESTS = rows(
    "callback_requests",
    f"""filing_id < {_FIRST_YOUNG}
        AND NOT EXISTS (SELECT FROM shards s WHERE s.filing_id = callback_requests.filing_id)
        AND NOT EXISTS (SELECT FROM batches b WHERE b.id = callback_requests.filing_id)
        AND NOT EXISTS (SELECT FROM callback_events e
                        WHERE e.subject_id = callback_requests.filing_id AND NOT e.fanned_out)
        ORDER BY filing_id""",  # noqa: S608 - the same
    "filing_id",
)

# Endpoints that stand for URLs of requests, and that nothing refers to any more. They are locked first, which passes
# over those that a request is naming now; the next statement looks again, and sees those that were named just before.
_OLD_ENDPOINTS = text("""
    SELECT id FROM callback_endpoints e
    WHERE NOT registered AND created_at < now() - make_interval(secs => :older_than)
      AND NOT EXISTS (SELECT FROM callback_requests r WHERE r.endpoint_id = e.id)
      AND NOT EXISTS (SELECT FROM callbacks c WHERE c.endpoint_id = e.id)
    ORDER BY id LIMIT :step
    FOR UPDATE OF e SKIP LOCKED
""")
_OLD_ENDPOINTS_GONE = text("""
    DELETE FROM callback_endpoints e WHERE id = ANY(CAST(:ids AS uuid[]))
      AND NOT EXISTS (SELECT FROM callback_requests r WHERE r.endpoint_id = e.id)
      AND NOT EXISTS (SELECT FROM callbacks c WHERE c.endpoint_id = e.id)
""")


_OF_BATCH = (
    rows("outcomes", "filing_id = :id", "ctid"),
    rows("shards", "filing_id = :id", "id"),
    rows("batches", "id = :id", "id"),
)
# Uploads that the API was killed in, and files whose deletion was broken off.
_ABANDONED = text("SELECT id FROM files WHERE state = 'uploading' AND created_at < now() - interval '1 day'")
OF_FILE = (
    rows("comparisons", "source_id = :id", "ctid"),
    rows("bad_lines", "file_id = :id", "ctid"),
    rows("file_runs", "file_id = :id", "ctid"),
    rows("files", "id = :id", "id"),
)


def _in_steps(database: Database, statement: TextClause, parameters: dict[str, object]) -> int:
    """Run a deleting statement until it chooses nothing, each time in a transaction of its own."""
    total = 0
    while True:
        with database.begin() as connection:
            step = connection.execute(statement, {**parameters, "step": STEP}).one()
        total += int(step.gone)
        if step.chosen == 0:
            return total


async def in_steps_async(database: AsyncEngine, statement: TextClause, parameters: dict[str, object]) -> None:
    """Run a statement of `rows` until it chooses nothing, from the HTTP edge."""
    chosen = 1
    while chosen:
        async with database.begin() as connection:
            chosen = (await connection.execute(statement, {**parameters, "step": STEP})).one().chosen


def delete_batch(database: Database, batch_id: UUID, *, older_than: float = 0.0) -> int:
    """Delete a batch with its outcomes and its idempotency key; the file it was made of stays.

    Returns:
        How many rows went: none where it has not ended, or has not been so for `older_than` seconds.
    """
    with database.begin() as connection:
        if connection.execute(_CLOSE_BATCH, {"id": batch_id, "older_than": older_than}).rowcount == 0:
            return 0
        keys = connection.execute(_FREE_KEY, {"id": batch_id}).rowcount
    return keys + _all_rows(database, _OF_BATCH, batch_id)


def delete_file(database: Database, file_id: UUID) -> int:
    """Delete a file with its lines. Returns how many rows went: none where a batch refers to it."""
    with database.begin() as connection:
        connection.execute(LOCK_FILE, {"id": file_id})
        if connection.execute(CLOSE_FILE, {"id": file_id}).rowcount == 0:
            return 0
    return _all_rows(database, OF_FILE, file_id)


def delete_abandoned(database: Database) -> int:
    """Delete what there is of files that did not come, or go, as a whole. Returns how many rows went."""
    with database.connect() as connection:
        found = [row.id for row in connection.execute(_ABANDONED)]
    return sum(_all_rows(database, OF_FILE, each) for each in found)


def _all_rows(database: Database, statements: Sequence[TextClause], of: UUID) -> int:
    return sum(_in_steps(database, statement, {"id": of}) for statement in statements)


def _old_rows(statement: TextClause, database: Database, *, older_than: float) -> int:
    return _in_steps(database, statement, {"older_than": older_than})


def _old_batches(database: Database, *, older_than: float) -> int:
    return _all_found(database, _OLD_BATCHES, partial(delete_batch, older_than=older_than), older_than=older_than)


def _old_files(database: Database, *, older_than: float) -> int:
    return _all_found(database, _OLD_FILES, delete_file, older_than=older_than)


def _old_endpoints(database: Database, *, older_than: float) -> int:
    total = 0
    while True:
        with database.begin() as connection:
            found = [row.id for row in connection.execute(_OLD_ENDPOINTS, {"older_than": older_than, "step": STEP})]
            gone = connection.execute(_OLD_ENDPOINTS_GONE, {"ids": found}).rowcount
        total += gone
        if not found:
            return total


def _all_found(
    database: Database, find: TextClause, delete: Callable[[Database, UUID], int], *, older_than: float
) -> int:
    total = 0
    while True:
        with database.connect() as connection:
            found = [row.id for row in connection.execute(find, {"older_than": older_than})]
        if not found:
            return total
        total += sum(delete(database, each) for each in found)


OLD: Mapping[str, Callable[..., int]] = {
    "comparisons": partial(_old_rows, _OLD_SINGLES),
    "batches": _old_batches,
    "files": _old_files,
    "events": partial(_old_rows, _OLD_EVENTS),
    "requests": partial(_old_rows, _OLD_REQUESTS),
    "endpoints": _old_endpoints,
}
"""What `delete_old` deletes, by kind, in an order in which each lets the next go."""


def delete_old(database: Database, *, older_than: float) -> int:
    """Delete what ended, or was uploaded and never used, more than `older_than` seconds ago.

    What is still queued or running is never touched, however old. Returns how many rows went.
    """
    return sum(delete(database, older_than=older_than) for delete in OLD.values())


# After this the tenant has no key, and row-level security refuses its rows from the API.
_BURY = (
    text("""
        INSERT INTO tombstones (tenant) VALUES (:tenant)
        ON CONFLICT (tenant) DO UPDATE SET purged_at = now(), finished_at = NULL
    """),
    text("DELETE FROM keys WHERE tenant = :tenant"),
    text("""
        UPDATE batches SET status = 'cancelled', open = false, ended_at = now(), cancelling_at = now()
        WHERE tenant = :tenant AND status IN ('in_progress', 'cancelling')
    """),
)
_THIS = text("SELECT pg_current_xact_id()::text")
# Whether every transaction has ended that began before this one was committed.
_SEEN = text("SELECT pg_snapshot_xmin(pg_current_snapshot()) > CAST(CAST(:transaction AS text) AS xid8)")
_OVER = text("UPDATE tombstones SET finished_at = now() WHERE tenant = :tenant")
_PATIENCE_SECONDS = 90.0
"""A little longer than Postgres lets a statement run and a transaction idle."""

_FILES = text("SELECT id FROM files WHERE tenant = :tenant")
_BATCHES = text("SELECT id FROM batches WHERE tenant = :tenant")
_SINGLES = text(f"""
    WITH chosen AS MATERIALIZED (
        SELECT source_id FROM comparisons WHERE tenant = :tenant AND line = 0 ORDER BY source_id LIMIT :step
    ), outcomes_gone AS (DELETE FROM outcomes o USING chosen WHERE o.filing_id = chosen.source_id AND o.line = 0),
    gone AS (DELETE FROM comparisons c USING chosen WHERE c.source_id = chosen.source_id AND c.line = 0 RETURNING 1)
    {_COUNTED}
""")  # noqa: S608 - a constant


_SHARDS = (
    rows("shards", "tenant = :tenant AND ended_at IS NOT NULL ORDER BY ended_at", "id"),  # by its index: most by far
    rows("shards", "tenant = :tenant", "id"),
)
# Outcomes and comparisons come last: as a rule none are left, and finding that out reads the whole table.
_TABLES = (
    *(("idempotency_keys", "ctid"), ("batches", "id"), ("files", "id"), ("callbacks", "id"), ("callback_events", "id")),
    *(("callback_secrets", "id"), ("callback_requests", "filing_id"), ("callback_endpoints", "id")),
    *(("outcomes", "ctid"), ("comparisons", "ctid")),
)
_REST = tuple(rows(table, "tenant = :tenant", key) for table, key in _TABLES)
# The largest tables come last: the OR ends at the first that has a row.
_PLACES = ("keys", "tombstones", *(table for table, _ in _TABLES), "shards")
_ANYTHING = text(
    f"SELECT {' OR '.join(f'EXISTS (SELECT FROM {table} WHERE tenant = :tenant)' for table in _PLACES)}"  # noqa: S608
)


def knows_tenant(database: Database, tenant: str) -> bool:
    """Whether anything is stored of a tenant, the tombstone of one that was purged included."""
    with database.connect() as connection:
        return bool(connection.execute(_ANYTHING, {"tenant": tenant}).scalar())


def delete_tenant(database: Database, tenant: str) -> int:
    """Delete everything of a tenant, keys and running work included, and leave a tombstone. Returns how many rows went.

    What was being filed when it began has ended before anything is looked for. Shards go first: a worker that is at one
    finds at its next write that its lease is no more.

    Raises:
        TimeoutError: a transaction that began before goes on and on; run it again.
    """
    with database.begin() as connection:
        keys = [connection.execute(statement, {"tenant": tenant}).rowcount for statement in _BURY][1]
        transaction = connection.execute(_THIS).scalar_one()
    _await_all_before(database, transaction)
    with database.connect() as connection:
        batches, files = (
            [row.id for row in connection.execute(which, {"tenant": tenant})] for which in (_BATCHES, _FILES)
        )
    total = keys + sum(_in_steps(database, statement, {"tenant": tenant}) for statement in (*_SHARDS, _SINGLES))
    # Whatever state they are in: a retry may have been let end above.
    total += sum(_all_rows(database, _OF_BATCH, each) for each in batches)
    total += sum(_all_rows(database, OF_FILE, each) for each in files)
    total += sum(_in_steps(database, statement, {"tenant": tenant}) for statement in _REST)
    with database.begin() as connection:
        connection.execute(_OVER, {"tenant": tenant})
    return total


def _await_all_before(database: Database, transaction: str) -> None:
    give_up_at = time.monotonic() + _PATIENCE_SECONDS
    while True:
        with database.connect() as connection:
            if connection.execute(_SEEN, {"transaction": transaction}).scalar_one():
                return
        if time.monotonic() > give_up_at:
            raise TimeoutError("a transaction that began before goes on; end it, and run this again")
        time.sleep(0.1)
