"""The history of a storm, and the checker that proves by it that nothing was lost and nothing done twice.

The checker is a pure function: it is given what was asked, answered, seen, received and stored, and nothing else.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple


class Asked(NamedTuple):
    """One request that was sent, and what came of it."""

    key: str
    """Its idempotency key."""
    at: float
    status: int | None
    """Of the answer; None where there was none."""
    id: str | None = None
    """What was filed, where the answer says so."""


class Seen(NamedTuple):
    """A comparison as a reader saw it once it had ended."""

    id: str
    outcome: str
    """All of it that may never change."""


class Receipt(NamedTuple):
    """A callback that came."""

    event: str
    """The event's id."""
    body: str
    subject: str
    """The id of the object that it tells of."""
    type: str


class Move(NamedTuple):
    """A write to a shard, as the database saw it."""

    shard: int
    was: str
    became: str
    had_token: int | None
    has_token: int | None
    had_attempt: int
    has_attempt: int
    counted: int
    """By how much its counts of succeeded and errored lines went up."""


class Outcome(NamedTuple):
    """A row of outcomes."""

    filing: str
    line: int
    status: str
    code: str | None


class Shard(NamedTuple):
    """A row of shards."""

    id: int
    filing: str
    state: str
    counts: dict[str, int]
    """How many of its lines ended how."""


class Filing(NamedTuple):
    """What a key stands for in the tables."""

    key: str
    """As its own content says: the test writes the key into what it files."""
    id: str
    """As the API says it."""
    filing: str
    """As the tables say it."""
    first_line: int
    lines: int
    batch: str | None
    """A batch's status; None for a comparison that was filed singly."""


@dataclass
class Wanted:
    """What a key is to lead to."""

    callbacks: bool = False
    """Whether its own end is to be told."""
    line_callbacks: bool = False
    """Whether those of its lines are."""
    poison: frozenset[int] = frozenset()
    """Lines that crash the engine each time."""
    may_cancel: bool = False


@dataclass
class History:
    """All that is known of a storm."""

    wanted: dict[str, Wanted] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    receipts: list[Receipt] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)
    filings: list[Filing] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    shards: list[Shard] = field(default_factory=list)
    pending_callbacks: int = 0
    """Callbacks and events that are neither delivered nor dead."""
    dead_callbacks: int = 0
    deaths: list[tuple[str, int]] = field(default_factory=list)
    """Processes that ended though nobody told them to, each with its exit status."""
    max_attempts: int = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """What became of one invariant."""

    name: str
    checked: int
    """How many facts it was held to."""
    broken: list[str]
    """The facts that break it."""


Facts = Iterator[str | None]
"""One for each fact: None where it holds, else what is wrong with it."""

_LIVE = ("waiting", "released", "running")


def check(history: History) -> list[Finding]:
    """Hold a history to every invariant."""
    findings = []
    for name, facts in INVARIANTS.items():
        told = list(facts(history))
        findings.append(Finding(name, len(told), [fact for fact in told if fact is not None]))
    return findings


def broken(findings: Iterable[Finding]) -> list[str]:
    """Name the invariants that do not hold."""
    return [finding.name for finding in findings if finding.broken]


def table(findings: Iterable[Finding]) -> str:
    """Print what was found, with the first few facts that break something."""
    lines = [f"{'invariant':<52} {'checked':>8} {'broken':>7}"]
    for finding in findings:
        lines.append(f"{finding.name:<52} {finding.checked:>8} {len(finding.broken):>7}")
        lines += [f"    {fact}" for fact in finding.broken[:5]]
    return "\n".join(lines)


def _acknowledged(history: History) -> dict[str, set[str]]:
    """What each key was acknowledged as."""
    acknowledged: dict[str, set[str]] = defaultdict(set)
    for asked in history.asked:
        if asked.id is not None:
            acknowledged[asked.key].add(asked.id)
    return acknowledged


def _lines(filing: Filing) -> range:
    return range(filing.first_line, filing.first_line + filing.lines)


