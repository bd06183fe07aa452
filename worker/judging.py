"""Claim a shard, judge its lines, finish it. No transaction is open while the engine works."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import structlog
from sqlalchemy import Connection
from sqlalchemy import Engine as Database
from sqlalchemy.exc import SQLAlchemyError

from infra import docket, losses, metrics, precedents
from infra.database import Begin, at_once, persist
from infra.docket import Claim, LeaseLostError
from infra.filed import Filed
from infra.logs import REQUEST_ID
from infra.outcomes import Outcome
from infra.traces import Attributes, Span
from schemas.problems import OutcomeError
from schemas.states import Lane
from worker import ballots, cases, prompts, verdicts
from worker.bench import Bench
from worker.cases import Case
from worker.engines.base import (
    Engine,
    EngineAwayError,
    EngineError,
    EngineGoneError,
    EngineOutOfMemoryError,
    Score,
    is_number,
)

log = structlog.get_logger()

T = TypeVar("T")

_RECORD_SECONDS = 1.0
"""Outcomes in hand are stored this often: what a crash costs at most, and what a transaction is worth."""
_REASON_CHARACTERS = 300
"""How much of what an engine says of its failure is stored and logged."""


@dataclass(frozen=True, slots=True)
class Lines:
    """What there is to judge of a shard."""

    fresh: Sequence[Filed]
    digests: dict[int, bytes]
    twins: dict[int, list[Filed]]
    """Those that ask the same as a fresh one, by its line."""


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
        at_once,
    )
    if claim is None:
        bench.meters.add(metrics.IDLE_HINTS)
        log.debug("hint_without_work", shard=shard)
        return
    bench.meters.add(metrics.CLAIMS, lane=claim.lane)
    bench.leases.add(claim.lease)
    about: Attributes = {
        "nightcourt.shard": shard,
        "nightcourt.attempt": claim.attempt,
        "nightcourt.lane": str(claim.lane),
    }
    with bench.traces.follow("judge shard", claim.traceparent, about, apart=claim.lane is Lane.BULK) as span:
        _see_through(bench, claim, span)


def _see_through(bench: Bench, claim: Claim, span: Span) -> None:
    """Judge a claimed shard, and tell how that ended."""
    shard = claim.lease.shard
    started = time.monotonic()
    ending = "left"
    try:
        decided = _work(bench, claim)
    except LeaseLostError:
        ending = "refused"
        span.fail("LeaseLostError")
        bench.meters.add(metrics.STALE_WRITES)
        log.warning("stale_write_refused", shard=shard, attempt=claim.attempt)
    except EngineError as error:
        ending = "failed"
        span.fail(type(error).__name__)
        told = {"error": type(error).__name__, "reason": str(error)[:_REASON_CHARACTERS]}
        log.warning("attempt_failed", shard=shard, attempt=claim.attempt, **told)
        _fail(bench, claim, error)
        if isinstance(error, EngineGoneError):
            raise
    else:
        ending = "finished"
        span.note({"nightcourt.decided": decided})
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
        bench.meters.add(metrics.SHARDS_ENDED, lane=claim.lane, ending=ending)
        bench.meters.observe(metrics.SHARD_SECONDS, time.monotonic() - started, lane=claim.lane)


def _work(bench: Bench, claim: Claim) -> int:
    """Judge what is undecided of a claimed shard, storing as it goes. Returns how many lines it decided."""

    def read(connection: Connection) -> tuple[list[Filed], dict[int, bytes], dict[tuple[bytes, str], str]]:
        comparisons = docket.undecided(connection, claim, own_profile=bench.rules.profile)
        digests = {each.line: cases.digest(each) for each in comparisons} if claim.options.get("reuse", True) else {}
        found = precedents.find(
            connection, tenant=claim.tenant, digests=list(digests.values()), judges=list(bench.judges.values())
        )
        return comparisons, digests, found

    comparisons, digests, found = _persist(bench, read, at_once)
    if len(comparisons) == 1:
        structlog.contextvars.bind_contextvars(**{REQUEST_ID: comparisons[0].request_id})
    # Prompts that share a beginning follow each other, so that the engine can reuse what it computed.
    comparisons.sort(key=lambda each: str(each.prompt))
    singles, twins = cases.tell_twins(comparisons, digests)
    outcomes, fresh = cases.reuse(singles, digests, bench.judges, found, bench.rules.mass_threshold)
    work = _work_carefully if claim.careful else _work_in_steps
    return work(bench, claim, Lines(fresh, digests, twins), outcomes)


def _work_in_steps(bench: Bench, claim: Claim, lines: Lines, outcomes: list[Outcome]) -> int:
    """Judge lines in steps of the engine's size, storing what is decided now and then."""
    decided = 0
    stored_at = time.monotonic()
    try:
        for step in cases.steps(lines.fresh, lines.digests, bench.engine, outcomes.append):
            if bench.draining.is_set():
                break
            if time.monotonic() - stored_at >= _RECORD_SECONDS:
                decided += _record(bench, claim, cases.with_twins(outcomes, lines.twins))
                outcomes.clear()
                stored_at = time.monotonic()
            with bench.gate.admit(sum(case.tokens for case in step), claim.lane, claim.tenant):
                if bench.draining.is_set():  # told to end while it stood in line
                    break
                outcomes += _judge(bench, claim, step)
        else:
            return decided + _finish(bench, claim, cases.with_twins(outcomes, lines.twins))
    except EngineError:
        # What was computed is stored before the attempt is told of: it is not computed again.
        try:
            _record(bench, claim, cases.with_twins(outcomes, lines.twins))
        except LeaseLostError:
            pass  # the attempt will be told so too
        except SQLAlchemyError as error:
            log.warning("outcomes_not_stored", shard=claim.lease.shard, error=type(error).__name__)
        raise
    return decided + _give_back(bench, claim, cases.with_twins(outcomes, lines.twins))


