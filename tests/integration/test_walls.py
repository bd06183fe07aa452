"""The second wall: what Postgres itself keeps from a tenant and from a process, whatever the code above asks for."""

import asyncio
import json
import math
import re
import threading
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import astuple, fields, replace
from types import ModuleType
from typing import Any

import httpx2
import pytest
from sqlalchemy import Connection, Engine, TextClause, create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, OperationalError, ProgrammingError
from support.keys import a_key, bearer

import schemas.tables  # noqa: F401 - all tables stand in the metadata by this
from infra import callback_secrets, callbacks_sql, docket_sql, outcomes, precedents, roles, roster
from infra import database as database_module
from infra.database import connect_async, tenant
from infra.migrating import migrate
from infra.outcomes import Outcome
from infra.settings import Settings
from producer import (
    batches,
    callback_endpoints,
    callbacks,
    files,
    idempotency,
    keys,
    lifecycle,
    limits,
    outputs,
    progress,
    results,
    retention,
    sessions,
    survey,
    waiting,
)
from producer.api import files as files_api
from producer.api.app import create_app
from producer.dashboard import crew, receivers, verdicts
from schemas.base import Base
from schemas.keys import Scope
from schemas.problems import OutcomeError, Problem
from schemas.states import OutcomeStatus

PASSWORDS = {process: f"password-of-{process}" for process in roles.PROCESSES}
OPEN = {"judges", "workers", "keys", "sessions", "tombstones"}
"""Tables without policies: what judged, who is at work, tenants that are no more, and keys, which are looked up before
anyone knows whose they are."""
TENANTS = sorted(set(Base.metadata.tables) - OPEN)
REFUSED = "42501"
LINE = {"prompt": "Which?", "response_a": "this", "response_b": "that"}

Call = Callable[..., Awaitable[httpx2.Response]]


@pytest.fixture
def api_url(database_url: str) -> str:
    """Where the database is, as the API logs in to it."""
    migrate(database_url, PASSWORDS)
    return roles.url_as(database_url, "api", PASSWORDS["api"])


def log_in(database_url: str, process: str) -> Engine:
    """A pool of connections as a process has them."""
    url = roles.url_as(database_url, process, PASSWORDS[process])
    return create_engine(make_url(url).set(drivername="postgresql+psycopg"))


@asynccontextmanager
async def edge(url: str, owners_url: str) -> AsyncIterator[Call]:
    """The API on a database, called by a tenant's key."""
    headers = {whose: bearer(a_key(owners_url, tenant=whose)) for whose in ("theirs", "ours")}
    stores = {"database_url": url, "redis_url": "redis://127.0.0.1:9/0"}
    settings = Settings(**stores, secret_keys="0123456789abcdef" * 4, callback_allow=("127.0.0.1",))
    app = create_app(settings)

    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://test") as http,
    ):

        async def call(whose: str, method: str, path: str, **options: Any) -> httpx2.Response:
            sent = {**headers[whose], **options.pop("headers", {})}
            return await http.request(method, path, headers=sent, **options)

        yield call


async def fill(call: Call, whose: str) -> dict[str, str]:
    """Do everything that leaves rows, as a tenant. Returns the ids of what was made."""

    async def post(path: str, **options: Any) -> dict[str, Any]:
        answer = await call(whose, "POST", path, **options)
        assert answer.is_success, answer.text
        return dict(answer.json())

    await post("/v1/callback-secret", json={})
    hook = "http://127.0.0.1:9/hook"
    endpoint = await post("/v1/callback-endpoints", json={"url": hook})
    callback = await post(f"/v1/callback-endpoints/{endpoint['id']}/test")
    line = {**LINE, "prompt": f"Which is {whose}?"}
    comparison = await post("/v1/comparisons", json={**line, "callback_url": hook}, headers={"Idempotency-Key": "once"})
    lines = "\n".join([json.dumps({"custom_id": f"{n}", **line}) for n in range(3)] + ["{}"])
    file = await post("/v1/files", files={"file": ("f.jsonl", lines.encode())}, data={"purpose": "batch"})
    body = {"input_file_id": file["id"], "endpoint": "/v1/comparisons", "completion_window": "24h"}
    batch = await post("/v1/batches", json={**body, "on_bad_line": "skip"})
    return {name: each["id"] for name, each in locals().items() if isinstance(each, dict) and "id" in each}