def nothing_lost(history: History) -> Facts:
    """What was acknowledged is there, and each of its lines has its outcome."""
    decided = {(outcome.filing, outcome.line) for outcome in history.outcomes}
    filings = {filing.id: filing for filing in history.filings}
    for key, ids in _acknowledged(history).items():
        for each in ids:
            filing = filings.get(each)
            if filing is None:
                yield f"{key} was acknowledged as {each}, which is not there"
                continue
            for line in _lines(filing):
                yield None if (filing.filing, line) in decided else f"{key} ({each}) line {line} has no outcome"


def one_outcome_each(history: History) -> Facts:
    """No line has two outcomes, none has one that was not filed, and what was seen of one never changed."""
    for (filing, line), count in Counter((each.filing, each.line) for each in history.outcomes).items():
        yield None if count == 1 else f"line {line} of {filing} has {count} outcomes"
    first: dict[str, str] = {}
    for seen in history.seen:
        before = first.setdefault(seen.id, seen.outcome)
        yield None if before == seen.outcome else f"{seen.id} was seen as {before}, and then as {seen.outcome}"


def counters_equal_rows(history: History) -> Facts:
    """What the shards of a filing count is what its outcomes are."""
    counted: dict[str, Counter[str]] = defaultdict(Counter)
    for shard in history.shards:
        counted[shard.filing].update({status: count for status, count in shard.counts.items() if count})
    stored: dict[str, Counter[str]] = defaultdict(Counter)
    for outcome in history.outcomes:
        stored[outcome.filing][outcome.status] += 1
    for filing in history.filings:
        counts, rows = counted[filing.filing], stored[filing.filing]
        yield None if counts == rows else f"{filing.key}: counted {dict(counts)}, stored {dict(rows)}"
        total = sum(rows.values())
        yield None if total <= filing.lines else f"{filing.key}: {total} outcomes of {filing.lines} lines"


def batches_end(history: History) -> Facts:
    """Every batch comes to its end, and is cancelled only where somebody cancelled it."""
    for filing in history.filings:
        if filing.batch is not None:
            ends = {"completed", "cancelled"} if history.wanted[filing.key].may_cancel else {"completed"}
            yield None if filing.batch in ends else f"{filing.key} is {filing.batch}"


def events_arrive(history: History) -> Facts:
    """Every ending that somebody wanted to hear of arrived, always under one id and with one body."""
    told: dict[str, set[tuple[str, str, str]]] = defaultdict(set)
    for receipt in history.receipts:
        told[receipt.subject].add((receipt.event, receipt.type, receipt.body))
    statuses = {(outcome.filing, outcome.line): outcome.status for outcome in history.outcomes}
    expected: dict[str, str] = {}
    for filing in history.filings:
        wanted = history.wanted[filing.key]
        if wanted.callbacks:
            end = f"batch.{filing.batch}" if filing.batch else f"comparison.{statuses.get((filing.filing, 0))}"
            expected[filing.id] = end
        if wanted.line_callbacks:
            for line in _lines(filing):
                expected[f"cmp_{filing.filing}_{line}"] = f"comparison.{statuses.get((filing.filing, line))}"
    for subject, end in expected.items():
        got = told.pop(subject, set())
        if len(got) == 1:
            [(_, type_, _)] = got
            yield None if type_ == end else f"{subject} ended as {end} and was told as {type_}"
        else:
            yield f"{subject} ({end}) was told under {len(got)} ids or bodies"
    for subject in told:
        yield f"{subject} was told of, and nobody had asked for that"
    for event, bodies in Counter(event for event, _ in {(r.event, r.body) for r in history.receipts}).items():
        yield None if bodies == 1 else f"{event} came with {bodies} bodies"


def none_stuck(history: History) -> Facts:
    """When all is quiet nothing waits any more: no shard, no callback, no producer."""
    for shard in history.shards:
        yield f"shard {shard.id} of {shard.filing} is {shard.state}" if shard.state in _LIVE else None
    yield f"{history.pending_callbacks} callbacks are pending" if history.pending_callbacks else None
    yield f"{history.dead_callbacks} callbacks are dead" if history.dead_callbacks else None
    acknowledged = _acknowledged(history)
    for key in history.wanted:
        yield None if key in acknowledged else f"{key} was never acknowledged"


def one_key_one_filing(history: History) -> Facts:
    """All answers to a key name the same filing, and the tables hold no second one."""
    for key, ids in _acknowledged(history).items():
        yield None if len(ids) == 1 else f"{key} was acknowledged as {sorted(ids)}"
    for key, count in Counter(filing.key for filing in history.filings).items():
        yield None if count == 1 else f"{key} was filed {count} times"


