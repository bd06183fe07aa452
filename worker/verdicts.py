"""From what an engine said of a case to the outcome of its line."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic_core import to_json

from infra.outcomes import Outcome
from schemas.problems import OutcomeError
from schemas.states import OutcomeStatus
from worker import ballots, cases
from worker.bench import Rules
from worker.cases import Case
from worker.engines.base import Score


def scored(rules: Rules, judges: Mapping[str, str], case: Case, scores: Sequence[Score]) -> Outcome:
    """Make an outcome of what the engine thought of a case in each of its orders; see `succeeded`."""
    cast, threshold = [], rules.mass_threshold
    for order, score in zip(case.orders, scores, strict=True):
        odds, mass = score.log_odds, score.mass
        if math.isfinite(odds) and threshold <= mass < math.inf:
            cast.append(ballots.ballot(order, odds, mass))
        elif mass < threshold:
            put = f"{mass:.3g} of its probability on A and B, under the threshold of {threshold:g}"
            message = f"order {order}: the model put {put}"
            return errored(case, OutcomeError.UNPARSEABLE, message, case.tokens, scores)
        elif math.isnan(odds) or not math.isfinite(mass):
            message = f"order {order}: the engine's odds are no number"
            return errored(case, OutcomeError.UNPARSEABLE, message, case.tokens, scores)
        else:
            cast.append(ballots.vote_only(order, ballots.vote(odds)))
    return succeeded(rules, judges, case, cast, scores)


def parse(text: str) -> Literal["A", "B"] | None:
    """Read a verdict from what the model itself wrote, as RewardBench does: `[[A]]` anywhere, else `[[B]]`."""
    if "[[A]]" in text:
        return "A"
    return "B" if "[[B]]" in text else None


def succeeded(
    rules: Rules, judges: Mapping[str, str], case: Case, cast: Sequence[ballots.Ballot], scores: Sequence[Score]
) -> Outcome:
    """Count the ballots that were cast, and say what they took.

    Args:
        rules: what judging goes by.
        judges: the id of the judge of each profile.
        case: what was asked.
        cast: a ballot for each of its orders.
        scores: what each of them took.
    """
    comparison = case.comparison
    temperature = rules.calibrated.get(comparison.profile, 1.0)
    tally = ballots.count(cast, temperature=temperature, tie_margin=comparison.tie_margin)
    return Outcome(  # by position: by name it takes three times as long
        comparison.line,
        OutcomeStatus.SUCCEEDED,
        to_json(tally).decode(),
        judges[comparison.profile],
        case.tokens,
        sum([score.cached_tokens for score in scores]),
        sum([score.seconds for score in scores]),
        case.digest,
    )


def errored(case: Case, code: OutcomeError, message: str, tokens: int, scores: Sequence[Score]) -> Outcome:
    """Say why there is no verdict, and what that took."""
    return cases.errored(
        case.comparison,
        code,
        message,
        prompt_tokens=tokens,
        cached_tokens=sum(score.cached_tokens for score in scores),
        gpu_seconds=sum(score.seconds for score in scores),
    )
