"""Comparisons from a file, put as prompts: to calibrate, to verify and to measure with."""

import itertools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from infra.filed import Filed, from_request
from schemas.lines import BadLineError, read_line
from schemas.problems import BAD_INPUT_FILE, Problem
from worker import prompts
from worker.engines.base import Prompt, PromptTooLongError

Encode = Callable[[Prompt], Sequence[int]]


@dataclass(frozen=True, slots=True)
class Pair:
    """A comparison, and the better response where the file says it."""

    comparison: Filed
    label: Literal["A", "B"] | None


def read_pairs(file: Path) -> list[Pair]:
    """Read a file of pairs, JSON lines in any form that a batch takes; the profile is `card` for all of them.

    Raises:
        Problem: it cannot be read, is empty, or a line is no comparison; the detail names the line.
    """
    pairs = []
    try:
        with file.open("rb") as lines:
            for number, raw in enumerate(lines, start=1):
                if not raw.strip():
                    continue
                line = read_line(raw.strip())
                pairs.append(Pair(_filed(number, line.request), line.label))
    except OSError as error:
        raise Problem(BAD_INPUT_FILE, f"{file}: {error.strerror}.") from None
    except BadLineError as error:
        raise Problem(BAD_INPUT_FILE, f"{file}, line {number}: {error}.") from None
    if not pairs:
        raise Problem(BAD_INPUT_FILE, f"{file}: there is nothing in it. Give one comparison a line.")
    return pairs


def _filed(number: int, request: dict[str, Any]) -> Filed:
    """Take the question and the answers alone: orders and profile are for these commands to choose."""
    asked = {name: request[name] for name in ("prompt", "response_a", "response_b")}
    return from_request({**asked, "profile": "card"}, line=number)


def both_orders(comparison: Filed, encode: Encode) -> tuple[Sequence[int], Sequence[int]]:
    """The prompts of a comparison in the orders "ab" and "ba"."""
    return encode(prompts.build(comparison, "ab")), encode(prompts.build(comparison, "ba"))


def both_within(comparison: Filed, encode: Encode, limit: int) -> tuple[Sequence[int], Sequence[int]] | None:
    """The prompts of a comparison in both orders; None where one has more than `limit` tokens.

    An engine refuses to tokenise a text that is far too long, and that is no failure of the engine.
    """
    try:
        ids = both_orders(comparison, encode)
    except PromptTooLongError:
        return None
    return ids if max(map(len, ids)) <= limit else None


def of_length(pairs: Sequence[Pair], tokens: int, encode: Encode) -> Iterator[Filed]:
    """Make comparisons, without end, whose prompts are nearly `tokens` long: within 5 % below.

    A pair that is too short is followed by others' questions and answers; one that is too long is cut in its
    answers. What comes out is judge-shaped text and no sensible question, which is all that parity and speed need.
    """
    texts = itertools.cycle([_as_texts(pair.comparison) for pair in pairs])
    for number in itertools.count(1):
        question, first, second = next(texts)
        comparison = _filed(number, {"prompt": f"({number}) {question}", "response_a": "", "response_b": ""})
        while _length(_with(comparison, first, second), encode) < tokens:
            more_question, more_first, more_second = next(texts)
            first = f"{first}\n\n{more_question}\n\n{more_first}"
            second = f"{second}\n\n{more_question}\n\n{more_second}"
        yield _cut(comparison, first, second, tokens, encode)


def _cut(comparison: Filed, first: str, second: str, tokens: int, encode: Encode) -> Filed:
    """Keep as much of both answers as fits, found by halving the share of them that is kept."""
    least, most = 0.0, 1.0
    best = _with(comparison, "", "")
    for _ in range(12):
        share = (least + most) / 2
        candidate = _with(comparison, first[: int(len(first) * share)], second[: int(len(second) * share)])
        length = _length(candidate, encode)
        if length > tokens:
            most = share
            continue
        best, least = candidate, share
        if length >= 0.95 * tokens:
            break
    return best


def _with(comparison: Filed, first: str, second: str) -> Filed:
    return replace(comparison, response_a=first, response_b=second)


def _length(comparison: Filed, encode: Encode) -> int:
    try:
        return len(encode(prompts.build(comparison, "ab")))
    except PromptTooLongError:
        return sys.maxsize


def _as_texts(comparison: Filed) -> tuple[str, str, str]:
    """The three texts of a comparison, conversations as the JSON that they came as."""
    question, first, second = (
        each if isinstance(each, str) else json.dumps(each, ensure_ascii=False)
        for each in (comparison.prompt, comparison.response_a, comparison.response_b)
    )
    return question, first, second