_LEGAL = {
    ("waiting", "released"),  # release
    ("waiting", "done"),  # cancel, expire
    ("released", "waiting"),  # withdraw, recall
    ("released", "released"),  # hinted again
    ("released", "running"),  # claim
    ("released", "done"),  # cancel, expire
    ("running", "running"),  # renew, note, record
    ("running", "waiting"),  # give back, lose, recall
    ("running", "done"),  # finish, and whatever else ends it
    ("running", "split"),
}


def holders_write(history: History) -> Facts:
    """A shard is written by whoever holds it, and by nobody who held it once; each claim has a token of its own."""
    tokens: set[int] = set()
    for move in history.moves:
        told = f"shard {move.shard} went from {move.was} to {move.became}"
        if (move.was, move.became) not in _LEGAL:
            yield f"{told}: somebody wrote who did not hold it"
        elif move.was != "running" and move.counted:
            yield f"{told} and counted {move.counted} lines that nobody held"
        elif move.was == move.became == "running" and move.had_token != move.has_token:
            yield f"{told} with another token"
        elif (move.was, move.became) == ("released", "running"):
            if move.has_token is None or move.has_token in tokens:
                yield f"{told} with token {move.has_token}, which is not its own"
            else:
                tokens.add(move.has_token)
                yield None
        else:
            yield None


def attempts_counted(history: History) -> Facts:
    """Each claim counts an attempt before anything is done."""
    for move in history.moves:
        if move.became == "running" and move.was != "running":
            counted = move.has_attempt == move.had_attempt + 1
            yield None if counted else f"shard {move.shard} was claimed at attempt {move.has_attempt}, uncounted"


def faults_cost_nobody(history: History) -> Facts:
    """All succeed but what crashes the engine each time, and what somebody cancelled."""
    keys = {filing.filing: filing.key for filing in history.filings}
    for outcome in history.outcomes:
        key = keys.get(outcome.filing)
        if key is None:
            yield f"an outcome of {outcome.filing}, which nobody filed"
            continue
        wanted = history.wanted[key]
        if outcome.status == "cancelled" and wanted.may_cancel:
            yield None
        elif outcome.line in wanted.poison:
            yield None if outcome.code == "engine_crashed" else f"{key} line {outcome.line}: poison {outcome.status}"
        elif outcome.status == "succeeded":
            yield None
        else:
            yield f"{key} line {outcome.line} {outcome.status}: {outcome.code}"


def outages_are_told(history: History) -> Facts:
    """An answer is what was asked for, or says that the service cannot now; it is never a mistake of ours."""
    for asked in history.asked:
        # Whoever calls off what has ended is told so.
        fine = asked.status in {None, 200, 202, 429, 503} or (asked.status == 409 and asked.key not in history.wanted)
        yield None if fine else f"{asked.key} was answered {asked.status} at {asked.at:.1f} s"


def processes_live(history: History) -> Facts:
    """No process ends over a fault of another: only what crashes the engine takes workers with it, so many each."""
    crashes = sum(len(wanted.poison) for wanted in history.wanted.values()) * history.max_attempts
    dead = Counter(name.split("-")[0] for name, _ in history.deaths)
    yield None if dead["worker"] <= crashes else f"{dead['worker']} workers ended, and poison may end {crashes}"
    for name, status in history.deaths:
        poisoned = name.startswith("worker") and status == -9
        yield None if poisoned and crashes else f"{name} ended by itself with status {status}"


INVARIANTS: dict[str, Callable[[History], Facts]] = {
    "no acknowledged comparison is lost": nothing_lost,
    "at most one outcome each": one_outcome_each,
    "counters equal rows": counters_equal_rows,
    "every batch ends": batches_end,
    "every event arrives, under one id": events_arrive,
    "nothing is stuck": none_stuck,
    "one idempotency key, one filing": one_key_one_filing,
    "only the holder of a lease writes": holders_write,
    "each attempt is counted before it is made": attempts_counted,
    "a fault costs nobody an outcome": faults_cost_nobody,
    "an outage is answered as one": outages_are_told,
    "no process ends over another's fault": processes_live,
}
