"""From the lines of a shard to what an engine is asked: each question once, as steps of the engine's size."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from pydantic_core import from_json, to_json

from infra.filed import Filed
from infra.outcomes import Outcome
from schemas.problems import OutcomeError
from schemas.states import OutcomeStatus
from schemas.verdict import Order
from worker import prompts
from worker.engines.base import Engine, Prompt, PromptTooLongError, TemplateRefusesError

ORDERS: dict[str, tuple[Order, ...]] = {"both": ("ab", "ba"), "ab": ("ab",), "ba": ("ba",)}


@dataclass(slots=True)  # as `infra.filed.Filed` is
class Case:
    """A comparison with its prompts, ready for the engine."""

    comparison: Filed
    orders: tuple[Order, ...]
    prompts: tuple[Sequence[int], ...]
    tokens: int
    """The tokens of all its prompts."""
    digest: bytes | None


def digest(comparison: Filed) -> bytes:
    """Hash what is asked: the same comparison under the same judge is not computed twice for one tenant."""
    asked = (
        *(comparison.prompt, comparison.response_a, comparison.response_b),
        *(comparison.orders, comparison.profile, comparison.tie_margin),
    )
    return hashlib.sha256(to_json(asked)).digest()[:16]


def tell_twins(comparisons: Sequence[Filed], digests: dict[int, bytes]) -> tuple[list[Filed], dict[int, list[Filed]]]:
    """Tell comparisons of a shard that ask the same from the first that does: one judging answers them all.

    Args:
        comparisons: of one shard.
        digests: what each line asks; a line without one is a question of its own.

    Returns:
        The first of each, and the others by the line of their first.
    """
    firsts: dict[bytes, Filed] = {}
    twins: dict[int, list[Filed]] = {}
    singles = []
    for comparison in comparisons:
        asked = digests.get(comparison.line)
        first = comparison if asked is None else firsts.setdefault(asked, comparison)
        if first is comparison:
            singles.append(comparison)
        else:
            twins.setdefault(first.line, []).append(comparison)
    return singles, twins


def with_twins(outcomes: Sequence[Outcome], twins: dict[int, list[Filed]]) -> list[Outcome]:
    """Give the outcome of a line to its twins also, at no cost."""
    everyone = list(outcomes)
    if twins:
        for outcome in outcomes:
            free = replace(
                outcome,
                prompt_tokens=0,
                cached_tokens=0,
                gpu_seconds=0.0,
                digest=None,
                reused=outcome.tally is not None,
            )
            everyone += [replace(free, line=twin.line) for twin in twins.get(outcome.line, ())]
    return everyone


def reuse(
    comparisons: Sequence[Filed],
    digests: dict[int, bytes],
    judges: dict[str, str],
    found: dict[tuple[bytes, str], str],
    mass_threshold: float,
) -> tuple[list[Outcome], list[Filed]]:
    """Answer from earlier verdicts what can be; the rest is fresh.

    Args:
        comparisons: what is asked.
        digests: what each line asks.
        judges: this worker's judge of each profile.
        found: tallies by (digest, judge).
        mass_threshold: what a ballot has to reach today; it may have been less when the tally was made.
    """
    if not found:
        return [], list(comparisons)
    outcomes: list[Outcome] = []
    fresh: list[Filed] = []
    for comparison in comparisons:
        judge_id = judges[comparison.profile]
        tally = found.get((digests.get(comparison.line, b""), judge_id))
        if tally is None or not _stands(tally, comparison.profile, mass_threshold):
            fresh.append(comparison)
        else:
            outcomes.append(
                Outcome(
                    line=comparison.line, status=OutcomeStatus.SUCCEEDED, tally=tally, judge_id=judge_id, reused=True
                )
            )
    return outcomes, fresh


def _stands(tally: str, profile: str, mass_threshold: float) -> bool:
    """Whether a tally would be a verdict today: what the model wrote is one, and a vote without odds, as they were."""
    if prompts.PROFILES[profile].writes:
        return True
    return all(ballot["mass"] is None or ballot["mass"] >= mass_threshold for ballot in from_json(tally)["ballots"])


def errored(
    comparison: Filed,
    code: OutcomeError,
    message: str,
    *,
    prompt_tokens: int = 0,
    cached_tokens: int = 0,
    gpu_seconds: float = 0.0,
) -> Outcome:
    """Say of a comparison why it has no verdict."""
    return Outcome(
        line=comparison.line,
        status=OutcomeStatus.ERRORED,
        error_code=code,
        error_message=message,
        prompt_tokens=prompt_tokens,
        cached_tokens=cached_tokens,
        gpu_seconds=gpu_seconds,
    )


def steps(
    comparisons: Iterable[Filed],
    digests: dict[int, bytes],
    engine: Engine,
    refuse: Callable[[Outcome], None],
) -> Iterator[list[Case]]:
    """Make steps of about `engine.card.step_tokens` tokens each. A comparison's orders stay together.

    Prompts are made as their step comes up, so that no shard's are all in memory.

    Args:
        comparisons: what is asked.
        digests: what each line asks.
        engine: whose tokens, and whose limits.
        refuse: told the outcome of what cannot be put to this judge.
    """
    step: list[Case] = []
    tokens = 0
    room, longest = engine.card.step_tokens, engine.card.max_prompt_tokens
    for comparison in comparisons:
        case = _case(comparison, digests.get(comparison.line), engine.encode, longest)
        if isinstance(case, Outcome):
            refuse(case)
            continue
        # A profile that writes takes its time: such a case is a step of its own.
        alone = prompts.PROFILES[comparison.profile].writes
        if step and (alone or tokens + case.tokens > room):
            yield step
            step, tokens = [], 0
        step.append(case)
        tokens += room if alone else case.tokens
    if step:
        yield step


def _case(
    comparison: Filed, asked: bytes | None, encode: Callable[[Prompt], Sequence[int]], limit: int
) -> Case | Outcome:
    """Make a comparison's prompts, or say why this judge cannot be asked it."""
    orders = ORDERS[comparison.orders]
    try:
        ids = tuple([encode(prompts.build(comparison, order)) for order in orders])
    except (prompts.ProfileUnfitError, TemplateRefusesError) as error:
        return errored(comparison, OutcomeError.PROFILE_UNFIT, str(error))
    except PromptTooLongError as error:
        return errored(comparison, OutcomeError.CONTEXT_LENGTH_EXCEEDED, str(error))
    lengths = [len(each) for each in ids]
    longest = max(lengths)
    if longest > limit:
        message = f"the prompt is {longest} tokens long, the judge takes {limit}"
        return errored(comparison, OutcomeError.CONTEXT_LENGTH_EXCEEDED, message)
    return Case(comparison, orders, ids, sum(lengths), asked)
