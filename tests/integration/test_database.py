"""What a connection to Postgres is asked to hold to."""

import pytest
from sqlalchemy import Connection, Engine, text
from structlog.testing import capture_logs

from infra.database import Begin, at_once, connect, persist

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
