"""Claim a shard, judge its lines, finish it. No transaction is open while the engine works."""

import hashlib
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import structlog
from sqlalchemy import Connection
from sqlalchemy import Engine as Database

from infra import docket, precedents
from infra.database import persist
from infra.docket import Claim, Lease, LeaseLostError
from infra.filed import Filed
from infra.logs import REQUEST_ID
from infra.outcomes import Outcome
from schemas.problems import OutcomeError
from schemas.states import OutcomeStatus
from schemas.verdict import Ballot, Order
from worker import ballots, prompts
from worker.admission import Gate
from worker.engines.base import Engine, EngineError, EngineGoneError, Score

log = structlog.get_logger()

T = TypeVar("T")

_RECORD_SECONDS = 1.0
"""Outcomes in hand are stored this often: what a crash costs at most, and what a transaction is worth."""

ORDERS: dict[str, tuple[Order, ...]] = {"both": ("ab", "ba"), "ab": ("ab",), "ba": ("ba",)}


class UnparseableError(Exception):
    """The model's answer was no verdict; the message says what it was instead, without its text."""


@dataclass(frozen=True, slots=True)
class Rules:
    """The settings that judging goes by. Times are seconds."""

    worker: str
    lease_seconds: float
    max_attempts: int
    mass_threshold: float
    temperature: float
    patience_seconds: float = 60.0
    """How long a result in hand is kept while Postgres cannot be reached."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What a worker judges with: built once by `worker/app.py` and handed down."""

    engine: Engine
    gate: Gate
    database: Database
    rules: Rules
    judges: dict[str, str]
    """The id of this engine's judge, by profile."""
    leases: set[Lease] = field(default_factory=set)
    """What this worker holds; the heartbeat renews it."""
    draining: threading.Event = field(default_factory=threading.Event)
    """Set when the worker is to end: claim nothing, give back what is not begun."""


@dataclass(frozen=True, slots=True)
class Case:
    """A comparison with its prompts, ready for the engine."""

    comparison: Filed
    orders: tuple[Order, ...]
    prompts: tuple[Sequence[int], ...]
    tokens: int
    """The tokens of all its prompts."""
    digest: bytes | None


def judge_shard(bench: Bench, shard: int) -> None:
    """Claim a shard and see it through: to its end, to its next attempt, or back onto the docket.

    Raises:
        EngineGoneError: the engine is of no more use; what was in hand is back on the docket. The process must end.
    """
    if bench.draining.is_set():
        return  # the sweep will hint it again, to a worker that stays
    claim = _persist(
        bench,
        lambda c: docket.claim(c, shard, worker=bench.rules.worker, lease_seconds=bench.rules.lease_seconds),
    )
    if claim is None:
        log.debug("hint_without_work", shard=shard)
        return
    bench.leases.add(claim.lease)
    started = time.monotonic()
    try:
        decided = _work(bench, claim)
    except LeaseLostError:
        log.warning("stale_write_refused", shard=shard, attempt=claim.attempt)
    except EngineError as error:
        log.warning("attempt_failed", shard=shard, attempt=claim.attempt, error=type(error).__name__)
        _fail(bench, claim, error)
        if isinstance(error, EngineGoneError):
            raise
    else:
        log.info(
            "shard_ended",
            shard=shard,
            lane=claim.lane,
            attempt=claim.attempt,
            decided=decided,
            seconds=round(time.monotonic() - started, 4),
        )
    finally:
        bench.leases.discard(claim.lease)


def _work(bench: Bench, claim: Claim) -> int:
    """Judge what is undecided of a claimed shard, storing as it goes. Returns how many lines it decided."""
    with bench.database.connect() as connection:
        comparisons = docket.undecided(connection, claim)
        digests = {each.line: _digest(each) for each in comparisons} if claim.options.get("reuse", True) else {}
        found = precedents.find(
            connection, tenant=claim.tenant, digests=list(digests.values()), judges=list(bench.judges.values())
        )
    if len(comparisons) == 1:
        structlog.contextvars.bind_contextvars(**{REQUEST_ID: comparisons[0].request_id})
    # Prompts that share a beginning follow each other, so that the engine can reuse what it computed.
    comparisons.sort(key=lambda each: str(each.prompt))
    first, twins = _twins(comparisons, digests)
    reused, fresh = _reuse(bench, first, digests, found)
    ready, outcomes = _prepare(bench, fresh, digests)
    outcomes = _with_twins(reused + outcomes, twins)
    decided = 0
    stored_at = time.monotonic()
    steps = list(_steps(ready, bench.engine.card.step_tokens))
    for step in steps[:-1]:
        if bench.draining.is_set():
            break
        outcomes += _with_twins(_judge(bench, claim, step), twins)
        if time.monotonic() - stored_at >= _RECORD_SECONDS:
            _record(bench, claim, outcomes)
            decided += len(outcomes)
            outcomes = []
            stored_at = time.monotonic()
    if bench.draining.is_set() and steps:
        _give_back(bench, claim, outcomes)
        return decided + len(outcomes)
    if steps:
        outcomes += _with_twins(_judge(bench, claim, steps[-1]), twins)
    _persist(bench, lambda c: docket.finish(c, claim.lease, outcomes))
    return decided + len(outcomes)


