"""Runs the embedded stack as one process tree: starts it in order, keeps it alive, and ends it without a trace.

What happens is told to a callback, `on_event(kind, **fields)`, from the supervisor's own thread:

| kind | fields |
|---|---|
| starting | name |
| started | name, pid, seconds, again (True when it had died) |
| migrated | seconds |
| waiting | detail (what /readyz says), seconds |
| ready | api_url, folder, seconds |
| died | name, pid, reason, restart_in, log |
| stopping, hurrying | |
| stopped | name |
"""

import http.client
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType, TracebackType
from typing import Protocol, Self

import structlog

from infra.local import LocalStackError, StartCancelledError
from infra.local.child import Child, start_child
from infra.local.finding import LOOPBACK, free_port, is_free
from infra.local.folder import DataFolder, StackInfo
from infra.local.model import embedded_model
from infra.local.part import Part, why
from infra.local.postgres import start_postgres
from infra.local.redis import start_redis
from infra.settings import Settings, as_environment, child_environment

_log = structlog.get_logger()

_LOOK_SECONDS = 0.1
_READY_TIMEOUT_SECONDS = 2.0
_WAITING_EVENT_SECONDS = 10.0


class OnEvent(Protocol):
    """Who wants to know what happens."""

    def __call__(self, kind: str, /, **fields: object) -> None:
        """Hear of one event."""


@dataclass(frozen=True)
class Program:
    """An application process of the stack: how it is started, and how long it may take to end."""

    name: str
    command: Sequence[str]
    grace_seconds: float


def _module(*arguments: str) -> tuple[str, ...]:
    # -P: a folder called `worker` where the user happens to stand is not our worker.
    return (sys.executable, "-P", "-m", *arguments)


MIGRATE = Program("migrate", _module("producer.cli", "migrate"), 10.0)
APPLICATIONS = (
    Program("api", _module("producer.cli", "api"), 10.0),
    Program("dispatcher", _module("producer.cli", "dispatcher"), 10.0),
    # A worker that is asked to end finishes the shard in its hands.
    Program("worker", _module("worker.app"), 25.0),
)


