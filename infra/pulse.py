"""The pulse: a file that a process touches as often as it gets on with its work, and that a probe looks at.

The probe asks the process alone. It does not ask Postgres or Redis: a restart cures neither, and would lose what a
worker has in hand. `python -m infra.pulse FILE SECONDS` is the probe; it imports next to nothing, because it is run
every few seconds.
"""

import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def begin(file: Path | None) -> None:
    """Take away the pulse of whoever had this file before: it says nothing of the process that starts now."""
    if file is not None:
        with suppress(OSError):
            file.unlink()


def beat(file: Path | None) -> None:
    """Touch the pulse file, where there is to be one. Where that fails, the probe will tell."""
    if file is not None:
        with suppress(OSError):
            file.touch()


class Turns:
    """Whether something goes round: told at each turn, by one thread, and asked by another."""

    def __init__(self) -> None:
        self._at: float | None = None

    def note(self) -> None:
        """Tell of a turn."""
        self._at = time.monotonic()

    def lately(self, within: float) -> bool:
        """Whether there was one within so many seconds, or none yet."""
        return self._at is None or time.monotonic() - self._at <= within


def keep(file: Path | None, *, every: float, stop: threading.Event, well: Callable[[], bool] = lambda: True) -> None:
    """Beat every so many seconds while all is well, in a thread of its own, until told to stop.

    Args:
        file: what to touch; without one there is nothing to keep.
        every: seconds.
        stop: ends it.
        well: asked before each beat. Where it hangs, so does the pulse, and nothing else.
    """

    def run() -> None:
        while True:
            if well():
                beat(file)
            if stop.wait(every):
                return

    if file is not None:
        threading.Thread(target=run, name="pulse", daemon=True).start()


def probe(file: Path, *, within: float) -> str | None:
    """Say what is wrong with a pulse: None where it beat within so many seconds."""
    try:
        age = time.time() - file.stat().st_mtime
    except FileNotFoundError:
        return f"{file} is not there: the process has not begun its work"
    return None if age <= within else f"{file} was last touched {age:.0f} s ago, and {within:g} s are allowed"


def main(arguments: list[str]) -> int:
    """Look at FILE: 0 where it beat within SECONDS, 1 where it did not."""
    file, within = arguments
    wrong = probe(Path(file), within=float(within))
    if wrong:
        sys.stderr.write(f"{wrong}\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
