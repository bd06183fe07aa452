"""In the middle of an upgrade: processes of a release wait for its tables, and those of the one before go on."""

import threading

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, text
from support.waiting import wait_until

from infra.database import await_tables, newest_revision

OLDER = "0001"
REVISION = text("UPDATE alembic_version SET version_num = :revision")


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ("UPDATE alembic_version SET version_num = '0001'", 503),
        ("DELETE FROM alembic_version", 503),
        ("DROP TABLE alembic_version", 503),
        ("UPDATE alembic_version SET version_num = '9999'", 200),
    ],
)
def test_the_api_is_ready_on_its_tables_and_on_later_ones(
    client: TestClient, database: Engine, change: str, status: int
):
    """Before the migration a new process gets no requests, and after it an old one goes on getting them."""
    assert client.get("/readyz").status_code == 200
    with database.begin() as connection:
        connection.execute(text(change))
    answer = client.get("/readyz")
    assert answer.status_code == status
    assert ("run `nightcourt migrate`" in answer.text) is (status == 503)


def test_other_processes_wait_for_their_tables(database: Engine):
    """They look again and again, and go on once the tables are there."""
    with database.begin() as connection:
        connection.execute(REVISION, {"revision": OLDER})
    looked = threading.Semaphore(0)
    waiting = threading.Thread(
        target=await_tables, args=(database, threading.Event()), kwargs={"meanwhile": looked.release}
    )
    waiting.start()
    for _ in range(2):
        assert looked.acquire(timeout=30)
    assert waiting.is_alive()
    with database.begin() as connection:
        connection.execute(REVISION, {"revision": newest_revision()})
    wait_until(lambda: not waiting.is_alive(), within=30, what="it goes on")


def test_who_waits_for_tables_can_be_told_to_end(database: Engine):
    """A process that is stopped meanwhile waits no longer."""
    with database.begin() as connection:
        connection.execute(REVISION, {"revision": OLDER})
    stop = threading.Event()
    stop.set()
    await_tables(database, stop)
