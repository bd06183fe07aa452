"""The gate in front of an engine: a budget of prompt tokens in flight, interactive work first.

A bulk step never makes a waiting person wait for more than the steps already let in.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from schemas.states import Lane


class Gate:
    """Lets work in by token budget. Thread-safe.

    Args:
        budget_tokens: how many prompt tokens may be inside at a time.
        on_turn: told the lane of each that comes in, and for how many seconds it waited.
    """

    def __init__(self, budget_tokens: int, *, on_turn: Callable[[Lane, float], None] = lambda *_: None) -> None:
        self._budget = budget_tokens
        self._on_turn = on_turn
        self._in_flight = 0
        self._turns = threading.Condition()
        self._inside: dict[object, float] = {}
        # Two lines of tickets: whoever stands first in the interactive line goes first of all.
        self._lines: dict[Lane, list[object]] = {Lane.INTERACTIVE: [], Lane.BULK: []}

    @contextmanager
    def admit(self, tokens: int, lane: Lane) -> Iterator[None]:
        """Wait for a turn, then hold `tokens` of the budget while inside.

        Work larger than the whole budget is let in alone.
        """
        ticket = object()
        came = time.monotonic()
        with self._turns:
            self._lines[lane].append(ticket)
            try:
                self._turns.wait_for(lambda: self._next() is ticket and self._fits(tokens))
            finally:
                self._lines[lane].remove(ticket)
                # Whoever stands next may fit beside us.
                self._turns.notify_all()
            self._in_flight += tokens
            self._inside[ticket] = time.monotonic()
        try:
            self._on_turn(lane, time.monotonic() - came)
            yield
        finally:
            with self._turns:
                self._in_flight -= tokens
                del self._inside[ticket]
                self._turns.notify_all()

    def alone(self, lane: Lane) -> AbstractContextManager[None]:
        """Wait for a turn, then keep everybody else out while inside."""
        return self.admit(self._budget, lane)

    def longest_inside(self) -> float:
        """Tell for how many seconds the work has been inside that has been there longest; 0 where none is."""
        with self._turns:
            return time.monotonic() - min(self._inside.values(), default=time.monotonic())

    def _next(self) -> object:
        for line in self._lines.values():
            if line:
                return line[0]
        return None

    def _fits(self, tokens: int) -> bool:
        return self._in_flight == 0 or self._in_flight + tokens <= self._budget
