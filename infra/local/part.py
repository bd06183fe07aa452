"""One part of the stack that is kept running: started, found dead, started again, less and less eagerly."""

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from infra.local import LocalStackError, StartCancelledError
from infra.local.child import Child

_FIRST_DELAY = 0.5
_LAST_DELAY = 10.0
_HEALTHY_SECONDS = 30.0
_EARLY_SECONDS = 5.0
_EARLY_DEATHS = 5


class OnEvent(Protocol):
    """Who wants to know what happens."""

    def __call__(self, kind: str, /, **fields: object) -> None:
        """Hear of one event."""


class Part:
    """One part, over all of its lives.

    Attributes:
        name: What it is called.
        running: Its present life; None between two.
    """

    def __init__(self, name: str, launch: Callable[[], Child], *, log: Path, report: OnEvent) -> None:
        """Nothing is started yet.

        Args:
            name: What it is called.
            launch: Starts it.
            log: Where it logs, for messages.
            report: Hears of its lives and deaths.
        """
        self.name = name
        self.running: Child | None = None
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

    def look_after(self, *, was_ready: bool) -> None:
        """Notice its death, or begin its next life when that is due.

        Args:
            was_ready: Whether the stack has ever been ready. Before that, a part that will not live is an
                error of the installation or the settings, which waiting does not mend.

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
        if self._early_deaths >= _EARLY_DEATHS and not was_ready:
            raise LocalStackError(
                f"{self.name} ended {self._early_deaths} times in a row right after its start, the last time "
                f"{reason(status)}:\n{self.running.tail()}\n(all of it is in {self._log})"
            )
        pid, self.running = self.running.pid, None
        self._wait_for_next(pid, reason(status))

    def _start_again(self) -> None:
        try:
            self.start()
        except StartCancelledError:
            raise
        except (LocalStackError, OSError) as error:  # too many processes, a full disk: what may be better the next time
            self._wait_for_next(None, str(error))

    def _wait_for_next(self, pid: int | None, why: str) -> None:
        self._report("died", name=self.name, pid=pid, reason=why, restart_in=self._delay, log=str(self._log))
        self._due = time.monotonic() + self._delay
        self._delay = min(self._delay * 2, _LAST_DELAY)


def reason(status: int) -> str:
    """How an exit status reads in a message: 'by signal 9 (Killed)', 'with status 1'."""
    if status < 0:
        return f"by signal {-status} ({signal.strsignal(-status)})"
    return f"with status {status}"
