"""One part of the stack that is kept running: started, found dead, started again, less and less eagerly."""

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from infra.local import LocalStackError, StartCancelledError

_FIRST_DELAY = 0.5
_LAST_DELAY = 10.0
_HEALTHY_SECONDS = 30.0
_EARLY_SECONDS = 5.0
_EARLY_DEATHS = 5


class OnEvent(Protocol):
    """Who wants to know what happens."""

    def __call__(self, kind: str, /, **fields: object) -> None:
        """Hear of one event."""


class Running(Protocol):
    """What a part is while it runs: a child, or a service around one."""

    @property
    def pid(self) -> int:
        """Its process id."""

    def poll(self) -> int | None:
        """None while it runs, else its exit status, negative for the signal that ended it."""

    def send(self, sig: signal.Signals) -> None:
        """Send it a signal."""

    def kill(self) -> int:
        """End it at once, and all that it started."""

    def stop(self, sig: signal.Signals, grace_seconds: float) -> int:
        """Ask it to end, and make it end when it does not."""

    def tail(self, lines: int = 20) -> str:
        """The last lines that it wrote in this life."""


class Part:
    """One part, over all of its lives.

    Attributes:
        name: What it is called.
        grace_seconds: How long it may take to end.
        running: Its present life; None between two.
    """

    def __init__(
        self, name: str, launch: Callable[[], Running], *, grace_seconds: float, log: Path, report: OnEvent
    ) -> None:
        """Nothing is started yet.

        Args:
            name: What it is called.
            launch: Starts it.
            grace_seconds: How long it may take to end.
            log: Where it logs, for messages.
            report: Hears of its lives and deaths.
        """
        self.name = name
        self.grace_seconds = grace_seconds
        self.running: Running | None = None
        self._launch = launch
        self._log = log
        self._report = report
        self._lives = 0
        self._born = 0.0
        self._delay = _FIRST_DELAY
        self._due = 0.0
        self._early_deaths = 0

    def start(self) -> None:
        """Begin a life.

        Raises:
            LocalStackError: It cannot be started.
        """
        began = time.monotonic()
        self._report("starting", name=self.name)
        self.running = self._launch()
        self._lives += 1
        self._born = time.monotonic()
        self._report(
            "started",
            name=self.name,
            pid=self.running.pid,
            seconds=self._born - began,
            again=self._lives > 1,
        )

    def look_after(self, *, hopeful: bool) -> None:
        """Notice its death, or begin its next life when that is due.

        Args:
            hopeful: Whether the stack has ever been ready. Before that, a part that will not live is an error of
                the installation or the settings, which waiting does not mend.

        Raises:
            LocalStackError: It died too often before the stack was ever ready.
        """
        now = time.monotonic()
        if self.running is None:
            if now >= self._due:
                self._start_again()
            return
        status = self.running.poll()
        if status is None:
            if now - self._born > _HEALTHY_SECONDS:
                self._delay = _FIRST_DELAY
            return
        self._early_deaths = self._early_deaths + 1 if now - self._born < _EARLY_SECONDS else 0
        if self._early_deaths >= _EARLY_DEATHS and not hopeful:
            raise LocalStackError(
                f"{self.name} ended {self._early_deaths} times right after its start, the last time "
                f"{_reason(status)}:\n{self.running.tail()}\n(all of it is in {self._log})"
            )
        pid, self.running = self.running.pid, None
        self._wait_for_next(pid, _reason(status))

    def _start_again(self) -> None:
        try:
            self.start()
        except StartCancelledError:
            raise
        except LocalStackError as error:
            self._wait_for_next(None, str(error))

    def _wait_for_next(self, pid: int | None, reason: str) -> None:
        self._report(
            "died", name=self.name, pid=pid, reason=reason, restart_in=self._delay, log=str(self._log)
        )
        self._due = time.monotonic() + self._delay
        self._delay = min(self._delay * 2, _LAST_DELAY)


def _reason(status: int) -> str:
    if status < 0:
        return f"by {signal.Signals(-status).name}"
    return f"with status {status}"
