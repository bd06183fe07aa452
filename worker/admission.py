"""The gate in front of an engine: a budget of prompt tokens in flight, interactive work first.

A bulk step never makes a waiting person wait for more than the steps already let in, and neither does a tenant with
much work one with little: of those in a lane, whoever used least lately goes first.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from schemas.states import Lane

_HALF_LIFE = 10.0
"""Seconds after which what a tenant has used counts half."""
_WRITTEN = 16
"""What a token that was written counts, in tokens that were read: each takes a pass through the model of its own."""


@dataclass(frozen=True, slots=True, eq=False)
class _Ticket:
    tenant: str


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
        # Two lines of tickets: whoever is next in the interactive line goes first of all.
        self._lines: dict[Lane, list[_Ticket]] = {Lane.INTERACTIVE: [], Lane.BULK: []}
        self._used: dict[str, float] = {}
        self._used_at = time.monotonic()

    @contextmanager
    def admit(self, tokens: int, lane: Lane, tenant: str = "") -> Iterator[None]:
        """Wait for a turn, then hold `tokens` of the budget while inside.

        Work larger than the whole budget is let in alone.
        """
        ticket = _Ticket(tenant)
        came = time.monotonic()
        with self._turns:
            self._lines[lane].append(ticket)
            try:
                self._turns.wait_for(lambda: self._next() is ticket and self._fits(tokens))
            finally:
                self._lines[lane].remove(ticket)
                # Whoever stands next may fit beside us.
                self._turns.notify_all()
            self._charge(tenant, tokens)
            self._in_flight += tokens
        try:
            self._on_turn(lane, time.monotonic() - came)
            yield
        finally:
            with self._turns:
                self._in_flight -= tokens
                self._turns.notify_all()

    def alone(self, lane: Lane, tenant: str = "") -> AbstractContextManager[None]:
        """Wait for a turn, then keep everybody else out while inside."""
        return self.admit(self._budget, lane, tenant)

    def charge_written(self, tokens: int, tenant: str) -> None:
        """Count what was written by work inside as used by its tenant; nobody knew how much it would be."""
        with self._turns:
            self._charge(tenant, _WRITTEN * tokens)

    def _next(self) -> _Ticket | None:
        for line in self._lines.values():
            if line:
                # Of several that used alike, and so of one tenant's, the first to come.
                return min(line, key=lambda ticket: self._used.get(ticket.tenant, 0.0))
        return None

    def _charge(self, tenant: str, tokens: int) -> None:
        now = time.monotonic()
        faded = 0.5 ** ((now - self._used_at) / _HALF_LIFE)
        self._used_at = now
        self._used = {name: used * faded for name, used in self._used.items() if used * faded >= 1.0}
        self._used[tenant] = self._used.get(tenant, 0.0) + tokens

    def _fits(self, tokens: int) -> bool:
        return self._in_flight == 0 or self._in_flight + tokens <= self._budget
