"""What a request reads does not grow with what a tenant has: each statement finds its rows by an index.

As the API runs it: behind a policy Postgres takes for an index only what it knows to leak nothing, so that a statement
which is quick for the tables' owner may read all of a table for the API.
"""

# ruff: noqa: S608 - statements are put together from constants of this module alone

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, text
from support.databases import own_database
from support.filed import file_batch
from support.keys import a_key, bearer
from support.reading import explaining, rows_read
from support.rows import PAIR

from infra import roles
from infra.database import connect
from infra.local.postgres import Postgres
from infra.migrating import migrate
from infra.settings import Settings
from producer.api.app import create_app

MANY = 20_000
BOUND = MANY // 5
"""More than a page, a look ahead or a limit's slack, and far fewer than there are."""

PASSWORD = "password-of-api"  # noqa: S105 - of a server that is gone after the test
ENDPOINT = "00000000-0000-7000-8000-00000000000e"

# Singles that were decided and some that wait, which the dashboard counts; files, batches and callbacks that ended.
FILL = [
    """INSERT INTO comparisons (source_id, line, tenant, body)
       SELECT gen_random_uuid(), 0, 'default', :body FROM generate_series(1, :many)""",
    """INSERT INTO shards (tenant, filing_id, source_id, first_line, last_line, lane, state, due_at)
       SELECT tenant, source_id, source_id, 0, 0, 'interactive', 'waiting', now() - interval '1 hour'
       FROM comparisons WHERE line = 0 LIMIT :many / 200""",
    """INSERT INTO shards (tenant, filing_id, source_id, first_line, last_line, lane, state, ended_at)
       SELECT tenant, source_id, source_id, 0, 0, 'interactive', 'done', now() FROM comparisons
       WHERE line = 0 AND source_id NOT IN (SELECT filing_id FROM shards)""",
    """INSERT INTO outcomes (filing_id, line, tenant, status, error_code, error_message)
       SELECT filing_id, 0, tenant, 'errored', 'engine_failed', '' FROM shards WHERE state = 'done' AND first_line = 0
       ON CONFLICT DO NOTHING""",
    """INSERT INTO files (id, tenant, filename, purpose, state)
       SELECT gen_random_uuid(), 'default', '', 'batch', 'processed' FROM generate_series(1, :many)""",
    """INSERT INTO batches (id, tenant, file_id, endpoint, status, options, completion_window, on_bad_line, total,
                            expires_at, in_progress_at, ended_at)
       SELECT gen_random_uuid(), 'default', id, '/v1/comparisons', 'completed', '{}', '24h', 'fail', 0, now(), now(),
              now() FROM files""",
    f"""INSERT INTO callback_endpoints (id, tenant, url, registered)
       VALUES ('{ENDPOINT}', 'default', 'https://example.com/', true)""",
    """INSERT INTO callback_events (id, tenant, type, subject_id, line, at, fanned_out)
       SELECT gen_random_uuid(), 'default', 'comparison.completed', source_id, 0, now(), true FROM comparisons""",
    f"""INSERT INTO callbacks (id, tenant, event_id, endpoint_id, url, state, due_at, ended_at)
       SELECT gen_random_uuid(), tenant, id, '{ENDPOINT}', '', 'dead', now(), now() FROM callback_events""",
]


END = [
    """INSERT INTO outcomes (filing_id, line, tenant, status, error_code, error_message)
       SELECT id, line, 'default', 'cancelled', 'cancelled', ''
       FROM batches, generate_series(1, total) AS line WHERE id = CAST(:batch AS uuid)""",
    """UPDATE batches SET status = 'cancelled', open = false, ended_at = now() WHERE id = CAST(:batch AS uuid)""",
    """UPDATE shards SET state = 'done', cancelled = last_line - first_line + 1, ended_at = now()
       WHERE filing_id = CAST(:batch AS uuid)""",
]
"""The batch was called off before any of it was judged."""


