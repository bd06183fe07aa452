"""The docket, driven at random against a model of it.

Hypothesis files, releases, claims, loses, revives and ends shards in every order, with leases that hold and leases
that no longer do. A model of a few lines of Python says what each move must answer and how the tables must stand.
"""

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar
from uuid import UUID

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Connection, text
from support.docket_model import LIVE, Decided, Shard
from support.dockets import LONG, a_line, an_outcome

from infra import docket, losses
from infra.docket import Claim, Lease, LeaseLostError
from infra.outcomes import Outcome
from schemas.problems import OutcomeError
from schemas.states import Lane, OutcomeStatus

T = TypeVar("T")

# What a move is made with is drawn from what the machine has by then.
LANES = st.sampled_from(Lane)
FILINGS = st.runner().flatmap(lambda machine: st.sampled_from(machine.filings))
SHARDS = st.runner().flatmap(lambda machine: st.sampled_from(machine.live() or sorted(machine.shards)))
HINTS = st.runner().flatmap(lambda machine: st.sampled_from(machine.hints or sorted(machine.shards)) | SHARDS)
"""A message on its way, or one that was made up."""
PRESENT = st.runner().flatmap(lambda machine: st.sampled_from(machine.present()))
"""A claim whose lease holds."""
GHOSTS = st.runner().flatmap(
    lambda machine: (
        st.sampled_from(machine.claims)
        | st.builds(forged, st.sampled_from(machine.claims), st.sampled_from(machine.claims))
    )
)
"""Any claim that was ever made, or the token of one for the shard of another."""
MOVES = st.sampled_from(["renew", "note", "record", "finish", "give_back", "fail", "lose", "split"])
LINES = st.integers(1, 255)
"""Which lines of a shard, as bits."""

SNAPSHOT = text("""
    SELECT (SELECT coalesce(jsonb_agg(to_jsonb(s) ORDER BY s.id), '[]') FROM shards s) AS shards,
           (SELECT coalesce(jsonb_agg(jsonb_build_array(c.source_id, c.line, to_jsonb(o))), '[]')
            FROM comparisons c LEFT JOIN outcomes o ON o.filing_id = c.source_id AND o.line = c.line) AS lines
""")


def forged(one: Claim, other: Claim) -> Claim:
    """Put the token of one claim to the shard of another."""
    return replace(one, lease=Lease(shard=one.lease.shard, token=other.lease.token))


