"""Postgres from the wheel: for any user, on old data, after any crash, closed to those without the password."""

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
from support.processes import processes_of
from support.waiting import wait_until

from infra.local import LocalStackError, StartCancelledError, launch, postgres
from infra.local.child import start_child
from infra.local.postgres import Postgres, start_postgres

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")

# A namespace with all users in it, where we are root, stands for a container; inside it no further one is allowed.
CONTAINER = """
import sys
from pathlib import Path
from infra.local import launch
assert launch._libc.unshare(launch._CLONE_NEWUSER) == 0
print("unshared", flush=True)
assert sys.stdin.readline() == "mapped\\n"
Path("/proc/sys/user/max_user_namespaces").write_text("0")
"""
START_AND_PRINT = """
import os, sys
from pathlib import Path
import psycopg
from infra.local.postgres import start_postgres
server = start_postgres(Path(sys.argv[1]), fast=True)
with psycopg.connect(server.url) as connection:
    connection.execute("CREATE TABLE kept AS SELECT 1 AS one")
print(os.geteuid(), Path(f"/proc/{server.child.pid}").stat().st_uid)
server.stop()
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """One server for all tests that leave it as it was."""
    running = start_postgres(tmp_path_factory.mktemp("shared") / "postgres", fast=True)
    yield running
    running.stop()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder of its own for a server, on which nothing may be left running."""
    yield tmp_path / "postgres"
    left = processes_of(tmp_path)
    assert not left


def refusal(url: str, **changes: str) -> str:
    """The words in which a login is refused."""
    with pytest.raises(psycopg.OperationalError) as refused:
        psycopg.connect(url, **changes)
    return str(refused.value)


def test_it_serves_a_database_in_utf8(server: Postgres) -> None:
    """A login finds the database, which knows letters beyond ASCII and sorts by code point."""
    with psycopg.connect(server.url) as connection:
        row = connection.execute(
            "SELECT current_database(), current_setting('server_encoding'), lower('ÄÖ'), 'a' > 'B'"
        ).fetchone()
    assert row == ("nightcourt", "UTF8", "äö", True)


def test_a_login_without_the_password_is_refused(server: Postgres) -> None:
    """Neither a wrong password nor none opens it, whichever database or user is named."""
    assert "password authentication failed" in refusal(server.url, password="guess")  # noqa: S106
    no_password = f"postgresql://nightcourt@127.0.0.1:{server.port}"
    assert "no password supplied" in refusal(f"{no_password}/nightcourt")
    assert "no password supplied" in refusal(f"{no_password}/postgres", user="postgres")


def test_it_listens_on_loopback_alone(server: Postgres) -> None:
    """There is one socket, on 127.0.0.1, and none in the file system."""
    with psycopg.connect(server.url) as connection:
        settings = connection.execute(
            "SELECT current_setting('listen_addresses'), current_setting('unix_socket_directories')"
        ).fetchone()
    assert settings == ("127.0.0.1", "")


def test_its_secrets_are_private(server: Postgres) -> None:
    """Nobody else may read the password or the data, and the password is in no argument and no repr."""
    password = psycopg.conninfo.conninfo_to_dict(server.url)["password"]
    assert isinstance(password, str)
    assert len(password) >= 32
    folder = server.child.log.parent
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [folder, *folder.iterdir()]}
    assert modes == {"postgres": 0o700, "data": 0o700, "password": 0o600, "postgres.log": 0o600}
    assert password not in Path(f"/proc/{server.child.pid}/cmdline").read_text()
    assert password not in repr(server)


@root_only
def test_as_root_it_runs_without_the_powers_of_root(server: Postgres) -> None:
    """Started by root, the server holds no capability at all."""
    status = Path(f"/proc/{server.child.pid}/status").read_text()
    assert "CapEff:\t0000000000000000" in status