def _work_carefully(bench: Bench, claim: Claim, lines: Lines, outcomes: list[Outcome]) -> int:
    """Judge lines one by one, each alone in the engine and noted before it is tried: a worker was lost over them.

    What is noted when this process ends is what ended it (infra/losses.py). So all that is done for a line, its
    prompts too, is done between its note and its outcome, and nobody else's work meanwhile.
    """
    decided = _record(bench, claim, cases.with_twins(outcomes, lines.twins))
    for line in lines.fresh:
        if bench.draining.is_set():
            break
        with bench.gate.alone(claim.lane, claim.tenant):
            if bench.draining.is_set():  # told to end while it stood in line
                break
            _persist(bench, partial(docket.note, lease=claim.lease, line=line.line))
            outcomes = []
            for step in cases.steps([line], lines.digests, bench.engine, outcomes.append):
                outcomes += _judge(bench, claim, step)
            decided += _record(bench, claim, cases.with_twins(outcomes, lines.twins))
    else:
        return decided + _finish(bench, claim, [])
    return decided + _give_back(bench, claim, [])


def _record(bench: Bench, claim: Claim, outcomes: Sequence[Outcome]) -> int:
    lease_seconds = bench.rules.lease_seconds
    stored = _persist(bench, lambda c: docket.record(c, claim.lease, outcomes, lease_seconds=lease_seconds))
    _count(bench, claim, outcomes)
    return stored


def _finish(bench: Bench, claim: Claim, outcomes: Sequence[Outcome]) -> int:
    stored = _persist(bench, lambda c: docket.finish(c, claim.lease, outcomes))
    _count(bench, claim, outcomes)
    return stored


def _count(bench: Bench, claim: Claim, outcomes: Sequence[Outcome]) -> None:
    """Count outcomes that were stored."""
    for result, lines in Counter([each.error_code or each.status for each in outcomes]).items():
        bench.meters.add(metrics.OUTCOMES, lines, lane=claim.lane, result=result)
    bench.meters.add(metrics.REUSED, sum([each.reused for each in outcomes]), lane=claim.lane)


def _judge(bench: Bench, claim: Claim, step: Sequence[Case]) -> list[Outcome]:
    """Put one step to the engine. Its turn has come."""
    if prompts.PROFILES[step[0].comparison.profile].writes:
        return [_written(bench, case, claim.tenant) for case in step]
    scores = iter(_score(bench.engine, [ids for case in step for ids in case.prompts], claim.tenant))
    return [verdicts.scored(bench.rules, bench.judges, case, [next(scores) for _ in case.prompts]) for case in step]


