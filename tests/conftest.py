"""What all tests stand on: a real Postgres and a real Redis from wheels, started once, and a database each."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from sqlalchemy import Engine
from sqlalchemy.engine import make_url
from support.canaries import nothing_leaks, pytest_runtest_logreport
from support.databases import own_database

from infra.database import connect
from infra.local.postgres import Postgres, start_postgres
from infra.local.redis import Redis, start_redis
from infra.migrating import migrate

__all__ = ["nothing_leaks", "pytest_runtest_logreport"]
"""What pytest finds here and has to run: see `support/canaries.py`."""

settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")  # a busy machine is no finding, however long it takes over an example

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--full`, which runs the slow tests too, and `--storm-seed`, which lets a storm be seen again."""
    parser.addoption("--full", action="store_true", help="run the slow and long tests in full")
    parser.addoption("--storm-seed", type=int, help="the seed of the storms in tests/chaos, in place of their own")


def pytest_configure() -> None:
    """Let Ctrl-C and a closed terminal be heard by the programs under test, however the run was started.

    Whatever a shell starts in the background, or under nohup, ignores them, and what that starts does too: but for
    those that a process handles, which are as usual in the programs that it starts.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the slow tests out of a plain run."""
    if config.getoption("--full"):
        return
    skip = pytest.mark.skip(reason="slow: runs with --full (make test-all)")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """A real Postgres, for the whole run."""
    server = start_postgres(tmp_path_factory.mktemp("postgres"), fast=True)
    yield server
    server.stop()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    """A real Redis, for the whole run."""
    server = start_redis(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def template(postgres: Postgres) -> str:
    """The name of a database with all tables, from which each test's own is copied."""
    migrate(postgres.url)
    return make_url(postgres.url).database or ""


@pytest.fixture
def database_url(postgres: Postgres, template: str) -> Iterator[str]:
    """A database of the test's own."""
    with own_database(postgres, template) as url:
        yield url


@pytest.fixture
def database(database_url: str) -> Iterator[Engine]:
    """A pool of connections to the test's own database."""
    engine = connect(database_url, application="test")
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real judged pairs beside the checkout; tests that need it are skipped where it is absent."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip("the folder shared/data with real judged pairs is not beside this checkout")
    return folder