@root_only
def test_it_runs_for_a_normal_user(tmp_path: Path) -> None:
    """Somebody who is not root gets a server of their own."""
    os.chown(tmp_path, launch.NOBODY, launch.NOBODY)
    # Keeps the power to pass closed folders: our Python may stand below a home that is closed to others.
    drop = (
        "import os, sys; from infra.local import launch; launch._become_nobody(); os.execv(sys.argv[1], sys.argv[1:])"
    )
    command = [sys.executable, "-c", drop, sys.executable, "-c", START_AND_PRINT, str(tmp_path / "postgres")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == (f"{launch.NOBODY} {launch.NOBODY}\n", "")
    assert not processes_of(tmp_path)


@root_only
def test_where_user_namespaces_are_forbidden_root_becomes_nobody(tmp_path: Path) -> None:
    """In a container that forbids user namespaces, as most do, the server runs as nobody on nobody's data."""
    command = [sys.executable, "-c", CONTAINER + START_AND_PRINT, str(tmp_path / "postgres")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as container:
        assert container.stdin is not None
        assert container.stdout is not None
        assert container.stdout.readline() == "unshared\n"
        for table in ("uid_map", "gid_map"):
            Path(f"/proc/{container.pid}/{table}").write_text("0 0 65536")
        container.stdin.write("mapped\n")
        container.stdin.flush()
        assert container.stdout.read() == f"0 {launch.NOBODY}\n"
    assert container.returncode == 0
    assert (tmp_path / "postgres" / "data").stat().st_uid == launch.NOBODY
    # The same data, where namespaces are allowed again, becomes root's own.
    again = start_postgres(tmp_path / "postgres", fast=True)
    with psycopg.connect(again.url) as connection:
        assert connection.execute("SELECT one FROM kept").fetchone() == (1,)
    again.stop()
    assert (tmp_path / "postgres" / "data").stat().st_uid == 0
    assert not processes_of(tmp_path)


def test_what_was_committed_survives_a_kill(folder: Path) -> None:
    """After kill -9 of the postmaster the next start recovers, on the port that is asked for."""
    first = start_postgres(folder)
    with psycopg.connect(first.url, autocommit=True) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        os.kill(first.child.pid, signal.SIGKILL)
        assert wait_until(first.child.poll, within=60, what="the postmaster to be dead") == -signal.SIGKILL
    second = start_postgres(folder, port=first.port)
    assert second.url == first.url
    with psycopg.connect(second.url) as connection:
        assert connection.execute("SELECT answer FROM kept").fetchone() == (42,)
    second.stop()
    assert second.child.poll() == 0


def test_a_pid_file_that_names_another_program_is_no_obstacle(folder: Path) -> None:
    """Numbers come round again: a pid file whose number now belongs to someone else is put aside."""
    first = start_postgres(folder, fast=True)
    pid_file = folder / "data" / "postmaster.pid"
    left_behind = pid_file.read_text()
    first.child.kill()
    stranger = subprocess.Popen(["/bin/sleep", "60"])
    try:
        pid_file.write_text(left_behind.replace(str(first.child.pid), str(stranger.pid), 1))
        start_postgres(folder, fast=True).stop()
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_second_server_on_the_same_data_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one runs, another start says which process is in the way, and harms nobody."""
    monkeypatch.setattr(postgres, "_LEFTOVER_SECONDS", 0.2)
    first = start_postgres(folder, fast=True)
    with pytest.raises(LocalStackError, match=rf"a Postgres \(pid {first.child.pid}\) is still running on .*data"):
        start_postgres(folder, fast=True)
    with psycopg.connect(first.url) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    first.stop()


def test_it_waits_for_a_server_that_is_on_its_way_out(folder: Path) -> None:
    """A start right after the supervisor was killed waits for the old server to end."""
    first = start_postgres(folder, fast=True)
    first.child.send(signal.SIGQUIT)
    start_postgres(folder, fast=True).stop()
    assert first.child.poll() == 0


def test_data_of_another_version_is_refused(folder: Path) -> None:
    """The message names both versions and the way out."""
    start_postgres(folder, fast=True).stop()
    (folder / "data" / "PG_VERSION").write_text("12\n")
    with pytest.raises(LocalStackError, match=r"was made by Postgres 12, and this is Postgres 18: .*--data-dir"):
        start_postgres(folder, fast=True)


def test_a_lost_password_is_said_to_be_lost(folder: Path) -> None:
    """Without the password file the data are out of reach, and the message says so."""
    start_postgres(folder, fast=True).stop()
    (folder / "password").unlink()
    with pytest.raises(LocalStackError, match="password is gone"):
        start_postgres(folder, fast=True)


def test_a_start_can_be_cancelled_at_any_moment(folder: Path) -> None:
    """Cancelled after ever longer times it leaves nothing running, and the next start succeeds."""
    with pytest.raises(StartCancelledError):
        start_postgres(folder, fast=True, cancelled=lambda: True)
    assert not processes_of(folder)
    for moment in (0.1, 0.3, 0.6):
        began = time.monotonic()
        with suppress(StartCancelledError):
            start_postgres(folder, fast=True, cancelled=lambda at=began + moment: time.monotonic() > at).stop()
        assert not processes_of(folder)
    start_postgres(folder, fast=True).stop()


def test_what_keeps_it_from_starting_is_in_the_message(folder: Path) -> None:
    """The error carries the last lines of its log."""
    start_postgres(folder, fast=True).stop()
    (folder / "data" / "postgresql.auto.conf").write_text("no_such_setting = 1\n")
    with pytest.raises(LocalStackError, match='unrecognized configuration parameter "no_such_setting"'):
        start_postgres(folder, fast=True)


def test_a_program_that_cannot_be_run_says_why(tmp_path: Path) -> None:
    """A child whose program is missing ends with a status of its own and a message in its log."""
    child = start_child("ghost", [tmp_path / "ghost"], log=tmp_path / "log")
    assert child.wait(60) == launch.CANNOT_LAUNCH
    assert "No such file" in child.tail()
