"""What a connection to Postgres is asked to hold to."""

import threading
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, Engine, make_url, text
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from structlog.testing import capture_logs

from infra import roles
from infra.database import Begin, at_once, await_tables, connect, persist, reason_or_kind
from infra.local.postgres import start_postgres

EXPECTED = {
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "15000",
}


@pytest.mark.parametrize(("setting", "value"), EXPECTED.items())
def test_postgres_looks_whether_we_are_still_there(database: Engine, setting: str, value: str):
    """Its own end of the connection has them, so that what a vanished worker has locked is soon free."""
    with database.connect() as connection:
        assert connection.execute(text(f"SHOW {setting}")).scalar_one() == value


@pytest.mark.parametrize("begin", [Engine.begin, at_once], ids=["a transaction", "a statement"])
def test_a_connection_that_died_unused_costs_one_more_try(database: Engine, database_url: str, begin: Begin):
    """Who tries again need not look at each connection first: all those that died with it are replaced."""
    untried = connect(database_url, application="test", pool_size=2, ping=False)

    def who(connection: Connection) -> int:
        return connection.execute(text("SELECT pg_backend_pid()")).scalar_one()

    with untried.connect() as one, untried.connect() as other:
        dead = {who(one), who(other)}
    with database.begin() as connection:
        connection.execute(text("SELECT pg_terminate_backend(pid, 10000) FROM unnest(:dead) pid"), {"dead": list(dead)})
    with capture_logs() as logs:
        assert persist(untried, who, patience_seconds=10, begin=begin) not in dead
        assert persist(untried, who, patience_seconds=0, begin=begin) not in dead
    untried.dispose()
    assert [each["event"] for each in logs] == ["database_unreachable"]


def test_a_server_that_takes_no_writes_is_away(database: Engine, database_url: str):
    """As one whose disk is full is made to be; once it takes them again, the same pool goes on."""
    name = make_url(database_url).database

    def make(which: str) -> None:
        with at_once(database) as connection:
            connection.execute(text(f'ALTER DATABASE "{name}" SET default_transaction_read_only = {which}'))

    def write(connection: Connection) -> int:
        return connection.execute(text("INSERT INTO judges (id, card) VALUES ('j', '{}')")).rowcount

    make("on")
    judges = connect(database_url, application="test", ping=False)
    with pytest.raises(OperationalError, match="read-only"):
        persist(judges, write, patience_seconds=0.5)
    make("off")
    assert persist(judges, write, patience_seconds=10) == 1
    judges.dispose()


def test_a_standby_is_not_worked_on(tmp_path: Path):
    """A pool that met one would stay with it: it answers whoever asks whether it is there."""
    folder = tmp_path / "postgres"
    start_postgres(folder).stop()
    (folder / "data" / "standby.signal").touch()
    server = start_postgres(folder)
    database = connect(server.url, application="test")
    try:
        with pytest.raises(OperationalError, match="hot standby"), database.connect():
            pass
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute("SELECT pg_promote()")
        with database.connect() as connection:
            assert not connection.execute(text("SELECT pg_is_in_recovery()")).scalar_one()
    finally:
        database.dispose()
        server.stop()


def test_who_waits_for_postgres_says_why(database_url: str):
    """By a wrong password no process ever starts, and whoever set it reads the log."""
    stop = threading.Event()
    database = connect(roles.url_as(database_url, "worker", "wrong"), application="test")
    with capture_logs() as logs:
        await_tables(database, stop, meanwhile=stop.set)
    assert [each["event"] for each in logs] == ["database_unreachable"]
    assert 'password authentication failed for user "nightcourt_worker"' in logs[0]["reason"]


def test_what_the_url_says_holds(database_url: str):
    """Whoever writes it there means it; what it does not speak of is ours, and so is the process's name."""
    said = {"target_session_attrs": "read-write", "connect_timeout": "7", "application_name": "theirs"}
    options = "-c work_mem=8MB -c statement_timeout=7s"
    url = make_url(database_url).update_query_dict({**said, "options": options})
    pool = connect(url.render_as_string(hide_password=False), application="test")
    with pool.connect() as connection:
        driver: Any = connection.connection.driver_connection
        told = driver.info.get_parameters()
        names = ("work_mem", "statement_timeout", "idle_in_transaction_session_timeout", "application_name")
        shown = [connection.execute(text(f"SHOW {name}")).scalar_one() for name in names]
    pool.dispose()
    assert (told["target_session_attrs"], told["connect_timeout"]) == ("read-write", "7")
    assert shown == ["8MB", "7s", "30s", "nightcourt-test"]


def test_only_who_cannot_connect_is_told_why(database: Engine):
    """What Postgres says of a statement may quote what was sent."""
    away = connect("postgresql://nobody@127.0.0.1:1/nothing", application="test")
    with pytest.raises(OperationalError) as refused, away.connect():
        pass
    assert "port 1 failed" in reason_or_kind(refused.value)
    with pytest.raises(SQLAlchemyError) as failed, database.connect() as connection:
        connection.execute(text("SELECT 'secret'::int"))
    assert reason_or_kind(failed.value) == type(failed.value).__name__
