"""Processes that begin while something is away wait for it, and end over nothing."""

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from chaos.proxy import Proxy
from sqlalchemy import Connection, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from structlog.testing import capture_logs
from support.waiting import wait_until

from infra.database import connect, newest_revision, persist
from infra.environment import child_environment
from infra.local.child import start_child
from infra.local.redis import Redis


def events(log: Path) -> list[str]:
    """What a process has logged so far, by name, without a line that it is at."""
    whole, _, _ = log.read_text().rpartition("\n")
    return [json.loads(line)["event"] for line in whole.splitlines() if line.startswith("{")]


def test_a_worker_that_begins_before_postgres_waits_for_it(database_url: str, redis_server: Redis, tmp_path: Path):
    """Its model loaded, it has a pulse while it waits; then it buries whom it could not bury before."""
    (tmp_path / "presence").mkdir()
    (tmp_path / "presence" / "some-host-1-dead.alive").touch()
    database = connect(database_url, application="test")

    def form_is(form: str) -> None:
        with database.begin() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = :form"), {"form": form})

    proxy = Proxy()
    url = make_url(database_url)
    link = proxy.link(url.port or 0)
    link.swallow()
    variables = {
        "NIGHTCOURT_ENGINE": "simulated",
        "NIGHTCOURT_LOG_FORMAT": "json",
        "NIGHTCOURT_DATABASE_URL": url.set(port=link.port).render_as_string(hide_password=False),
        "NIGHTCOURT_REDIS_URL": redis_server.url,
        "NIGHTCOURT_PRESENCE_DIR": str(tmp_path / "presence"),
        "NIGHTCOURT_PULSE_FILE": str(tmp_path / "pulse"),
        "NIGHTCOURT_HEARTBEAT_SECONDS": "1",
    }
    log = tmp_path / "worker.log"
    command = [sys.executable, "-P", "-m", "worker.app"]
    worker = start_child("worker", command, log=log, environment=child_environment(variables))
    try:
        wait_until(lambda: "database_unreachable" in events(log), within=60, what="the worker finds nobody there")
        os.utime(tmp_path / "pulse", (1, 1))
        wait_until(lambda: (tmp_path / "pulse").stat().st_mtime > 1, within=60, what="its pulse")
        form_is("0001")
        link.mend()
        wait_until(lambda: "tables_not_migrated" in events(log), within=60, what="the worker waits for its tables")
        form_is(newest_revision())
        wait_until(lambda: "worker_ready" in events(log), within=60, what="the worker is ready")
        said = events(log)
        assert said.index("dead_left_to_their_leases") < said.index("dead_worker_buried") < said.index("worker_ready")
        assert worker.poll() is None
    finally:
        worker.kill()
        proxy.close()
        database.dispose()


def test_work_in_hand_waits_for_a_connection_too(database_url: str):
    """A pool whose connections all hang is an outage like another: what is in hand is written when one is free."""
    database = connect(database_url, application="test", pool_size=1, overflow=0)
    database.pool._timeout = 0.05  # of five seconds

    def write(connection: Connection) -> int:
        return connection.execute(text("SELECT 1")).scalar_one()

    with ThreadPoolExecutor(1) as pool, capture_logs() as logs:
        with database.connect():
            with pytest.raises(PoolTimeoutError):
                persist(database, write, patience_seconds=0)
            written = pool.submit(persist, database, write, patience_seconds=30.0)
            wait_until(lambda: logs, within=20, what="no connection is free")
            assert not written.done()
        assert written.result() == 1
    assert {(line["event"], line["error"]) for line in logs} == {("database_unreachable", "TimeoutError")}
    database.dispose()