def _score(engine: Engine, asked: Sequence[Sequence[int]], tenant: str) -> list[Score]:
    """Ask the engine, and where that is too much at once for its memory, ask in halves."""
    try:
        return engine.score(asked, salt=tenant)
    except EngineOutOfMemoryError:
        if len(asked) == 1:
            raise
        half = len(asked) // 2
        log.warning("step_halved", prompts=len(asked))
    return _score(engine, asked[:half], tenant) + _score(engine, asked[half:], tenant)


def _written(bench: Bench, case: Case, tenant: str) -> Outcome:
    cast: list[ballots.Ballot] = []
    scores: list[Score] = []
    room = bench.engine.card.max_prompt_tokens
    for order, ids in zip(case.orders, case.prompts, strict=True):
        limit = min(prompts.MAX_GENERATED_TOKENS, max(1, room - len(ids)))
        written = bench.engine.generate(ids, limit, salt=tenant)
        bench.gate.charge_written(written.generated_tokens, tenant)
        scores.append(Score(0.0, 0.0, cached_tokens=written.cached_tokens, seconds=written.seconds))
        voted = verdicts.parse(written.text)
        if voted is None:
            message = f"order {order}: no [[A]] or [[B]] in the {written.generated_tokens} tokens the model wrote"
            if written.generated_tokens >= limit < prompts.MAX_GENERATED_TOKENS:
                message += f"; then its context of {room} tokens was full"
            asked = sum(len(each) for each in case.prompts[: len(scores)])
            return verdicts.errored(case, OutcomeError.UNPARSEABLE, message, asked, scores)
        odds = written.verdict
        # The odds count only where they are numbers, and those of the verdict that was parsed.
        if odds is not None and is_number(odds) and ballots.vote(odds.log_odds) == voted:
            cast.append(ballots.ballot(order, odds.log_odds, odds.mass))
        else:
            cast.append(ballots.vote_only(order, voted))
    return verdicts.succeeded(bench.rules, bench.judges, case, cast, scores)


def _give_back(bench: Bench, claim: Claim, outcomes: Sequence[Outcome]) -> int:
    def write(connection: Connection) -> int:
        stored = docket.record(connection, claim.lease, outcomes, lease_seconds=bench.rules.lease_seconds)
        docket.give_back(connection, claim.lease)
        return stored

    stored = _persist(bench, write)
    _count(bench, claim, outcomes)
    bench.meters.add(metrics.GIVEN_BACK)
    log.info("shard_given_back", shard=claim.lease.shard, stored=stored)
    return stored


def _fail(bench: Bench, claim: Claim, error: EngineError) -> None:
    fail = partial(
        docket.fail,
        claim=claim,
        code=OutcomeError.ENGINE_FAILED,
        message=f"the engine failed at each of {claim.attempt} attempts: {str(error)[:_REASON_CHARACTERS]}",
        retry_in=min(60.0, 2.0 ** (claim.attempt - 1)),
        max_attempts=bench.rules.max_attempts,
    )
    lose = partial(losses.lose, lease=claim.lease, max_attempts=bench.rules.max_attempts)
    give_back = partial(docket.give_back, lease=claim.lease)
    gone = isinstance(error, EngineGoneError)
    move = lose if gone else give_back if isinstance(error, EngineAwayError) else fail
    counted = metrics.LOSSES if gone else metrics.FAILED_ATTEMPTS
    try:
        fate = _persist(bench, move)
    except LeaseLostError:
        bench.meters.add(metrics.STALE_WRITES)
        log.warning("stale_write_refused", shard=claim.lease.shard, attempt=claim.attempt)
        return
    except SQLAlchemyError as unreachable:  # not raised: an engine that is gone has to be told of all the same
        log.warning("shard_left_to_its_lease", error=type(unreachable).__name__)
        return
    bench.meters.add(counted, then=fate)
    if counted is metrics.FAILED_ATTEMPTS and fate == "errored":
        bench.meters.add(metrics.OUTCOMES, lane=claim.lane, result=OutcomeError.ENGINE_FAILED)


def _persist(bench: Bench, write: Callable[[Connection], T], begin: Begin = Database.begin) -> T:
    """Run one transaction, with patience: a shard in hand, and the GPU work in it, is worth waiting for.

    A commit whose answer was lost is safe to repeat: the token has left the row, and outcomes have unique keys.
    """
    return persist(bench.database, write, patience_seconds=bench.rules.patience_seconds, begin=begin)
