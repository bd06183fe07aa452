"""What `nightcourt doctor` says of the walls: who logs in as whom, who may not look, what Postgres' log would quote."""

import pytest
from sqlalchemy import Connection, Engine, text
from support.desk import Desk
from support.dockets import batch
from support.waiting import wait_until

from infra import roles
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


@pytest.mark.parametrize(
    ("process", "kept_from"),
    [
        ("api", {"docket", "dispatcher", "callbacks"}),
        ("dispatcher", set()),
        ("worker", {"dispatcher", "callbacks"}),
        ("callbacks", {"workers", "docket", "dispatcher"}),
    ],
)
def test_a_process_own_login_that_may_not_look_is_named(
    connection: Connection, database_url: str, process: str, kept_from: set[str]
):
    """What waits is not found to be nothing, nor Postgres to be away, and everything else is looked at all the same."""
    batch(connection, 1)
    password = f"password-of-{process}"
    roles.let_in(connection, {process: password})
    found = {each.part: each for each in doctor._database(roles.url_as(database_url, process, password), within=60)}
    assert list(found) == [
        *("postgres", "tables", "workers", "docket", "dispatcher", "callbacks", "logins", "postgres' log")
    ]
    said = {part for part, each in found.items() if f"nightcourt_{process} may not look: the owner does" in each.says}
    assert said == kept_from
    assert not any(found[part].ok for part in kept_from)
    assert found["postgres"].ok
    assert found["logins"].ok


def test_the_owners_login_looks_at_everything(connection: Connection, database_url: str):
    """What waits is counted."""
    batch(connection, 1)
    found = {each.part: each for each in doctor._database(database_url, within=60)}
    assert "1 shards" in found["docket"].says
    assert not any("may not look" in each.says for each in found.values())


def test_a_login_that_postgres_refuses_is_told_of_in_its_words(database_url: str):
    """Start it, says doctor, and that it was a wrong password."""
    [found] = doctor._database(roles.url_as(database_url, "api", "wrong"), within=60)
    assert not found.ok
    assert 'password authentication failed for user "nightcourt_api"' in found.says


def test_receivers_that_fail_are_told_of_with_what_waits_for_them(desk: Desk):
    """They are somebody else's fault, so nothing is wrong; and what waits for nobody is not spoken of."""

    def said() -> str:
        with desk.database.connect() as connection:
            found = doctor._callbacks(connection)
        assert found.ok
        return found.says

    for port in range(1, 4):
        desk.tell(2, callback_url=f"http://127.0.0.1:{port}/nobody")
    desk.fan_out()
    assert said() == "6 are due"
    desk.do("UPDATE callback_endpoints SET failures = 5, open_until = now() + interval '1 h' WHERE url LIKE '%1'")
    desk.do("UPDATE callback_endpoints SET failures = 1, succeeded_at = NULL WHERE url LIKE '%2'")
    among = "4 wait for 2 receivers that fail or asked for time, 1 of them held for now"
    assert said() == f"2 are due; {among} (`nightcourt callbacks endpoints`)"
    desk.claim_callback(desk.release()[0])
    assert "; 4 wait" in said()
    desk.do("UPDATE callbacks SET state = 'dead', ended_at = now(), lease_token = NULL, lease_until = NULL")
    assert said() == "0 are due; 6 are dead (`nightcourt callbacks list --status dead`)"