@pytest.fixture(scope="module")
def crowded(postgres: Postgres, template: str) -> Iterator[tuple[TestClient, Engine]]:
    """The API as it logs in, for a tenant that has much of everything; and the owner's way in."""
    with own_database(postgres, template) as url:
        migrate(url, {"api": PASSWORD})
        owner = connect(url, application="test")
        with owner.begin() as connection:
            for statement in FILL:
                connection.execute(text(statement), {"many": MANY, "body": json.dumps(PAIR)})
        key = a_key(url)
        settings = Settings(
            database_url=roles.url_as(url, "api", PASSWORD),
            secret_keys="0123456789abcdef" * 4,
            callback_allow="example.com",
        )
        with TestClient(create_app(settings), base_url="http://127.0.0.1", headers=bearer(key)) as client:
            assert client.post("/dashboard/login", data={"key": key}).status_code == 200
            batch = file_batch(client, "".join(json.dumps(PAIR) + "\n" for _ in range(MANY)))
            with owner.begin() as connection:
                for statement in END:
                    connection.execute(text(statement), {"batch": batch.removeprefix("batch_")})
            with owner.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.execute(text("VACUUM ANALYZE"))
            yield client, owner
        owner.dispose()


@contextmanager
def counting() -> Iterator[Counter[str]]:
    """Count the rows of each table that statements read, of all that come by until the block ends."""
    read: Counter[str] = Counter()
    with explaining(lambda plan: read.update(rows_read(plan))):
        yield read


def ids(owner: Engine) -> dict[str, str]:
    """What there is to be asked for, by the name that the document gives such an id in paths."""
    with owner.connect() as connection:

        def first(statement: str) -> str:
            return connection.execute(text(statement)).scalar_one().hex

        waiting = "SELECT filing_id FROM shards WHERE state = 'waiting' ORDER BY id"
        return {
            "next": "cmp_" + first(f"{waiting} LIMIT 1"),
            "late": "cmp_" + first(f"{waiting} OFFSET 50 LIMIT 1"),
            "decided": "cmp_" + first("SELECT filing_id FROM shards WHERE state = 'done' AND first_line = 0 LIMIT 1"),
            "batch": "batch_" + (batch := first("SELECT id FROM batches WHERE total > 0")),
            "line": f"cmp_{batch}_{MANY // 2}",
            "file": "file-" + first("SELECT file_id FROM batches WHERE total > 0"),
            "callback": "cbk_" + first("SELECT id FROM callbacks OFFSET 100 LIMIT 1"),
            "endpoint": "cep_" + first("SELECT id FROM callback_endpoints"),
        }


@pytest.mark.parametrize(
    "asked",
    [
        "GET /v1/comparisons/{next}",
        "GET /v1/comparisons/{late}",
        "GET /v1/comparisons/{decided}",
        "GET /v1/comparisons/{line}",
        "GET /v1/comparisons?after={late}",
        "POST /v1/comparisons",
        "POST /v1/comparisons/{next}/cancel",
        "GET /v1/batches",
        "GET /v1/batches/{batch}",
        "GET /v1/files",
        "GET /v1/files/{file}",
        "GET /v1/callbacks",
        "GET /v1/callbacks?status=dead",
        "GET /v1/callbacks?endpoint_id={endpoint}",
        "GET /v1/callbacks?object_id={decided}",
        "GET /v1/callbacks/{callback}",
        "POST /v1/callbacks/{callback}/replay",
        "GET /v1/callback-endpoints",
        "POST /v1/callback-endpoints/{endpoint}/test",
        "GET /readyz",
        "GET /dashboard/",
        "GET /dashboard/batches",
        "GET /dashboard/callbacks",
        "GET /dashboard/callbacks/{callback}",
        "GET /dashboard/comparisons/{line}",
        "GET /dashboard/comparisons/{decided}",
        "GET /dashboard/waiting?comparison={late}",
    ],
)
def test_no_request_reads_all_there_is(crowded: tuple[TestClient, Engine], asked: str) -> None:
    """Of twenty thousand rows none reads a fifth."""
    client, owner = crowded
    method, _, path = asked.format(**ids(owner)).partition(" ")
    with counting() as read:
        answer = client.request(method, path, json=PAIR if method == "POST" and path == "/v1/comparisons" else None)
    assert answer.is_success, answer.text
    assert read, "nothing was counted"
    assert {table: rows for table, rows in read.items() if rows > BOUND} == {}