def _record(bench: Bench, claim: Claim, outcomes: Sequence[Outcome]) -> None:
    _persist(bench, lambda c: docket.record(c, claim.lease, outcomes, lease_seconds=bench.rules.lease_seconds))


def _digest(comparison: Filed) -> bytes:
    """Hash what is asked: the same comparison under the same judge is not computed twice for one tenant."""
    asked = (
        comparison.prompt,
        comparison.response_a,
        comparison.response_b,
        comparison.orders,
        comparison.profile,
        comparison.tie_margin,
    )
    hashed = hashlib.blake2b(digest_size=16)
    for part in asked:
        data = (part if isinstance(part, str) else repr(part)).encode()
        hashed.update(b"%d:" % len(data))
        hashed.update(data)
    return hashed.digest()


def _twins(comparisons: Sequence[Filed], digests: dict[int, bytes]) -> tuple[list[Filed], dict[int, list[Filed]]]:
    """Tell comparisons of a shard that ask the same from the first that does: one judging answers them all.

    Returns:
        The first of each, and the others by the line of their first.
    """
    firsts: dict[bytes, Filed] = {}
    twins: dict[int, list[Filed]] = {}
    rest = []
    for comparison in comparisons:
        digest = digests.get(comparison.line)
        first = comparison if digest is None else firsts.setdefault(digest, comparison)
        if first is comparison:
            rest.append(comparison)
        else:
            twins.setdefault(first.line, []).append(comparison)
    return rest, twins


def _with_twins(outcomes: Sequence[Outcome], twins: dict[int, list[Filed]]) -> list[Outcome]:
    """Give the outcome of a line to its twins also, at no cost."""
    everyone = list(outcomes)
    if twins:
        for outcome in outcomes:
            free = outcome._replace(
                prompt_tokens=0, cached_tokens=0, gpu_seconds=0.0, digest=None, reused=outcome.tally is not None
            )
            everyone += [free._replace(line=twin.line) for twin in twins.get(outcome.line, ())]
    return everyone


def _reuse(
    bench: Bench, comparisons: Sequence[Filed], digests: dict[int, bytes], found: dict[tuple[bytes, str], str]
) -> tuple[list[Outcome], list[Filed]]:
    """Answer from earlier verdicts what can be; the rest is fresh."""
    outcomes: list[Outcome] = []
    fresh: list[Filed] = []
    for comparison in comparisons:
        judge_id = bench.judges[comparison.profile]
        tally = found.get((digests.get(comparison.line, b""), judge_id)) if found else None
        if tally is None:
            fresh.append(comparison)
            continue
        outcomes.append(
            Outcome(
                line=comparison.line,
                status=OutcomeStatus.SUCCEEDED,
                tally=tally,
                judge_id=judge_id,
                reused=True,
            )
        )
    return outcomes, fresh


def _prepare(bench: Bench, comparisons: Sequence[Filed], digests: dict[int, bytes]) -> tuple[list[Case], list[Outcome]]:
    """Turn comparisons into cases; those that cannot be put to this judge into outcomes that say why."""
    cases: list[Case] = []
    outcomes: list[Outcome] = []
    limit = bench.engine.card.max_prompt_tokens
    for comparison in comparisons:
        orders = ORDERS[comparison.orders]
        try:
            ids = tuple(bench.engine.encode(prompts.build(comparison, order)) for order in orders)
        except prompts.ProfileUnfitError as error:
            outcomes.append(_errored(comparison, OutcomeError.PROFILE_UNFIT, str(error)))
            continue
        lengths = [len(each) for each in ids]
        longest = max(lengths)
        if longest > limit:
            message = f"the prompt is {longest} tokens long, the judge takes {limit}"
            outcomes.append(_errored(comparison, OutcomeError.CONTEXT_LENGTH_EXCEEDED, message))
            continue
        digest = digests.get(comparison.line)
        case = Case(comparison=comparison, orders=orders, prompts=ids, tokens=sum(lengths), digest=digest)
        cases.append(case)
    return cases, outcomes


def _steps(cases: Sequence[Case], step_tokens: int) -> Iterator[list[Case]]:
    """Cut cases into engine steps of about `step_tokens` each. A comparison's orders stay together."""
    step: list[Case] = []
    tokens = 0
    for case in cases:
        # A profile that writes takes its time: such a case is a step of its own.
        alone = prompts.PROFILES[case.comparison.profile].writes
        if step and (alone or tokens + case.tokens > step_tokens):
            yield step
            step, tokens = [], 0
        step.append(case)
        tokens += case.tokens if not alone else step_tokens
    if step:
        yield step