@pytest.fixture
def theirs(api_url: str, database: Engine, database_url: str) -> dict[str, str]:
    """What another tenant has: something in every table, filed by the API under the wall."""

    async def file() -> dict[str, str]:
        async with edge(api_url, database_url) as call:
            return await fill(call, "theirs")

    ids = asyncio.run(file())
    with database.begin() as connection:
        connection.execute(
            text("""
                INSERT INTO callback_attempts (callback_id, number, at, seconds, reason)
                SELECT id, 1, now(), 0, 'timeout' FROM callbacks
            """)
        )
    return ids


@pytest.fixture
def api(api_url: str) -> Iterator[Connection]:
    """The API's own connection, each statement a transaction."""
    engine = create_engine(make_url(api_url).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def be(api: Connection, whose: str) -> None:
    """Speak for a tenant from here on."""
    api.execute(text("SELECT set_config('nightcourt.tenant', :whose, false)"), {"whose": whose})


def may(connection: Connection, privilege: str, table: str, column: str) -> bool:
    """Whether who is connected has a privilege; of a table to delete from it, of a column to change it."""
    which = "has_table_privilege(:table, :privilege)"
    if privilege == "UPDATE":
        which = "has_column_privilege(:table, :column, :privilege)"
    names = {"table": table, "column": column, "privilege": privilege}
    return bool(connection.execute(text(f"SELECT {which}"), names).scalar_one())


class TestTenants:
    def test_every_table_has_a_wall(self, database: Engine, api_url: str):
        """A table that is added later is in the list of those without a tenant, or has policies."""
        with database.connect() as connection:
            walled = connection.execute(
                text("SELECT relname FROM pg_class WHERE relrowsecurity AND relnamespace = 'public'::regnamespace")
            ).scalars()
            assert sorted(walled) == TENANTS

    def test_nothing_of_another_tenant_is_read(self, theirs: dict[str, str], api: Connection):
        """Without any WHERE, a tenant's own rows come from every table, and another's from none."""
        for table in TENANTS:
            count = text(f"SELECT count(*) FROM {table}")  # noqa: S608 (names from the metadata)
            for whose, sees in (("theirs", True), ("ours", False), ("", False)):
                be(api, whose)
                assert (api.execute(count).scalar_one() > 0) is sees, (table, whose)

    def test_nothing_is_written_for_another_tenant(self, theirs: dict[str, str], api: Connection, database: Engine):
        """A row of theirs is neither made, nor changed, nor deleted by us."""
        for table in TENANTS:
            with database.connect() as connection:
                row = connection.execute(text(f"SELECT to_json(t) FROM {table} t LIMIT 1")).scalar_one()  # noqa: S608
            be(api, "ours")
            insert = (
                f"INSERT INTO {table} OVERRIDING SYSTEM VALUE SELECT * FROM json_populate_record(NULL::{table}, :row)"  # noqa: S608
            )
            with pytest.raises(DBAPIError) as refused:
                api.execute(text(insert), {"row": json.dumps(row)})
            assert getattr(refused.value.orig, "sqlstate", "") == REFUSED, (table, refused.value)
            for privilege, change in (("DELETE", "DELETE FROM {}"), ("UPDATE", "UPDATE {0} SET {1} = {1}")):
                if may(api, privilege, table, column := next(reversed(row))):
                    assert api.execute(text(change.format(table, column))).rowcount == 0, (table, change)
        with database.connect() as connection:
            for table in TENANTS:
                assert connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one() > 0  # noqa: S608

    def test_a_transaction_is_of_one_tenant(self, theirs: dict[str, str], api_url: str):
        """Each transaction of the API sees the rows of the task's tenant, and the next has forgotten whose it was."""

        async def seen() -> list[int]:
            database = connect_async(api_url, application="test", pool_size=1)
            counts = []
            for whose in ("theirs", "ours", None):
                tenant.set(whose)
                async with database.connect() as connection:
                    counts.append((await connection.execute(text("SELECT count(*) FROM comparisons"))).scalar_one())
            await database.dispose()
            return counts

        first, *others = asyncio.run(seen())
        assert first > 0
        assert others == [0, 0]

    def test_the_queue_tells_of_everyones_lines_and_of_no_one(self, theirs: dict[str, str], api: Connection):
        """How much waits is the same for all to see, without whose it is."""
        be(api, "ours")
        seen = api.execute(text("SELECT * FROM queue")).mappings().all()
        assert len(seen) > 0
        assert {"tenant", "filing_id", "source_id"} & set(seen[0]) == set()


class TestPurged:
    def test_no_trace_is_left(self, theirs: dict[str, str], api_url: str, database: Engine, database_url: str):
        """After a purge no table holds an id or a text of the tenant, but its tombstone; and nothing else is gone."""

        async def ours() -> None:
            async with edge(api_url, database_url) as call:
                await fill(call, "ours")

        asyncio.run(ours())
        with database.begin() as connection:
            keys.create(connection, tenant="theirs", scopes=[Scope.READ])
            before = everything(connection)
        traces = {"theirs", *(re.sub(r"^(\w+[_-])+", "", each) for each in theirs.values())}
        assert {trace for trace in traces if trace in written(before)} == traces
        assert retention.delete_tenant(database, "theirs") > len(TENANTS)
        with database.connect() as connection:
            after = everything(connection)
        tombstones = after.pop("tombstones")
        assert [row["tenant"] for row in tombstones] == ["theirs"]
        assert tombstones[0]["finished_at"] is not None
        assert {trace for trace in traces if trace in written(after)} == set()
        for table in TENANTS:
            assert [row for row in before[table] if row in after[table]] == after[table]
            assert after[table] or table == "callback_attempts", table

    def test_nothing_is_filed_for_it_again(self, theirs: dict[str, str], api: Connection, database: Engine):
        """Postgres refuses the API's rows, were a request still under way; and no new key is made of its name."""
        retention.delete_tenant(database, "theirs")
        be(api, "theirs")
        with pytest.raises(DBAPIError) as refused:
            api.execute(
                text("INSERT INTO files (id, tenant, filename, purpose, state) VALUES (:id, 'theirs', '', '', '')"),
                {"id": uuid.uuid4()},
            )
        assert getattr(refused.value.orig, "sqlstate", "") == REFUSED
        with database.begin() as connection, pytest.raises(Problem, match="was purged"):
            keys.create(connection, tenant="theirs", scopes=[Scope.READ])

    def test_a_key_that_is_still_known_is_good_for_nothing(self, api_url: str, database: Engine, database_url: str):
        """For the seconds in which the API has not looked its key up again it is told the same as after them."""
        form = {"files": {"file": ("f.jsonl", json.dumps(LINE).encode())}, "data": {"purpose": "batch"}}

        async def file() -> list[tuple[int, str]]:
            async with edge(api_url, database_url) as call:
                assert (await call("theirs", "GET", "/v1/comparisons")).status_code == 200
                await asyncio.to_thread(retention.delete_tenant, database, "theirs")
                single = await call("theirs", "POST", "/v1/comparisons", json=LINE)
                upload = await call("theirs", "POST", "/v1/files", **form)
                assert (await call("ours", "POST", "/v1/comparisons", json=LINE)).status_code == 202
                return [
                    (single.status_code, single.json()["code"]),
                    (upload.status_code, upload.json()["error"]["code"]),
                ]

        assert asyncio.run(file()) == [(401, "key_invalid")] * 2

    def test_it_waits_for_what_is_being_filed(self, theirs: dict[str, str], api_url: str, database: Engine):
        """A transaction that was filing when the purge began is let end, and what it filed goes too."""
        engine = create_engine(make_url(api_url).set(drivername="postgresql+psycopg"))
        purge = threading.Thread(target=retention.delete_tenant, args=(database, "theirs"))
        with engine.begin() as filing:
            be(filing, "theirs")
            filing.execute(
                text("INSERT INTO idempotency_keys VALUES ('theirs', 'late', '\\x00', :id)"), {"id": uuid.uuid4()}
            )
            purge.start()
            purge.join(0.5)
            assert purge.is_alive()
        purge.join(30)
        engine.dispose()
        with database.connect() as connection:
            assert everything(connection)["idempotency_keys"] == []


def written(rows: dict[str, list[dict[str, Any]]]) -> str:
    """All of it as text, ids as they stand in the API."""
    return re.sub(r"(?<=[0-9a-f])-(?=[0-9a-f])", "", json.dumps(rows))


def everything(connection: Connection) -> dict[str, list[dict[str, Any]]]:
    """All rows of all tables, as JSON."""
    return {
        table: [row for (row,) in connection.execute(text(f"SELECT to_json(t) FROM {table} t"))]  # noqa: S608
        for table in sorted(Base.metadata.tables)
    }


def statements_of(module: ModuleType, *names: str) -> dict[str, TextClause]:
    """Statements of a module, by name: all, or those that are named."""
    found = {name: each for name, each in vars(module).items() if isinstance(each, TextClause)}
    for name, each in vars(module).items():
        if isinstance(each, tuple | dict):
            several = list(each.values()) if isinstance(each, dict) else each
            found |= {f"{name}[{n}]": one for n, one in enumerate(several) if isinstance(one, TextClause)}
    assert set(names) <= set(found), set(names) - set(found)
    return {f"{module.__name__}.{name}": each for name, each in found.items() if not names or name in names}


_TOLD = ("TELL_COMPARISONS",)
_LOSING = ("LOSE", "COUNT_LEFT", "PUT_BACK", "SPLIT", "FAIL", "HOLD", "RECORD", "FINISH")
NEEDS = {
    "api": {
        **statements_of(docket_sql, "FILE", "FILE_BATCH", "CALLED_OFF", "CANCEL", "RECALL", "OLDEST_DUE"),
        **statements_of(callbacks_sql, "TELL_BATCHES"),
        **statements_of(roster, "_CAPACITY", "_PRESENT"),
        **statements_of(callback_secrets),
        **statements_of(batches),
        **statements_of(callback_endpoints),
        **statements_of(callbacks),
        **statements_of(files),
        **statements_of(files_api),
        **statements_of(idempotency),
        **statements_of(keys, "_FIND", "_WHOSE", "_WHOSE_IF_GOOD"),
        **statements_of(sessions),
        **statements_of(limits),
        **statements_of(survey, "_SHARDS"),
        **statements_of(crew),
        **statements_of(receivers),
        **statements_of(verdicts, "_LAST", "_REASONS", "_BODY", "_NEIGHBOURS"),
        **statements_of(outputs),
        **statements_of(results),
        **statements_of(retention, "LOCK_FILE", "CLOSE_FILE", *(f"OF_FILE[{n}]" for n in range(4))),
        **statements_of(waiting),
    },
    "dispatcher": {
        **statements_of(docket_sql, "RELEASE", "RELEASE_BULK", "WITHDRAW", "HINT_AGAIN", "RECALL_CLOSED"),
        **statements_of(docket_sql, "LAPSED", "LONGEST_LAPSED", "LATE", "EXPIRE", "CANCEL", *_LOSING),
        **statements_of(docket_sql, "CALLED_OFF_UNLOCKED"),
        **statements_of(callbacks_sql, "FAN_OUT", "RELEASE", "WITHDRAW", "HINT_AGAIN", "RECLAIM", "BURY"),
        **statements_of(callbacks_sql, "ALONE", "TELL_BATCHES", *_TOLD),
        **statements_of(outcomes),
        **statements_of(roster, "_CAPACITY", "_FORGET"),
        **statements_of(lifecycle),
        **statements_of(progress),
        **statements_of(survey),
        **{
            name: each
            for name, each in statements_of(retention).items()
            if re.search(r"\._?(OLD_\w+|CLOSE_\w+|LOCK_FILE|FREE_KEY|OF_BATCH|OF_FILE|ABANDONED)\b", name)
        },
    },
    "worker": {
        **statements_of(docket_sql, "CLAIM", "LINES", "LINES_LEFT", "RENEW", "NOTE", "GIVE_BACK"),
        **statements_of(docket_sql, "HELD_BY", "DOUBT_HINTS", *_LOSING),
        **statements_of(callbacks_sql, *_TOLD),
        **statements_of(outcomes),
        **statements_of(precedents),
        **statements_of(roster, "_REPORT", "_LEAVE", "_ENROLL"),
    },
    "callbacks": {
        **statements_of(callbacks_sql, "CLAIM", "RECORD", "PUT_BACK"),
        **statements_of(callback_secrets, "_READ"),
    },
}
NEEDS = {process: {**needs, **statements_of(database_module, "_REVISION")} for process, needs in NEEDS.items()}

MUST_NOT = {
    "api": [
        "SELECT rolpassword FROM pg_authid",
        "INSERT INTO keys DEFAULT VALUES",
        "UPDATE keys SET scopes = '{admin}'",
        "DELETE FROM judges",
        "UPDATE outcomes SET status = 'errored'",
        "UPDATE comparisons SET body = ''",
        "SELECT nextval('lease_tokens')",
        "ALTER TABLE comparisons DISABLE ROW LEVEL SECURITY",
        "DROP POLICY own ON comparisons",
        "SET ROLE nightcourt_worker",
        "CREATE TABLE of_its_own (id int)",
    ],
    "dispatcher": [
        "SELECT hash FROM keys",
        "SELECT body FROM comparisons",
        "SELECT custom_id FROM comparisons",
        "SELECT secret FROM callback_secrets",
        "INSERT INTO comparisons DEFAULT VALUES",
        "UPDATE outcomes SET status = 'errored'",
    ],
    "worker": [
        "SELECT hash FROM keys",
        "SELECT secret FROM callback_secrets",
        "SELECT url FROM callback_endpoints",
        "SELECT * FROM files",
        "SELECT * FROM idempotency_keys",
        "DELETE FROM comparisons",
        "DELETE FROM outcomes",
        "UPDATE outcomes SET status = 'errored'",
        "UPDATE batches SET status = 'completed'",
    ],
    "callbacks": [
        "SELECT hash FROM keys",
        "SELECT body FROM comparisons",
        "SELECT tally FROM outcomes",
        "SELECT * FROM shards",
        "SELECT * FROM files",
        "INSERT INTO callback_secrets DEFAULT VALUES",
        "UPDATE callback_secrets SET secret = ''",
        "DELETE FROM callbacks",
    ],
}


@pytest.mark.parametrize("process", roles.PROCESSES)
class TestProcesses:
    def test_a_process_may_do_what_it_does(self, api_url: str, database_url: str, process: str):
        """Postgres plans each of its statements for it, which it does for nobody who may not run them."""
        engine = log_in(database_url, process)
        refused = {}
        for name, statement in NEEDS[process].items():
            with engine.connect() as connection:
                try:
                    connection.execute(text("EXPLAIN " + re.sub(r"(?<!:):\w+", "NULL", statement.text)))
                except ProgrammingError as error:
                    refused[name] = str(error.orig)
        engine.dispose()
        assert refused == {}

    def test_a_process_may_do_nothing_else(self, api_url: str, database_url: str, process: str):
        """What belongs to another process is refused, whoever runs the code of this one."""
        engine = log_in(database_url, process)
        for statement in MUST_NOT[process]:
            with engine.connect() as connection, pytest.raises(DBAPIError) as refused:
                connection.execute(text(statement))
            assert getattr(refused.value.orig, "sqlstate", "") == REFUSED, statement
        engine.dispose()

    def test_a_process_logs_in_by_its_password_alone(self, api_url: str, database_url: str, process: str):
        """Not by another's, and not without."""
        for password in ("", PASSWORDS["api" if process != "api" else "worker"]):
            with pytest.raises(OperationalError, match="password"):
                create_engine(
                    make_url(roles.url_as(database_url, process, password)).set(drivername="postgresql+psycopg")
                ).connect()


def test_the_worker_alone_copies_past_the_wall(api_url: str, database_url: str):
    """Of those who look at every tenant's rows, only who stores outcomes by the thousand bypasses policies."""
    bypasses = {}
    for process in roles.PROCESSES:
        engine = log_in(database_url, process)
        with engine.connect() as connection:
            bypasses[process] = not connection.execute(text("SELECT row_security_active('outcomes')")).scalar_one()
        engine.dispose()
    assert bypasses == {"api": False, "dispatcher": False, "worker": True, "callbacks": False}


@pytest.mark.parametrize("process", ["worker", "dispatcher"])
def test_outcomes_are_copied_in_whichever_way_is_open(api_url: str, database: Engine, database_url: str, process: str):
    """Straight, or by a table in between, twice on one connection: what is stored is what was given, bit by bit."""
    filing, last = uuid.uuid4(), 2**31 - 1
    why = {"error_code": OutcomeError.ENGINE_CRASHED, "error_message": "a\tb\\c\n…"}
    crashed = Outcome(1, OutcomeStatus.ERRORED, None, None, last, -1, math.inf, **why)
    decided = Outcome(last, OutcomeStatus.SUCCEEDED, '{"é": "\\\\N"}', "", 0, 0, 0.1, b"\0\xff", reused=True)
    engine = log_in(database_url, process)
    for outcome in (crashed, decided):
        with engine.begin() as connection:
            outcomes.copy_in(connection, [outcome], filing_id=filing, tenant="théirs", attempt=3)
    refused = replace(crashed, line=2, error_message="a\0b")
    with pytest.raises(DBAPIError), engine.begin() as connection:
        outcomes.copy_in(connection, [refused], filing_id=filing, tenant="theirs", attempt=1)
    engine.dispose()
    names = [column.name for column in fields(Outcome)]
    columns = ", ".join(["tally::text" if name == "tally" else name for name in names])
    with database.connect() as connection:
        stored = connection.execute(text(f"SELECT {columns}, filing_id, tenant, attempt FROM outcomes ORDER BY line"))  # noqa: S608
        assert stored.all() == [(*astuple(each), filing, "théirs", 3) for each in (crashed, decided)]
