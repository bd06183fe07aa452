"""What `nightcourt doctor` says of the walls: who logs in as whom, and what Postgres' own log would quote."""

from sqlalchemy import Connection, Engine, text
from support.waiting import wait_until

from infra.database import connect
from producer.cli import doctor


def test_a_process_that_logs_in_as_the_owner_is_named(database: Engine, database_url: str):
    """Row-level security would not hold for it."""
    with database.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        assert doctor._logins(connection).ok
        api = connect(database_url, application="api", pool_size=1)
        with api.connect():
            found = doctor._logins(connection)
        api.dispose()
        assert not found.ok
        assert "nightcourt-api as nightcourt:" in found.says
        wait_until(lambda: doctor._logins(connection).ok, within=20, what="its connection is gone")


def test_a_server_that_logs_parameters_is_told_of(connection: Connection):
    """They are what was sent."""
    assert doctor._what_postgres_logs(connection).ok
    connection.execute(text("SET log_parameter_max_length_on_error = -1"))
    found = doctor._what_postgres_logs(connection)
    assert not found.ok
    assert found.says.endswith("log_parameter_max_length_on_error = 0")