def _judge(bench: Bench, claim: Claim, step: Sequence[Case]) -> list[Outcome]:
    """Put one step to the engine, when its turn has come."""
    with bench.gate.admit(sum(case.tokens for case in step), claim.lane):
        if prompts.PROFILES[step[0].comparison.profile].writes:
            return [_written(bench, case) for case in step]
        scores = iter(bench.engine.score([ids for case in step for ids in case.prompts]))
        return [_scored(bench, case, [next(scores) for _ in case.prompts]) for case in step]


def _scored(bench: Bench, case: Case, scores: Sequence[Score]) -> Outcome:
    cast = []
    for order, score in zip(case.orders, scores, strict=True):
        if not (math.isfinite(score.log_odds) and math.isfinite(score.mass)):
            message = f"order {order}: the engine's odds are no number"
            return _errored(case.comparison, OutcomeError.UNPARSEABLE, message, case.tokens, scores)
        if score.mass < bench.rules.mass_threshold:
            message = (
                f"order {order}: the model put {score.mass:.3g} of its probability on A and B, "
                f"under the threshold of {bench.rules.mass_threshold:g}"
            )
            return _errored(case.comparison, OutcomeError.UNPARSEABLE, message, case.tokens, scores)
        cast.append(ballots.ballot(order, score.log_odds, score.mass))
    return _succeeded(bench, case, cast, scores)


def _written(bench: Bench, case: Case) -> Outcome:
    cast: list[Ballot] = []
    scores: list[Score] = []
    room = bench.engine.card.max_prompt_tokens
    for order, ids in zip(case.orders, case.prompts, strict=True):
        written = bench.engine.generate(ids, min(prompts.MAX_GENERATED_TOKENS, max(1, room - len(ids))))
        scores.append(Score(0.0, 0.0, cached_tokens=written.cached_tokens, seconds=written.seconds))
        vote = parse(written.text)
        if vote is None:
            message = f"order {order}: no [[A]] or [[B]] in the {written.generated_tokens} tokens the model wrote"
            asked = sum(len(each) for each in case.prompts[: len(scores)])
            return _errored(case.comparison, OutcomeError.UNPARSEABLE, message, asked, scores)
        odds = written.verdict
        # The odds count only where they are those of the verdict that was parsed.
        if odds is not None and (odds.log_odds > 0) == (vote == "A"):
            cast.append(ballots.ballot(order, odds.log_odds, odds.mass))
        else:
            cast.append(ballots.vote_only(order, vote))
    return _succeeded(bench, case, cast, scores)


def parse(text: str) -> Literal["A", "B"] | None:
    """Read a verdict from what the model itself wrote, as RewardBench does: `[[A]]` anywhere, else `[[B]]`."""
    if "[[A]]" in text:
        return "A"
    return "B" if "[[B]]" in text else None


def _succeeded(bench: Bench, case: Case, cast: Sequence[Ballot], scores: Sequence[Score]) -> Outcome:
    tally = ballots.count(cast, temperature=bench.rules.temperature, tie_margin=case.comparison.tie_margin)
    return Outcome(
        line=case.comparison.line,
        status=OutcomeStatus.SUCCEEDED,
        tally=tally.model_dump_json(),
        judge_id=bench.judges[case.comparison.profile],
        prompt_tokens=case.tokens,
        cached_tokens=sum(score.cached_tokens for score in scores),
        gpu_seconds=sum(score.seconds for score in scores),
        digest=case.digest,
    )


def _errored(
    comparison: Filed,
    code: OutcomeError,
    message: str,
    tokens: int = 0,
    scores: Sequence[Score] = (),
) -> Outcome:
    return Outcome(
        line=comparison.line,
        status=OutcomeStatus.ERRORED,
        error_code=code,
        error_message=message,
        prompt_tokens=tokens,
        cached_tokens=sum(score.cached_tokens for score in scores),
        gpu_seconds=sum(score.seconds for score in scores),
    )


def _give_back(bench: Bench, claim: Claim, outcomes: Sequence[Outcome]) -> None:
    def write(connection: Connection) -> None:
        docket.record(connection, claim.lease, outcomes, lease_seconds=bench.rules.lease_seconds)
        docket.give_back(connection, claim.lease)

    _persist(bench, write)
    log.info("shard_given_back", shard=claim.lease.shard, stored=len(outcomes))


def _fail(bench: Bench, claim: Claim, error: EngineError) -> None:
    try:
        _persist(
            bench,
            lambda c: docket.fail(
                c,
                claim,
                code=OutcomeError.ENGINE_FAILED,
                message=f"the engine failed at each of {claim.attempt} attempts: {str(error)[:300]}",
                retry_in=min(60.0, 2.0 ** (claim.attempt - 1)),
                max_attempts=bench.rules.max_attempts,
            ),
        )
    except LeaseLostError:
        log.warning("stale_write_refused", shard=claim.lease.shard, attempt=claim.attempt)


def _persist(bench: Bench, write: Callable[[Connection], T]) -> T:
    """Run one transaction, with patience: GPU work in hand is worth waiting for.

    A commit whose answer was lost is safe to repeat: the token has left the row, and outcomes have unique keys.
    """
    return persist(bench.database, write, patience_seconds=bench.rules.patience_seconds)