class Stack:
    """The embedded stack: `with Stack(...) as stack:` runs the block once it is ready, and ends it after.

    In the block, SIGTERM and SIGHUP raise KeyboardInterrupt as Ctrl-C does, so that the stack is ended whatever
    ends the block. `run_stack` is for programs that do nothing but run one.
    """

    def __init__(
        self,
        settings: Settings,
        folder: Path | None = None,
        *,
        port: int | None = None,
        on_event: OnEvent | None = None,
        stop: threading.Event | None = None,
        migrate: Program = MIGRATE,
        applications: Sequence[Program] = APPLICATIONS,
        fast: bool = False,
        ready_within: float = 300.0,
    ) -> None:
        """Nothing happens yet.

        Args:
            settings: What the applications are to be told, beside what the stack itself decides.
            folder: The data folder; the settings' own, or the user's, when None.
            port: The API's port, which has to be free; 0 is any. When None, the settings' own where it was set by
                someone, else the usual one if it is free and any other if it is not.
            on_event: Hears what happens.
            stop: Ends the stack when set.
            migrate: Brings the database up to date, and ends.
            applications: What runs on top, in the order of starting.
            fast: Give up the database's safety against a crash of the machine, for tests.
            ready_within: How long the stack may take to be ready, in seconds.
        """
        self._settings = settings
        self._path = folder or settings.data_dir
        self._asked_port = port if port is not None or "port" not in settings.model_fields_set else settings.port
        self._on_event = on_event
        self._stop = stop or threading.Event()
        self._hurry = threading.Event()
        self._migrate_program = migrate
        self._programs = applications
        self._fast = fast
        self._ready_within = ready_within

        self._thread = threading.Thread(target=self._run, name="supervisor")
        self._began = time.monotonic()
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._info: StackInfo | None = None
        self._signals = ExitStack()
        self._parts: list[Part] = []
        self._ports: dict[str, int] = {}
        self._urls: dict[str, str] = {}

    # -- for those who run one

    @property
    def info(self) -> StackInfo:
        """Where everything is, once it is ready."""
        if self._info is None:
            raise LocalStackError("the stack is not ready")
        return self._info

    def start(self) -> None:
        """Take the data folder and begin; `ready` and `join` tell how it goes.

        Raises:
            LocalStackError: It cannot run here. Nothing was started.
        """
        host = self._settings.host
        self._ports["api"] = _choose_port(host, self._settings.port, self._asked_port)
        # A wildcard address is for listening; this machine reaches it by loopback.
        self._host = {"0.0.0.0": LOOPBACK, "::": "::1", "": LOOPBACK}.get(host, host)  # noqa: S104
        shown = f"[{self._host}]" if ":" in self._host else self._host
        self._urls["api"] = f"http://{shown}:{self._ports['api']}"
        self._variables = as_environment(self._settings)
        if self._settings.engine == "llama_cpp":
            self._variables["NIGHTCOURT_MODEL"] = str(self._settings.model or embedded_model())
        self._folder = DataFolder(self._path)
        self._thread.start()

    def ready(self, seconds: float) -> bool:
        """Wait until it is ready, or has ended, at most so long; whether it is ready."""
        deadline = time.monotonic() + seconds
        while not self._ready.wait(0.05) and self._thread.is_alive() and time.monotonic() < deadline:
            pass
        return self._ready.is_set()

    def stop(self) -> None:
        """Ask it to end; `join` waits for that."""
        self._stop.set()

    def hurry(self) -> None:
        """Ask it to end without waiting for work in hand. Postgres and Redis still end properly."""
        self._stop.set()
        self._hurry.set()

    def join(self, seconds: float | None = None) -> bool:
        """Wait for its end, at most so long.

        Returns:
            Whether it has ended.

        Raises:
            LocalStackError: It ended because it could not run.
        """
        self._thread.join(seconds)
        if self._thread.is_alive():
            return False
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        return True

    def __enter__(self) -> Self:
        self._signals.enter_context(
            _handling((signal.SIGTERM, signal.SIGHUP), signal.default_int_handler)
        )
        try:
            self.start()
            while not self.ready(60) and self._thread.is_alive():
                pass
            if not self._ready.is_set():
                self.join()
                raise StartCancelledError("starting was cancelled")
        except BaseException:
            self._finish()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finish()
        if kind is None and self._failure is not None:
            self.join()

    def _finish(self) -> None:
        self._stop.set()
        while self._thread.is_alive():
            try:
                self._thread.join()
            except KeyboardInterrupt:
                self.hurry()
        self._signals.close()

    # -- the supervisor's thread

    def _run(self) -> None:
        try:
            with ExitStack() as ends:
                ends.callback(self._folder.close)
                self._start_all(ends)
                while not self._stopping():
                    for part in self._parts:
                        part.look_after(hopeless=not self._ready.is_set())
                    if not self._ready.is_set():
                        self._look_whether_ready()
                    self._stop.wait(_LOOK_SECONDS)
        except StartCancelledError:
            pass
        except BaseException as error:  # noqa: BLE001 (raised again where the stack is joined)
            self._failure = error

    def _stopping(self) -> bool:
        # Python waits for this thread at its end; whoever left the main thread without a word wants an end too.
        return self._stop.is_set() or not threading.main_thread().is_alive()

    def _start_all(self, ends: ExitStack) -> None:
        for name, launch in (("postgres", self._launch_postgres), ("redis", self._launch_redis)):
            self._add(name, launch)
            ends.callback(self._end_service, self._parts[-1])
        self._variables |= {
            "NIGHTCOURT_DATABASE_URL": self._urls["postgres"],
            "NIGHTCOURT_REDIS_URL": self._urls["redis"],
            "NIGHTCOURT_DATA_DIR": str(self._folder.path),
            "NIGHTCOURT_HOST": self._settings.host,
            "NIGHTCOURT_PORT": str(self._ports["api"]),
        }
        self._migrate()
        ends.callback(self._end_applications)
        for program in self._programs:
            self._add(program.name, lambda program=program: self._launch(program))

    def _add(self, name: str, launch: Callable[[], "Running"]) -> None:
        if self._stopping():
            raise StartCancelledError("starting was cancelled")
        part = Part(name, launch, log=self._folder.log(name), report=self._report)
        self._parts.append(part)
        part.start()
