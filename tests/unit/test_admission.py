"""The gate in front of an engine, with threads that stand in line and events that let them go."""

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.waiting import wait_until

from schemas.states import Lane
from worker.admission import Gate

BUDGET = 100
PATIENCE = 60.0
"""Seconds after which a test that waits has failed; none of them waits so long when it passes."""


class Visitor:
    """A thread that goes through the gate and stays inside until it is sent away."""

    def __init__(self, gate: Gate, log: list[str], name: str, tokens: int, lane: Lane, tenant: str) -> None:
        self.gate, self.log, self.name, self.tokens, self.lane = gate, log, name, tokens, lane
        self.tenant = tenant
        self.inside = threading.Event()
        self.leave = threading.Event()
        self.thread = threading.Thread(target=self._visit, name=name)
        self.thread.start()

    def _visit(self) -> None:
        with self.gate.admit(self.tokens, self.lane, self.tenant):
            self.log.append(self.name)
            self.inside.set()
            self.leave.wait(PATIENCE)

    def enters(self) -> "Visitor":
        """Expect that it was let in."""
        assert self.inside.wait(PATIENCE), f"{self.name} was not let in"
        return self

    def waits(self, *, behind: int = 0) -> "Visitor":
        """Expect that it stands in line with so many others, having looked whether it may go in."""

        def stands_in_line() -> bool:
            assert not self.inside.is_set(), f"{self.name} was let in"
            # Whoever stands in a line while the lock is free has found that it must wait.
            with self.gate._turns:
                return sum(len(line) for line in self.gate._lines.values()) > behind

        wait_until(stands_in_line, within=PATIENCE, every=0.001, what=f"{self.name} stands in line")
        assert not self.inside.is_set()
        return self

    def goes(self) -> None:
        """Send it away, and wait until it has gone."""
        self.leave.set()
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()


@pytest.fixture
def gate() -> Gate:
    """A gate with a budget of a hundred tokens."""
    return Gate(BUDGET)


@pytest.fixture
def log() -> list[str]:
    """Who was let in, in order."""
    return []


@pytest.fixture
def visitor(gate: Gate, log: list[str]) -> Iterator[Callable[..., Visitor]]:
    """Send a visitor to the gate; all of them are sent home in the end."""
    visitors: list[Visitor] = []

    def send(name: str, tokens: int, lane: Lane = Lane.BULK, tenant: str = "one") -> Visitor:
        visitors.append(Visitor(gate, log, name, tokens, lane, tenant))
        return visitors[-1]

    yield send
    for each in visitors:
        each.leave.set()
    for each in visitors:
        each.thread.join(PATIENCE)


class TestTheBudget:
    def test_what_fits_together_is_inside_together(self, visitor):
        """Work goes in beside other work up to the whole budget."""
        visitor("one", 60).enters()
        visitor("other", 40).enters()

    def test_what_does_not_fit_waits(self, visitor):
        """One token too many waits until there is room."""
        first = visitor("first", 60).enters()
        second = visitor("second", 41).waits()
        first.goes()
        second.enters()

    def test_work_larger_than_the_budget_goes_in_alone(self, visitor):
        """An oversize step waits until everyone has left, and keeps everyone out while it is inside."""
        first = visitor("first", 10).enters()
        giant = visitor("giant", 500).waits()
        first.goes()
        giant.enters()
        small = visitor("small", 1, Lane.INTERACTIVE).waits()
        giant.goes()
        small.enters()

    def test_a_failure_inside_frees_its_share(self, gate, visitor):
        """Whatever is raised inside goes on to the caller, and the budget is whole again."""
        with pytest.raises(ValueError, match="in the middle"), gate.admit(BUDGET, Lane.BULK):
            raise ValueError("in the middle")
        visitor("next", BUDGET).enters()

    def test_a_failure_in_line_frees_its_place(self, gate, visitor, monkeypatch):
        """Whoever is interrupted while waiting keeps nobody waiting behind."""
        with monkeypatch.context() as patch:

            def interrupt(_: object) -> None:
                raise KeyboardInterrupt

            patch.setattr(gate._turns, "wait_for", interrupt)
            with pytest.raises(KeyboardInterrupt), gate.admit(1, Lane.INTERACTIVE):
                pass
        visitor("next", BUDGET).enters()

    def test_it_is_never_exceeded(self, gate):
        """Eight threads come and go three hundred times, and are never inside with more than the budget."""
        inside: list[int] = []
        most = []
        lock = threading.Lock()

        def come_and_go(seed: int) -> None:
            chance = random.Random(seed)
            for _ in range(300):
                tokens = chance.choice([1, 7, 30, 50, 99, 100, 250])
                with gate.admit(tokens, chance.choice(list(Lane))):
                    with lock:
                        inside.append(tokens)
                        most.append((sum(inside), len(inside)))
                    with lock:
                        inside.remove(tokens)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(come_and_go, range(8), timeout=PATIENCE))
        assert len(most) == 2400
        assert all(tokens <= BUDGET or count == 1 for tokens, count in most)
        assert gate._in_flight == 0


