"""Runs the embedded stack as one process tree: starts it, keeps it alive, and ends it without a trace.

What happens is told to a callback, `on_event(kind, **fields)`, from the supervisor's own thread:

| kind | fields |
|---|---|
| starting | name |
| started | name, pid, seconds, again (whether it had died) |
| migrated | seconds |
| waiting | detail (what /readyz says), seconds; every ten seconds |
| ready | api_url, folder, seconds |
| died | name, pid, reason, restart_in, log |
| stopping, hurrying | |
| stopped | name |
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import structlog

from infra.environment import as_environment, forget_libpq
from infra.local import LocalStackError, StartCancelledError
from infra.local import tree as trees
from infra.local.folder import DataFolder, StackInfo, unusable
from infra.local.model import embedded_model
from infra.local.part import OnEvent
from infra.local.ports import authority, choose_port, metrics_ports, own_receivers, reachable
from infra.local.readiness import obstacle
from infra.local.tree import MIGRATE, ProcessTree, Program
from infra.settings import Settings

_log = structlog.get_logger()

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LOOK_SECONDS = 0.1
_WAIT_SECONDS = 0.05
_TELL_SECONDS = 10.0
_TRIM_SECONDS = 60.0


def _ignore(_kind: str, /, **_fields: object) -> None:
    pass


class Stack:
    """The embedded stack: `with Stack(...) as stack:` runs the block once it is ready, and ends it after.

    The first SIGINT, SIGTERM or SIGHUP raises KeyboardInterrupt in the block, so that the stack ends well whatever
    ends the block; the next one hurries. A program that does nothing but run one calls `run_stack`.
    """

    def __init__(
        self,
        settings: Settings,
        folder: Path | None = None,
        *,
        port: int | None = None,
        on_event: OnEvent = _ignore,
        migrate: Program = MIGRATE,
        applications: Sequence[Program] | None = None,
        fast: bool = False,
        ready_within: float = 300.0,
    ) -> None:
        """Nothing happens yet.

        Args:
            settings: What the applications are told, beside what the stack itself decides.
            folder: The data folder; that of the settings, or the user's own, when None.
            port: The API's port, which has to be free; 0 is any. When None, that of the settings where
                somebody set it, else the usual one, or any where that is busy.
            on_event: Hears what happens.
            migrate: Brings the database up to date, and ends.
            applications: What runs on top, in the order of starting; what the settings say when None.
            fast: Give up the database's safety against a crash of the machine, for tests.
            ready_within: How long it may take to be ready, in seconds, once all of it is started: until then Postgres
                may recover, and the tables be migrated, for as long as that takes.
        """
        self._settings = settings
        self._path = folder or settings.data_dir
        self._asked_port = settings.port if port is None and "port" in settings.model_fields_set else port
        self._on_event = on_event
        self._stop = threading.Event()
        self._hurry = threading.Event()
        self._migrate = migrate
        if applications is None:
            applications = trees.applications(
                _workers(settings),
                drain_seconds=settings.drain_seconds,
                callback_seconds=settings.callback_deadline_seconds,
            )
        self._applications = applications
        self._fast = fast
        self._ready_within = ready_within

        self._began = time.monotonic()
        self._started = self._began
        self._told = 0.0
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._info: StackInfo | None = None
        self._thread: threading.Thread | None = None
        # In place of the thread itself: up to Python 3.12 it is taken for dead when a KeyboardInterrupt gets
        # somebody out of joining it.
        self._ended = threading.Event()
        self._leaving = False
        self._rushed = False
        self._handlers = ExitStack()

    @property
    def info(self) -> StackInfo:
        """Where everything is, once it is ready."""
        if self._info is None:
            raise LocalStackError("the stack is not ready")
        return self._info

    def start(self) -> None:
        """Take the data folder and the port, and begin; `ready` and `join` tell how it goes.

        Raises:
            LocalStackError: It cannot run here. Nothing was started.
        """
        # A KeyboardInterrupt in the middle would leave a thread that nobody waits for.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            # The folder first: of a stack that runs here already its busy port says less.
            folder = DataFolder(self._path)
            try:
                self._begin(folder)
            except BaseException as error:
                folder.close()
                if isinstance(error, OSError):
                    raise unusable(folder.path, error) from error
                raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _begin(self, folder: DataFolder) -> None:
        forget_libpq()
        host = self._settings.host
        port = choose_port(host, self._settings.port, self._asked_port)
        variables = {"NIGHTCOURT_CALLBACK_ALLOW": own_receivers(host)} | as_environment(self._settings)
        variables |= {"NIGHTCOURT_HOST": host, "NIGHTCOURT_PORT": str(port)}
        if self._settings.engine == "llama_cpp":
            variables["NIGHTCOURT_MODEL"] = str(self._settings.model or embedded_model())
        variables |= {"NIGHTCOURT_DATA_DIR": str(folder.path), "NIGHTCOURT_FIRST_KEY_FILE": str(folder.key_file)}
        variables.setdefault("NIGHTCOURT_PRESENCE_DIR", str(folder.part("workers")))
        tree = ProcessTree(
            folder,
            variables,
            migrate=self._migrate,
            applications=self._applications,
            metrics_ports=metrics_ports([each.name for each in self._applications], self._settings.metrics_port),
            fast=self._fast,
            report=self._report,
            stopping=self._stopping,
            hurried=self._hurry.is_set,
        )
        self._began = time.monotonic()
        self._thread = threading.Thread(target=self._run, args=(folder, tree, reachable(host), port), name="supervisor")
        self._thread.start()

    def ready(self, seconds: float) -> bool:
        """Wait until it is ready or has ended, at most so long.

        Returns:
            Whether it is ready.
        """
        _await(lambda: self._ready.is_set() or not self._alive(), seconds)
        return self._ready.is_set()

    def stop(self) -> None:
        """Ask it to end; `join` waits for that."""
        self._stop.set()

    def hurry(self) -> None:
        """Ask it to end without waiting for work in hand. Postgres and Redis still end properly."""
        if not self._hurry.is_set():
            self._hurry.set()
            self._report("hurrying")
        self._stop.set()

    def join(self, seconds: float | None = None) -> bool:
        """Wait for its end, at most so long.

        Returns:
            Whether it has ended, as it was asked to.

        Raises:
            LocalStackError: It has ended because it could not run.
        """
        if not _await(lambda: not self._alive(), seconds):
            return False
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        return True

    def __enter__(self) -> Self:
        try:
            self._handlers.enter_context(_handling(self._hear))
            self.start()
            self._await_ready()
        except BaseException:
            self._finish()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finish()
        if kind is None:
            self.join()

    def _await_ready(self) -> None:
        while not self.ready(60):
            if self.join(0):
                raise StartCancelledError("starting was cancelled")

    def _hear(self, _number: int, _frame: FrameType | None) -> None:
        if self._leaving:  # raising is for getting out of the block, once; in the middle of the end it would do harm
            self._rushed = True
        else:
            self._leaving = True
            raise KeyboardInterrupt

    def _finish(self) -> None:
        self._leaving = True
        self._stop.set()
        while not _await(lambda: not self._alive(), _LOOK_SECONDS):
            if self._rushed:
                self.hurry()
        self._handlers.close()

    def _alive(self) -> bool:
        return self._thread is not None and not self._ended.is_set()

    # -- in the supervisor's own thread

    def _run(self, folder: DataFolder, tree: ProcessTree, host: str, port: int) -> None:
        trim_at = 0.0
        try:
            with ExitStack() as ends:
                ends.callback(folder.close)
                try:
                    tree.start(ends)
                    self._started = time.monotonic()
                    while not self._stopping():
                        tree.look_after(was_ready=self._ready.is_set())
                        if time.monotonic() > trim_at:
                            folder.trim_logs()
                            trim_at = time.monotonic() + _TRIM_SECONDS
                        if not self._ready.is_set():
                            self._look_whether_ready(folder, tree, host, port)
                        self._stop.wait(_LOOK_SECONDS)
                finally:
                    self._report("stopping")
        except StartCancelledError:
            pass
        except OSError as error:
            self._failure = unusable(folder.path, error)
        except BaseException as error:  # noqa: BLE001 (raised again where the stack is joined)
            self._failure = error
        finally:
            self._ended.set()

    def _stopping(self) -> bool:
        # Python waits for this thread when it shuts down: whoever ended the main thread wants an end of all.
        return self._stop.is_set() or not threading.main_thread().is_alive()

    def _look_whether_ready(self, folder: DataFolder, tree: ProcessTree, host: str, port: int) -> None:
        seconds = time.monotonic() - self._began
        wanting = obstacle(tree.pid("api"), host, port)
        if wanting is None and tree.postgres and tree.redis:
            self._info = StackInfo(
                pid=os.getpid(),
                api_url=f"http://{authority(host, port)}",
                database_url=tree.postgres.url,
                redis_url=tree.redis.url,
                key=folder.key(),
                metrics={"api": authority(host, port)}
                | {name: authority(self._settings.metrics_host, own) for name, own in tree.metrics_ports.items()},
                started_at=datetime.now(UTC),
            )
            folder.publish(self._info)
            self._ready.set()
            self._report("ready", api_url=self._info.api_url, folder=str(folder.path), seconds=seconds)
        elif time.monotonic() - self._started > self._ready_within:
            raise LocalStackError(
                f"not ready after {seconds:.0f} seconds ({wanting}): see the logs in {folder.path / 'logs'}"
            )
        elif seconds - self._told > _TELL_SECONDS:
            self._told = seconds
            self._report("waiting", detail=wanting, seconds=seconds)

    def _report(self, kind: str, /, **fields: object) -> None:
        try:
            self._on_event(kind, **fields)
        except Exception:  # noqa: BLE001 (nothing of the stack stands on who listens to it)
            _log.exception("stack_event_failed", kind=kind)


def run_stack(stack: Stack) -> bool:
    """Run a stack until SIGINT, SIGTERM or SIGHUP, or until it is told to stop. A second signal hurries.

    To return is to have ended as asked, with nothing left running; what is returned is whether it was ready before.

    Raises:
        LocalStackError: The stack cannot run. Nothing is left running.
    """
    asked: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        # No more than this: an Event's lock may be held by the very code that the signal interrupts.
        asked.append(number)

    with _handling(note) as afterwards:
        stack.start()
        while not stack.join(_LOOK_SECONDS):
            if len(asked) > 1:
                stack.hurry()
            elif asked:
                stack.stop()
        if asked:  # it ends as it was asked to: one Ctrl-C too many is not to turn that into a failure
            afterwards.update(dict.fromkeys(afterwards, signal.SIG_IGN))
    return stack.ready(0)


def _workers(settings: Settings) -> int:
    """How many worker processes: one where an engine has the machine's cores or a device to itself, else one a core."""
    if settings.workers is not None:
        return settings.workers
    return len(os.sched_getaffinity(0)) if settings.engine == "simulated" else 1


def _await(done: Callable[[], bool], seconds: float | None) -> bool:
    """Wait, at most so long, for something to be so, without a lock that a KeyboardInterrupt could leave locked."""
    deadline = None if seconds is None else time.monotonic() + seconds
    while not (so := done()) and (deadline is None or time.monotonic() < deadline):
        time.sleep(_WAIT_SECONDS)
    return so


@contextmanager
def _handling(handler: Callable[[int, FrameType | None], Any]) -> Iterator[dict[signal.Signals, Any]]:
    """Handle the signals that ask for an end, in the main thread alone, as Python wants it.

    Yields:
        How each of them is handled after the block: as before it, unless that is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield {}
        return
    afterwards = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, before in afterwards.items():
        # Under nohup a closed terminal is not to end it.
        if number != signal.SIGHUP or before != signal.SIG_IGN:
            signal.signal(number, handler)
    try:
        yield afterwards
    finally:
        for number, after in afterwards.items():
            signal.signal(number, after)
