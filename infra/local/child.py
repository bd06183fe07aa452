"""A child process that logs to a file, has a session of its own, and never outlives the supervisor."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue

_POLL_SECONDS = 0.02
_TAIL_BYTES = 16 * 1024

# The kernel ends a child when the *thread* that forked it ends. So one thread forks them all, and it lives
# for as long as the process does; callers may then come from any thread.
# A daemon, unlike the threads of a pool, since those end before the others when Python shuts down.
_jobs: "SimpleQueue[tuple[Future[subprocess.Popen[bytes]], Callable[[], subprocess.Popen[bytes]]]]" = SimpleQueue()


def _fork_forever() -> None:
    while True:
        future, job = _jobs.get()
        try:
            future.set_result(job())
        except BaseException as error:  # noqa: BLE001 (it is raised where the job was asked for)
            future.set_exception(error)


_forker = threading.Thread(target=_fork_forever, name="forker", daemon=True)
_forker.start()


class Child:
    """One running child, until it is stopped or found dead.

    Attributes:
        name: What it is called in messages.
        log: Where its standard output and error go.
    """

    def __init__(self, name: str, process: "subprocess.Popen[bytes]", log: Path, log_start: int) -> None:
        self.name = name
        self.log = log
        self._process = process
        self._log_start = log_start

    @property
    def pid(self) -> int:
        """Its process id, also the id of its session and group."""
        return self._process.pid

    def poll(self) -> int | None:
        """Look whether it has ended, and clear away what it left in its group when it has.

        Returns:
            None while it runs; else its exit status, negative for the signal that ended it.
        """
        if self._process.returncode is None:
            ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None:
                return None
            # Before it is reaped: until then its id, and so the group's, can belong to nobody else.
            self._signal_group(signal.SIGKILL)
            self._process.wait()
        return self._process.returncode

    def wait(self, seconds: float, *, unless: Callable[[], bool] = lambda: False) -> int | None:
        """Wait for its end.

        Args:
            seconds: The longest to wait.
            unless: Asked again and again; a True ends the waiting.

        Returns:
            The exit status, or None when it still runs.
        """
        deadline = time.monotonic() + seconds
        while (status := self.poll()) is None and time.monotonic() < deadline and not unless():
            time.sleep(_POLL_SECONDS)
        return status

    def send(self, sig: signal.Signals) -> None:
        """Send it, and it alone, a signal; one that has ended hears nothing."""
        if self.poll() is None:
            self._process.send_signal(sig)

    def kill(self) -> int:
        """End it, all of its group and all of its descendants at once.

        Returns:
            Its exit status.
        """
        # Descendants may have sessions of their own (those of Postgres do). A handle, unlike a number, cannot
        # come to mean another process in the meantime.
        handles = [handle for pid in _descendants(self.pid) if (handle := _open_process(pid)) is not None]
        self.send(signal.SIGKILL)
        status = self.wait(60)
        for handle in handles:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
            os.close(handle)
        return status if status is not None else -signal.SIGKILL

    def stop(self, sig: signal.Signals, grace_seconds: float) -> int:
        """Ask it to end, and make it end when it does not.

        Args:
            sig: The signal that asks.
            grace_seconds: How long it may take.

        Returns:
            Its exit status, negative for a signal.
        """
        self.send(sig)
        status = self.wait(grace_seconds)
        return status if status is not None else self.kill()

    def tail(self, lines: int = 20) -> str:
        """The last lines that it wrote in this life."""
        with self.log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            begun = self._log_start if size >= self._log_start else 0  # it was cut meanwhile
            file.seek(max(begun, size - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def _signal_group(self, sig: signal.Signals) -> None:
        # It may be gone, or hold nothing any more but the leader that ended.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, sig)


def start_child(
    name: str,
    command: Sequence[str | Path],
    *,
    log: Path,
    environment: Mapping[str, str] | None = None,
    death_signal: signal.Signals = signal.SIGKILL,
    unprivileged: Path | None = None,
) -> Child:
    """Start a program that the kernel ends when this process dies, however it dies.

    Args:
        name: What to call it.
        command: An absolute path and its arguments. Secrets do not belong here: everybody can read them.
        log: Its output is appended to this file.
        environment: All of its environment; this process' own when None.
        death_signal: What the kernel sends it when this process dies.
        unprivileged: Where this process is root, the program is not, and this folder becomes the program's.

    Returns:
        The running child. A program that cannot be run shows as one that ends with `launch.CANNOT_LAUNCH`.
    """
    launcher = [sys.executable, "-P", "-m", "infra.local.launch"]
    launcher += [f"--parent={os.getpid()}", f"--death-signal={death_signal.value}"]
    if unprivileged is not None:
        launcher.append(f"--unprivileged={unprivileged}")
    launcher += ["--", *map(str, command)]

    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        log_start = os.fstat(descriptor).st_size
        future: Future[subprocess.Popen[bytes]] = Future()

        def job() -> "subprocess.Popen[bytes]":
            return subprocess.Popen(
                launcher,
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                env=environment,
                start_new_session=True,
                umask=0o077,
            )

        _jobs.put((future, job))
        process = future.result()
    finally:
        os.close(descriptor)
    return Child(name, process, log, log_start)


def _descendants(pid: int) -> list[int]:
    """The children of a process, their children, and so on, as they are now."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # The name in brackets may hold spaces and brackets; the parent is the second field after.
                parent = int((entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found: list[int] = []
    wave = [pid]
    while wave:
        wave = [child for parent in wave for child in children.get(parent, [])]
        found += wave
    return found


def _open_process(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None
