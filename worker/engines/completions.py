"""Reading what OpenAI-compatible servers answer to `/v1/completions`, in the two forms that they do it in.

The older form (vLLM, SGLang, trtllm-serve, NIM) lists tokens by their text, or by "token_id:32" where vLLM was asked
to; llama.cpp's server gives a list of entries with ids. What is not certain is not made up: a verdict token that a
server leaves out of its list has some probability up to that of the least one in it, which tells which verdict is the
likelier and nothing more.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from worker.engines.base import LEAST_LOGPROB, VERDICT_OPENING, EngineError, VerdictTokens

_ID = "token_id:"
_SLACK = 0.02  # what rounding may add to probabilities

Likeliest = Mapping[int | str, float]
"""Logarithms of probabilities, by token id where the server gives ids and by text where it does not."""


class Position(NamedTuple):
    """One token that was written, and what else might have been."""

    text: str
    likeliest: Likeliest


class Opinion(NamedTuple):
    """The odds at one position, as `Score` has them."""

    log_odds: float
    mass: float


class Answer(NamedTuple):
    """What a server answered to one prompt."""

    text: str
    positions: list[Position]
    generated_tokens: int
    cached_tokens: int


def read(answer: Any, *, expected_tokens: int) -> Answer:
    """Take an answer apart, and check that the whole prompt was read.

    Raises:
        EngineError: the answer has another shape, its numbers are no log-probabilities, or the prompt was not read
            whole.
    """
    try:
        choice, usage = answer["choices"][0], answer["usage"]
        found = Answer(
            text=str(choice["text"]),
            positions=_positions(choice.get("logprobs")),
            generated_tokens=int(usage["completion_tokens"]),
            # For the books alone, so that too large a number fails nothing. It is added up there, and stored.
            cached_tokens=min(
                max(0, int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)), expected_tokens
            ),
        )
        tokens = int(usage["prompt_tokens"])
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise EngineError(f"the server's answer has an unknown shape ({type(error).__name__})") from None
    if tokens != expected_tokens:
        raise EngineError(f"the server read {tokens} prompt tokens of {expected_tokens}: it cut or changed the prompt")
    for position in found.positions:
        _check(position.likeliest)
    return found


def opinion(likeliest: Likeliest, tokens: VerdictTokens, *, by_text: bool) -> Opinion:
    """The odds of "A" over "B" among the likeliest tokens.

    Where one of the two is missing, its probability is at most that of the least one listed, so the one that is there
    is the likelier: the odds are infinite, which is to say a vote and no odds. The mass is what was seen, and so a
    lower bound. Where both are missing there is no vote.

    Args:
        likeliest: what the server listed.
        tokens: the verdicts' ids.
        by_text: whether "A" and "B" may be looked for by text: only where no other token is written so.
    """
    a, b = (
        likeliest.get(token, likeliest.get(text) if by_text else None)
        for token, text in ((tokens.a, "A"), (tokens.b, "B"))
    )
    mass = min(1.0, sum(math.exp(logprob) for logprob in (a, b) if logprob is not None))
    if a is not None and b is not None:
        return Opinion(a - b, mass)
    if a is None and b is None:
        return Opinion(math.nan, mass)
    return Opinion(math.inf if b is None else -math.inf, mass)


def verdict_position(positions: Sequence[Position]) -> Position | None:
    """The token right after the last opening that the model wrote; None where a token reaches across its end."""
    whole = "".join(position.text for position in positions)
    end = whole.rfind(VERDICT_OPENING) + len(VERDICT_OPENING)
    at = 0
    for position in positions:
        if at == end and end >= len(VERDICT_OPENING):
            return position
        at += len(position.text)
    return None


def _positions(logprobs: Any) -> list[Position]:
    if not logprobs:
        return []
    if "content" in logprobs:
        return [
            Position(
                str(token["token"]),
                {int(entry["id"]): _number(entry["logprob"]) for entry in token["top_logprobs"]},
            )
            for token in logprobs["content"]
        ]
    return [
        # What was written comes first: some servers list it apart.
        Position(
            str(token), {_key(text): _number(logprob) for text, logprob in ({token: chosen} | (listed or {})).items()}
        )
        for token, chosen, listed in zip(
            logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True
        )
    ]


def _key(text: str) -> int | str:
    return int(text.removeprefix(_ID)) if text.startswith(_ID) and text.removeprefix(_ID).isdigit() else text


def _number(logprob: Any) -> float:
    """A log-probability; servers write a probability of nothing as null or as a very low number."""
    return LEAST_LOGPROB if logprob is None else max(float(logprob), LEAST_LOGPROB)


def _check(likeliest: Likeliest) -> None:
    total = sum(math.exp(min(logprob, 1.0)) for logprob in likeliest.values())
    if not total <= 1 + _SLACK:
        raise EngineError("the server's numbers are no log-probabilities: together they make more than 1")