class DocketMachine(RuleBasedStateMachine):
    """Every move of the docket, by workers, dispatchers and producers that know nothing of each other."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self.connection = connection
        connection.execute(text("TRUNCATE comparisons, outcomes, shards RESTART IDENTITY"))
        connection.execute(text("ALTER SEQUENCE lease_tokens RESTART WITH 1001"))
        self.shards: dict[int, Shard] = {}
        self.born: list[Shard] = []
        """Shards that must have come to be, whose ids are not known yet."""
        self.outcomes: dict[tuple[UUID, int], Decided | None] = {}
        self.first_seen: dict[tuple[UUID, int], dict[str, Any]] = {}
        self.filings: list[UUID] = []
        self.hints: list[int] = []
        """Messages on their way."""
        self.claims: list[Claim] = []
        """Every claim that was ever made, of which most no longer hold."""
        self.last_token = 0
        self.max_attempts = 0

    def holds(self, lease: Lease) -> bool:
        """Whether a lease is the present one of its shard."""
        return self.shards[lease.shard].token == lease.token

    def live(self) -> list[int]:
        """The shards that have not ended."""
        return [number for number, shard in self.shards.items() if shard.state in LIVE]

    def present(self) -> list[Claim]:
        """The claims whose leases hold."""
        return [claim for claim in self.claims if self.holds(claim.lease)]

    def undecided(self, shard: Shard) -> list[int]:
        """The lines of a shard that have no outcome."""
        return [number for number in range(shard.first, shard.last + 1) if self.outcomes[shard.filing, number] is None]

    def of(self, *states: str) -> list[Shard]:
        """The shards in some states."""
        return [shard for shard in self.shards.values() if shard.state in states]

    def store(self, shard: Shard, outcomes: Sequence[Outcome]) -> int:
        """Decide lines that were not, and say how many those were."""
        new = [each for each in outcomes if self.outcomes[shard.filing, each.line] is None]
        for each in new:
            self.outcomes[shard.filing, each.line] = Decided(each.status, each.error_code, shard.attempt)
        return len(new)

    def end(self, shard: Shard, status: OutcomeStatus, code: OutcomeError) -> int:
        """End a shard, all its undecided lines alike, and say how many those were."""
        lines = self.undecided(shard)
        for number in lines:
            self.outcomes[shard.filing, number] = Decided(status, code, shard.attempt)
        shard.rest("done")
        return len(lines)

    def halve(self, shard: Shard) -> None:
        """Divide the undecided lines of a shard: the first half has the odd one."""
        lines = self.undecided(shard)
        middle = (len(lines) + 1) // 2
        shard.rest("split")
        for half in filter(None, (lines[:middle], lines[middle:])):
            self.born.append(
                replace(
                    shard, first=half[0], last=half[-1], state="waiting", attempt=shard.attempt - 1, forgotten=False
                )
            )

    def set_apart(self, shard: Shard, suspect: int) -> None:
        """Divide the undecided lines of a shard into a suspect, against whom the attempt counts, and the others."""
        lines = self.undecided(shard)
        shard.rest("split")
        parts = ([n for n in lines if n < suspect], [suspect], [n for n in lines if n > suspect])
        for part in filter(None, parts):
            attempt = shard.attempt if part == [suspect] else shard.attempt - 1
            self.born.append(
                replace(shard, first=part[0], last=part[-1], state="waiting", attempt=attempt, forgotten=False)
            )

    def lost(self, shard: Shard) -> None:
        """Let a worker be lost."""
        shard.losses += 1
        suspect, others = shard.at_work, len(self.undecided(shard)) > 1
        if suspect is not None:
            if shard.attempt >= self.max_attempts:
                self.outcomes[shard.filing, suspect] = Decided("errored", "engine_crashed", shard.attempt)
                shard.attempt -= others
                shard.rest("waiting" if others else "done")
            elif others:
                self.set_apart(shard, suspect)
            else:
                shard.rest("waiting")
        elif shard.losses < 10 * self.max_attempts:
            shard.attempt = shard.attempt - 1 if shard.losses > 1 else min(shard.attempt, self.max_attempts - 1)
            shard.rest("waiting")
        elif others:
            self.halve(shard)
        else:
            self.end(shard, OutcomeStatus.ERRORED, OutcomeError.WORKER_LOST)

    def failed(self, shard: Shard, code: OutcomeError, *, due: bool = True) -> None:
        """Let an attempt have failed."""
        if len(self.undecided(shard)) > 1:
            self.halve(shard)
        elif shard.attempt < self.max_attempts:
            shard.rest("waiting")
            shard.due = due
        else:
            self.end(shard, OutcomeStatus.ERRORED, code)

    def fenced(self, lease: Lease, write: Callable[[], T]) -> tuple[bool, T | None]:
        """Try a write, which must be refused exactly when the lease does not hold."""
        if self.holds(lease):
            return True, write()
        with pytest.raises(LeaseLostError):
            write()
        return False, None

    # What producers do.

    @initialize(max_attempts=st.integers(1, 3), lines=st.integers(1, 8), shard_lines=st.integers(1, 8))
    def file_the_first(self, max_attempts: int, lines: int, shard_lines: int) -> None:
        """Begin with a filing at work, since nothing happens without one."""
        self.max_attempts = max_attempts
        self.file(Lane.INTERACTIVE, lines, shard_lines, 0, deadline=True)
        self.the_docket_adds_up()
        self.release(Lane.INTERACTIVE, 8, 8, at_once=True)

    @precondition(lambda self: len(self.filings) < 6)
    @rule(
        lane=LANES,
        lines=st.integers(1, 8),
        shard_lines=st.integers(1, 8),
        priority=st.integers(0, 1),
        deadline=st.booleans(),
    )
    def file(self, lane: Lane, lines: int, shard_lines: int, priority: int, *, deadline: bool) -> None:
        """File comparisons, cut in shards."""
        filing = UUID(int=len(self.filings) + 1)
        self.filings.append(filing)
        starts = range(1, lines + 1, shard_lines)
        count = docket.file(
            self.connection,
            tenant="default",
            filing_id=filing,
            lane=lane,
            comparisons=[a_line(number) for number in range(1, lines + 1)],
            shard_lines=shard_lines,
            priority=priority,
            deadline_in=LONG if deadline else None,
        )
        assert count == len(starts)
        for number in range(1, lines + 1):
            self.outcomes[filing, number] = None
        for first in starts:
            last = min(first + shard_lines - 1, lines)
            self.born.append(Shard(filing, first, last, lane, priority, deadline=deadline))

    @precondition(lambda self: len(self.filings) > 2)
    @rule(filing=FILINGS, ours=st.booleans())
    def cancel(self, filing: UUID, *, ours: bool) -> None:
        """Call a filing off; another tenant cannot."""
        expected = 0
        if ours:
            for shard in self.of(*LIVE):
                if shard.filing == filing:
                    expected += self.end(shard, OutcomeStatus.CANCELLED, OutcomeError.CANCELLED)
        tenant = "default" if ours else "other"
        assert docket.cancel(self.connection, tenant=tenant, filing_id=filing) == expected

    # What dispatchers do.

    @precondition(lambda self: any(shard.due for shard in self.of("waiting")))
    @rule(lane=LANES, room=st.integers(0, 8), limit=st.integers(1, 8), at_once=st.booleans())
    def release(self, lane: Lane, room: int, limit: int, *, at_once: bool) -> None:
        """Let shards go and send their hints, which a worker may follow at once."""
        for hint in self.let_go(lane, room, limit):
            if at_once:
                self.claim(hint)
            else:
                self.hints.append(hint)

    def let_go(self, lane: Lane, room: int, limit: int) -> list[int]:
        """Let go as many as there is room for, the most urgent first."""
        out = self.of("released", "running") if lane is Lane.BULK else self.of("released")
        due = {
            number: shard
            for number, shard in self.shards.items()
            if shard.state == "waiting" and shard.due and shard.lane is lane
        }
        free = max(0, room - sum(shard.lane is lane for shard in out))
        released = docket.release(self.connection, lane=lane, room=room, limit=limit)
        assert len(released) == len(set(released)) == min(limit, free, len(due))
        assert set(released) <= set(due)
        left = [shard.priority for number, shard in due.items() if number not in released]
        assert all(due[number].priority >= max(left, default=0) for number in released)
        for number in released:
            due[number].state, due[number].forgotten = "released", False
        return released

    @precondition(lambda self: self.of("released"))
    @rule(shards=st.lists(SHARDS, min_size=1, max_size=3))
    def withdraw(self, shards: list[int]) -> None:
        """Take releases back, of which some may have been claimed meanwhile."""
        docket.withdraw(self.connection, shards)
        for number in shards:
            if self.shards[number].state == "released":
                self.shards[number].state = "waiting"

    @precondition(lambda self: any(shard.lapsed or shard.overdue or shard.forgotten for shard in self.of(*LIVE)))
    @rule()
    def sweep(self) -> None:
        """Look for what was lost, as a dispatcher does again and again."""
        for lane in Lane:
            self.hint_again(lane)
        self.reclaim()
        self.the_docket_adds_up()
        self.expire()

    def hint_again(self, lane: Lane) -> None:
        """Hint again what nobody claimed for an hour, and nothing else."""
        again = docket.hint_again(self.connection, lane=lane, older_than=LONG, limit=100)
        forgotten = {
            number
            for number, shard in self.shards.items()
            if shard.state == "released" and shard.forgotten and shard.lane is lane
        }
        assert sorted(again) == sorted(forgotten)
        for number in again:
            self.shards[number].forgotten = False
        self.hints += again

    def reclaim(self) -> None:
        """Bring back what has lapsed, and nothing else."""
        lapsed = [shard for shard in self.of("running") if shard.lapsed]
        for shard in lapsed:
            self.lost(shard)
        assert losses.reclaim(self.connection, max_attempts=self.max_attempts, limit=100).total() == len(lapsed)

    def expire(self) -> None:
        """End what is past its deadline, and nothing else."""
        expected = sum(
            self.end(shard, OutcomeStatus.EXPIRED, OutcomeError.DEADLINE_PASSED)
            for shard in self.of(*LIVE)
            if shard.overdue
        )
        assert docket.expire(self.connection, limit=100) == expected

    # What time and bad luck do.

    @rule(shard=SHARDS, deadline=st.booleans())
    def let_time_pass(self, shard: int, *, deadline: bool) -> None:
        """Let the time come that a shard waits for, or its deadline, by moving it into the past."""
        model = self.shards[shard]
        waits_for = {"waiting": "due_at", "released": "released_at", "running": "lease_until"}
        column = "deadline_at" if deadline else waits_for.get(model.state, "due_at")
        self.connection.execute(
            text(f"UPDATE shards SET {column} = {column} - interval '2 h' WHERE id = :id"),  # noqa: S608
            {"id": shard},
        )
        match column:
            case "deadline_at":
                model.overdue = model.deadline
            case "due_at":
                model.due = True
            case "released_at":
                model.forgotten = True
            case "lease_until":
                model.lapsed = True

    # What workers do, with leases that hold and with leases that do not.

    @rule(hint=HINTS, fate=st.sampled_from(["followed", "doubled", "lost"]))
    def deliver(self, hint: int, fate: str) -> None:
        """Let a hint arrive, late as it may be, or not."""
        if fate != "doubled" and hint in self.hints:
            self.hints.remove(hint)
        if fate != "lost":
            self.claim(hint)

    def claim(self, hint: int) -> None:
        """Claim, which must succeed exactly when the shard is released."""
        shard = self.shards[hint]
        claim = docket.claim(self.connection, hint, worker="w1", lease_seconds=LONG)
        assert (claim is not None) == (shard.state == "released")
        if claim is None:
            return
        assert claim.lease.shard == hint
        assert claim.lease.token > self.last_token
        self.last_token = claim.lease.token
        shard.state, shard.token, shard.lapsed = "running", claim.lease.token, False
        shard.attempt += 1
        assert (claim.filing_id, claim.first_line, claim.last_line) == (shard.filing, shard.first, shard.last)
        assert (claim.lane, claim.attempt, claim.careful) == (shard.lane, shard.attempt, shard.losses > 0)
        assert [each.line for each in docket.undecided(self.connection, claim)] == self.undecided(shard)
        self.claims.append(claim)

    @precondition(lambda self: self.present())
    @rule(claim=PRESENT, chosen=LINES, good=st.booleans())
    def work(self, claim: Claim, chosen: int, *, good: bool) -> None:
        """Judge some lines of a shard, as its holder."""
        self.record(claim, chosen, good=good)

    @precondition(lambda self: self.present())
    @rule(move=MOVES, claim=PRESENT, chosen=LINES, good=st.booleans())
    def move_on(self, move: str, claim: Claim, chosen: int, *, good: bool) -> None:
        """Do with a shard what its holder may do."""
        self.write(move, claim, chosen, good=good)

    @rule(move=MOVES, claim=GHOSTS, chosen=LINES, good=st.booleans())
    def haunt(self, move: str, claim: Claim, chosen: int, *, good: bool) -> None:
        """Wake with a lease that may be long lost, and go on as if nothing had happened."""
        self.write(move, claim, chosen, good=good)

    def write(self, move: str, claim: Claim, chosen: int, *, good: bool) -> None:
        """Make one of the moves that are the present holder's alone."""
        match move:
            case "renew":
                self.renew([claim, *self.present()[: chosen % 3]])
            case "note":
                self.note(claim, chosen)
            case "record":
                self.record(claim, chosen, good=good)
            case "finish":
                self.finish(claim, good=good)
            case "give_back":
                self.give_back(claim)
            case "fail":
                self.fail(claim, pause=good)
            case "lose":
                self.lose(claim)
            case "split":
                self.split(claim)

    def renew(self, claims: list[Claim]) -> None:
        """Prolong leases: the answer leaves out exactly those that do not hold."""
        leases = {claim.lease for claim in claims}
        good = {lease for lease in leases if self.holds(lease)}
        assert docket.renew(self.connection, list(leases), lease_seconds=LONG) == good
        for lease in good:
            self.shards[lease.shard].lapsed = False

    def note(self, claim: Claim, chosen: int) -> None:
        """Note an undecided line that is about to be tried."""
        shard = self.shards[claim.lease.shard]
        lines = self.undecided(shard)
        if lines:
            line = lines[chosen % len(lines)]
            held, _ = self.fenced(claim.lease, lambda: docket.note(self.connection, claim.lease, line))
            if held:
                shard.at_work = line

    def lose(self, claim: Claim) -> None:
        """Report that the worker is about to end, because its engine did."""
        held, _ = self.fenced(
            claim.lease, lambda: losses.lose(self.connection, claim.lease, max_attempts=self.max_attempts)
        )
        if held:
            self.lost(self.shards[claim.lease.shard])

    def record(self, claim: Claim, chosen: int, *, good: bool) -> None:
        """Store outcomes of some lines, decided ones among them, and hold on."""
        some = [
            an_outcome(number, good=good)
            for number in range(claim.first_line, claim.last_line + 1)
            if chosen >> (number - claim.first_line) & 1
        ]
        held, new = self.fenced(
            claim.lease, lambda: docket.record(self.connection, claim.lease, some, lease_seconds=LONG)
        )
        if held:
            shard = self.shards[claim.lease.shard]
            shard.lapsed, shard.at_work = False, None
            assert new == self.store(shard, some)

    def finish(self, claim: Claim, *, good: bool) -> None:
        """Store outcomes of all lines, decided ones among them, and end the shard."""
        every = [an_outcome(number, good=good) for number in range(claim.first_line, claim.last_line + 1)]
        held, new = self.fenced(claim.lease, lambda: docket.finish(self.connection, claim.lease, every))
        if held:
            shard = self.shards[claim.lease.shard]
            assert new == self.store(shard, every)
            shard.rest("done")

    def give_back(self, claim: Claim) -> None:
        """Put a shard back untried."""
        held, _ = self.fenced(claim.lease, lambda: docket.give_back(self.connection, claim.lease))
        if held:
            shard = self.shards[claim.lease.shard]
            shard.rest("waiting")
            shard.attempt -= 1

    def fail(self, claim: Claim, *, pause: bool) -> None:
        """Report that the engine failed."""
        held, _ = self.fenced(
            claim.lease,
            lambda: docket.fail(
                self.connection,
                claim,
                code=OutcomeError.ENGINE_FAILED,
                message="it failed",
                retry_in=LONG if pause else 0,
                max_attempts=self.max_attempts,
            ),
        )
        if held:
            self.failed(self.shards[claim.lease.shard], OutcomeError.ENGINE_FAILED, due=not pause)

    def split(self, claim: Claim) -> None:
        """Divide a shard that has something left to divide."""
        shard = self.shards[claim.lease.shard]
        if self.holds(claim.lease) and not self.undecided(shard):
            return
        held, _ = self.fenced(claim.lease, lambda: docket.split(self.connection, claim.lease))
        if held:
            self.halve(shard)

    # What must be so at all times.

    @invariant()
    def the_docket_adds_up(self) -> None:
        """Check the tables against what must always be so, then against the model. One query."""
        row = self.connection.execute(SNAPSHOT).one()
        lines = {(UUID(filing), number): outcome for filing, number, outcome in row.lines}
        assert len(lines) == len(row.lines), "a line has two outcomes"
        self.check_shards(row.shards, lines)
        self.check_outcomes(lines)
        self.check_model(row.shards, lines)

    def check_shards(self, shards: list[dict[str, Any]], lines: dict[tuple[UUID, int], Any]) -> None:
        """Each undecided line travels in one shard, and only what runs holds a lease."""
        carried: Counter[tuple[UUID, int]] = Counter()
        for shard in shards:
            covered = [(UUID(shard["filing_id"]), n) for n in range(shard["first_line"], shard["last_line"] + 1)]
            undecided = [key for key in covered if lines[key] is None]
            if shard["state"] in LIVE:
                carried.update(undecided)
            if shard["state"] == "done":
                assert not undecided, "an ended shard left a line behind"
            assert shard["at_work"] is None or (
                shard["state"] == "running" and shard["at_work"] in [n for _, n in undecided]
            )
            for column in ("lease_token", "lease_until", "lease_owner"):
                assert (shard[column] is not None) == (shard["state"] == "running"), column
            assert (shard["ended_at"] is not None) == (shard["state"] in {"done", "split"})
            assert 0 <= shard["attempt"] <= self.max_attempts
            assert shard["state"] not in {"waiting", "released"} or shard["attempt"] < self.max_attempts
        assert carried == Counter(key for key, outcome in lines.items() if outcome is None)

    def check_outcomes(self, lines: dict[tuple[UUID, int], Any]) -> None:
        """Every line is accounted for, and no outcome ever changes or goes away."""
        count: Counter[str] = Counter("undecided" if each is None else each["status"] for each in lines.values())
        assert count.total() == sum(count[status] for status in ("undecided", *OutcomeStatus))
        for key, first in self.first_seen.items():
            assert lines[key] == first, "an outcome changed"
        self.first_seen = {key: outcome for key, outcome in lines.items() if outcome is not None}

    def check_model(self, shards: list[dict[str, Any]], lines: dict[tuple[UUID, int], Any]) -> None:
        """The tables stand exactly as the model does."""
        for shard in shards:
            if shard["id"] not in self.shards:
                key = (UUID(shard["filing_id"]), shard["first_line"], shard["last_line"])
                [born] = [each for each in self.born if (each.filing, each.first, each.last) == key]
                self.born.remove(born)
                self.shards[shard["id"]] = born
        assert self.born == []
        columns = ("state", "attempt", "lease_token", "lane", "priority", "at_work")
        assert {
            shard["id"]: (
                *(shard[column] for column in columns),
                len(shard["losses"]),
                shard["deadline_at"] is not None,
            )
            for shard in shards
        } == {
            number: (
                shard.state,
                shard.attempt,
                shard.token,
                shard.lane,
                shard.priority,
                shard.at_work,
                shard.losses,
                shard.deadline,
            )
            for number, shard in self.shards.items()
        }
        assert {
            key: None if each is None else Decided(each["status"], each["error_code"], each["attempt"])
            for key, each in lines.items()
        } == self.outcomes

    def teardown(self) -> None:
        """Let workers that do their duty see everything through: every line gets an outcome."""
        if sys.exc_info()[0] is not None:
            return  # a step has failed, which is what is to be told
        for number, shard in self.shards.items():
            if shard.state == "running":
                self.see_through(Lease(shard=number, token=shard.token or 0), shard.first, shard.last)
        self.connection.execute(text("UPDATE shards SET due_at = now() WHERE state = 'waiting'"))
        for lane in Lane:
            docket.withdraw(self.connection, list(self.shards))
            for _ in self.shards:
                for number in docket.release(self.connection, lane=lane, room=3, limit=2):
                    claim = docket.claim(self.connection, number, worker="w1", lease_seconds=LONG)
                    assert claim is not None
                    self.see_through(claim.lease, claim.first_line, claim.last_line)
        row = self.connection.execute(SNAPSHOT).one()
        assert all(outcome is not None for _, _, outcome in row.lines)
        assert {shard["state"] for shard in row.shards} <= {"done", "split"}

    def see_through(self, lease: Lease, first: int, last: int) -> None:
        """Finish every line of a shard."""
        every = [an_outcome(number, good=True) for number in range(first, last + 1)]
        docket.finish(self.connection, lease, every)


@pytest.mark.timeout(1800)
def test_the_docket_keeps_its_promises_in_every_order(connection: Connection, request: pytest.FixtureRequest) -> None:
    """Whatever order things happen in, no line is lost or decided twice, and only the present holder may write."""
    full = request.config.getoption("--full")
    run_state_machine_as_test(
        lambda: DocketMachine(connection),
        settings=settings(
            max_examples=1000 if full else 120,
            stateful_step_count=60 if full else 40,
            derandomize=not full,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