class TestWhoGoesFirst:
    def test_interactive_work_overtakes_bulk_work(self, visitor, log):
        """Of all that wait the interactive goes in first, however late it came."""
        first = visitor("first", BUDGET).enters()
        bulk = visitor("bulk", BUDGET).waits()
        late = visitor("interactive", BUDGET, Lane.INTERACTIVE).waits(behind=1)
        first.goes()
        late.enters()
        bulk.waits()
        late.goes()
        bulk.enters()
        assert log == ["first", "interactive", "bulk"]

    def test_small_bulk_work_does_not_slip_past_a_waiting_person(self, visitor):
        """Bulk work that would fit waits all the same while interactive work does."""
        first = visitor("first", 60).enters()
        person = visitor("person", 80, Lane.INTERACTIVE).waits()
        small = visitor("small", 10).waits(behind=1)
        first.goes()
        person.enters()
        small.enters()

    def test_within_a_lane_whoever_came_first_goes_first(self, visitor, log):
        """Small work does not overtake large work of its own lane, which would never find room otherwise."""
        first = visitor("first", 60).enters()
        large = visitor("large", 100).waits()
        small = visitor("small", 10).waits(behind=1)
        first.goes()
        large.enters()
        small.waits()
        large.goes()
        small.enters()
        assert log == ["first", "large", "small"]

    def test_a_tenant_that_used_little_overtakes_one_that_used_much(self, visitor, log):
        """However many steps of one tenant stand in line, another that comes new waits for the step inside alone."""
        first = visitor("first", BUDGET).enters()
        second = visitor("second", BUDGET).waits()
        third = visitor("third", BUDGET).waits(behind=1)
        newcomer = visitor("newcomer", BUDGET, tenant="other").waits(behind=2)
        first.goes()
        newcomer.enters().goes()
        second.enters().goes()
        third.enters()
        assert log == ["first", "newcomer", "second", "third"]

    def test_a_tenant_that_used_as_much_goes_no_further(self, visitor, log):
        """A tenant goes first until it has used as much, and no longer."""
        first = visitor("first", BUDGET).enters()
        again = visitor("again", BUDGET).waits()
        large = visitor("large", BUDGET + 50, tenant="other").waits(behind=1)
        more = visitor("more", BUDGET, tenant="other").waits(behind=2)
        first.goes()
        large.enters().goes()
        again.enters().goes()
        more.enters()
        assert log == ["first", "large", "again", "more"]

    def test_what_is_written_is_used_too(self, gate, visitor, log):
        """A tenant whose short prompts have much written goes behind one that had as much read."""
        first = visitor("first", BUDGET).enters()
        gate.charge_written(10, "one")
        first.goes()
        other = visitor("other", BUDGET + 50, tenant="other").enters()
        again = visitor("again", BUDGET).waits()
        more = visitor("more", BUDGET, tenant="other").waits(behind=1)
        other.goes()
        more.enters().goes()
        again.enters()
        assert log == ["first", "other", "more", "again"]

    def test_a_person_of_any_tenant_goes_before_bulk_work(self, visitor):
        """What a tenant has used makes nobody who waits stand behind another's batch."""
        first = visitor("first", BUDGET).enters()
        batch = visitor("batch", BUDGET, tenant="other").waits()
        person = visitor("person", BUDGET, Lane.INTERACTIVE).waits(behind=1)
        first.goes()
        person.enters().goes()
        batch.enters()

    def test_all_that_fit_go_in_at_once_when_there_is_room(self, visitor):
        """One that leaves makes room for several, and they do not wait for each other."""
        first = visitor("first", BUDGET).enters()
        others = [visitor(f"other {number}", 30).waits(behind=number) for number in range(3)]
        first.goes()
        for each in others:
            each.enters()
