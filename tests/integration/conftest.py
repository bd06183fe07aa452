"""What the tests of the tables share."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Connection, Engine, text
from support.canaries import watch_answer
from support.court import Court, ScriptedEngine
from support.desk import Desk
from support.inbox import Inbox, open_inbox
from support.keys import a_key, bearer
from support.tenants import WALLS, Tenants, open_tenants
from support.waiting import wait_until

from infra import roster
from infra.database import connect
from infra.local.postgres import Postgres
from infra.meters import Meters
from infra.settings import Settings
from producer.api.app import create_app
from schemas.verdict import Judge
from worker import prompts
from worker.admission import Gate
from worker.bench import Bench, Rules
from worker.engines.metered import MeteredEngine


@pytest.fixture
def connection(database: Engine) -> Iterator[Connection]:
    """A connection whose every statement is a transaction of its own, on tables that know one judge."""
    with database.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("INSERT INTO judges (id, card) VALUES ('jdg_test', '{}')"))
        yield connection


@pytest.fixture
def meanwhile(database: Engine) -> Iterator[Callable[..., Future[Any]]]:
    """Start something beside the test, and come back when it waits for what the test has not committed yet."""

    def waits() -> bool:
        found = text("SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")
        with database.connect() as connection:
            return bool(connection.execute(found).all())

    def start(move: Callable[..., Any], *arguments: Any, **options: Any) -> Future[Any]:
        future = pool.submit(move, *arguments, **options)
        wait_until(lambda: future.done() or waits(), within=60, every=0.005, what="it waits")
        assert not future.done(), "it did not wait"
        return future

    with ThreadPoolExecutor() as pool:
        yield start


@pytest.fixture
def engine() -> ScriptedEngine:
    """An engine that prefers the first slot, until the test says otherwise."""
    return ScriptedEngine()


@pytest.fixture
def court(database_url: str, database: Engine, engine: ScriptedEngine) -> Iterator[Court]:
    """A worker with that engine, at temperature 2 and with three attempts, on a database of its own."""
    with database.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        judges = {
            name: roster.enroll(
                connection,
                Judge(
                    model="none",
                    weights="sha256:0",
                    quantisation="none",
                    engine="scripted",
                    engine_build="1",
                    profile=name,
                    prompt=profile.sha256,
                    temperature=2.0,
                    simulated=False,
                    caveat=None,
                ),
            )
            for name, profile in prompts.PROFILES.items()
        }
        own = connect(database_url, application="bench")
        bench = Bench(
            engine=MeteredEngine(engine, Meters("worker")),
            gate=Gate(100_000),
            database=own,
            rules=Rules(
                worker="w1", lease_seconds=60, max_attempts=3, mass_threshold=0.5, calibrated=dict.fromkeys(judges, 2.0)
            ),
            judges=judges,
        )
        yield Court(bench, connection)
        own.dispose()


@pytest.fixture
def desk(database: Engine, database_url: str) -> Desk:
    """A desk on tables that know one judge, with a secret for what goes to requests' own URLs."""
    with database.begin() as connection:
        connection.execute(text("INSERT INTO judges (id, card) VALUES ('jdg_test', '{}')"))
    desk = Desk(database, database_url)
    desk.default = desk.default_secret()
    return desk


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    """A receiver on loopback that takes everything."""
    with open_inbox() as inbox:
        yield inbox


@pytest.fixture
def client(database_url: str) -> Iterator[TestClient]:
    """The HTTP edge, on the test's own database, with a key that may do everything, signed in to the dashboard."""
    key = a_key(database_url)
    settings = Settings(database_url=database_url, secret_keys="0123456789abcdef" * 4)
    with TestClient(create_app(settings), base_url="http://127.0.0.1", headers=bearer(key)) as client:
        client.event_hooks = {"response": [watch_answer]}
        assert client.post("/dashboard/login", data={"key": key}).status_code == 200
        yield client


@pytest.fixture(scope="module", params=WALLS)
def tenants(request: pytest.FixtureRequest, postgres: Postgres, template: str) -> Iterator[Tenants]:
    """Two tenants whom one wall keeps apart, the other being taken away."""
    with open_tenants(postgres, template, request.param) as tenants:
        yield tenants


@pytest.fixture(scope="module")
def unwalled(postgres: Postgres, template: str) -> Iterator[Tenants]:
    """Two tenants whom nothing keeps apart."""
    with open_tenants(postgres, template) as tenants:
        yield tenants
