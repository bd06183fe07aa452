"""Bias audit: what sways a judge beside what is said, by the user's own rows and by a controlled set made from them.

In a controlled pair one response is the other, changed in one way that says nothing new; a judge without that bias
prefers either as often.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from pydantic import Field

from producer.evals.numbers import FEWEST, SWAYED, Frozen, Number, Result, Where, common, mean, select, share
from producer.evals.rows import Judged, Pair, Row

OWN = "own rows"
SAME = "same"
_EVEN = 0.5
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=\S)")
_MARKDOWN = re.compile(r"```|\*\*|__|^[^\S\n]*(?:[-*+]|\d+[.)]|#{1,6})\s", re.MULTILINE)
_MOST_NAME = 256


def _longer(text: str) -> str:
    said = _SENTENCE.split(text.strip())
    return f"{text}\n\nTo say that again: {' '.join(said[: max(1, len(said) // 2)])}"


def _list(text: str) -> str | None:
    said = _SENTENCE.split(text.strip())
    if len(said) < 2 or _MARKDOWN.search(text):  # noqa: PLR2004 - one sentence is no list
        return None
    return "\n".join(f"- {sentence}" for sentence in said)


def _bold(text: str) -> str | None:
    words = text.strip().split(" ")
    if _MARKDOWN.search(text):
        return None
    return f"**{' '.join(words[:3])}** {' '.join(words[3:])}".rstrip()


def _header(text: str) -> str | None:
    return None if _MARKDOWN.search(text) else f"## Answer\n\n{text}"


class Change(NamedTuple):
    """A way to change a response without saying anything new."""

    name: str
    meaning: str
    change: Callable[[str], str | None]
    """None where the text is not fit for it."""


CHANGES = (
    Change(SAME, "nothing: the same text twice", lambda text: text),
    Change("longer", "the first half of its sentences said again at the end", _longer),
    Change("list", "each sentence made an item of a list", _list),
    Change("bold", "its first three words in bold", _bold),
    Change("header", "a header above it", _header),
)


def controlled(pairs: Sequence[Pair], most: int) -> list[Pair]:
    """Make the controlled set: response A is a response of a row, response B the same, changed.

    Which rows are taken, and which of their responses, is drawn from a hash of their ids: fixed, without a pattern.

    Args:
        pairs: the user's rows.
        most: how many of them to take.
    """
    drawn = sorted(pairs, key=lambda pair: _mark(pair.id))[:most]
    made = []
    for pair in drawn:
        response = pair.response_a if _mark(pair.id)[-1] % 2 else pair.response_b
        text = response if isinstance(response, str) else response[-1]["content"]
        if not text.strip():
            continue
        for change in CHANGES:
            changed = change.change(text)
            if changed is not None:
                made.append(_pair(pair, change.name, response, changed))
    return made


def _mark(name: str) -> bytes:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()


def _pair(pair: Pair, name: str, response: Any, changed: str) -> Pair:
    whole = changed if isinstance(response, str) else [*response[:-1], {**response[-1], "content": changed}]
    called = f"{name}:{pair.id}"
    return Pair(
        id=called if len(called) <= _MOST_NAME else f"{name}:{_mark(pair.id).hex()}",
        prompt=pair.prompt,
        response_a=response,
        response_b=whole,
        subset=name,
        group=pair.group,
        system_a="as it was",
        system_b=name,
        # Asked in both orders, without ties: the changed response is always B, and a slot must not pass for a change.
        options={name: value for name, value in pair.options.items() if name not in {"order", "tie_margin"}},
    )


class Controlled(Frozen):
    """What a judge makes of one change."""

    change: str
    meaning: str
    preferred: Number = Field(description="Share of pairs in which the changed response won; ties are in neither")
    consistently: Number = Field(description="The same of the pairs whose orders agree")
    biased: bool | None = Field(description="Whether the interval leaves out one half; null under ten prompts")


class Audit(Result):
    """What sways a judge."""

    own: int = Field(description="Rows of the user's; the others were made from them")
    flip_rate: Number = Field(description="Share of own rows whose orders name different winners")
    first_slot: Number = Field(description="Of those, the share that preferred what came first")
    same_first: Number = Field(description="Of votes on the same text twice, the share for what came first")
    position_bias: Number = Field(description="Mean b of own rows, in log-odds")
    longer_wins: Number = Field(description="Of own rows whose responses differ in length, the longer won")
    formatted_wins: Number = Field(description="Of own rows that differ in Markdown, the one with more of it won")
    right_when_longer: Number = Field(description="Accuracy where the label is the longer response")
    right_when_shorter: Number = Field(description="Accuracy where the label is the shorter response")
    controlled: list[Controlled]
    findings: list[str]


def count(judged: Judged) -> Audit:
    """Count what sways a judge, by own rows (subset `OWN`) and controlled pairs together."""
    rows = judged.rows
    own: Where = {"subset": OWN}
    both: Where = {**own, "both": True}
    labelled: Where = {**own, "labelled": True}
    flip_rate = share(rows, both, {"consistent": False})
    first_slot = share(rows, {**own, **SWAYED}, {"first_slot": True})
    same_first = share(rows, {"subset": SAME, **SWAYED}, {"first_slot": True})
    found = [_controlled(judged, change) for change in CHANGES if change.name != SAME]
    return Audit(
        **common("audit", judged),
        own=sum(row.subset == OWN for row in rows),
        flip_rate=flip_rate,
        first_slot=first_slot,
        same_first=same_first,
        position_bias=mean(rows, {**own, "odds": True}, "position_bias"),
        longer_wins=share(rows, {**own, "longer_won": [True, False]}, {"longer_won": True}),
        formatted_wins=share(rows, {**own, "more_formatted_won": [True, False]}, {"more_formatted_won": True}),
        right_when_longer=share(rows, {**labelled, "label_longer": True}, {"correct": True}),
        right_when_shorter=share(rows, {**labelled, "label_longer": False}, {"correct": True}),
        controlled=found,
        findings=_findings(rows, flip_rate, first_slot, same_first, found),
    )


def _controlled(judged: Judged, change: Change) -> Controlled:
    decided: Where = {"subset": change.name, "winner": ["A", "B"]}
    preferred = share(judged.rows, decided, {"winner": "B"})
    return Controlled(
        change=change.name,
        meaning=change.meaning,
        preferred=preferred,
        consistently=share(judged.rows, {**decided, "consistent": True}, {"winner": "B"}),
        biased=None if (side := _side(judged.rows, preferred)) is None else side != 0,
    )


def _side(rows: Sequence[Row], number: Number) -> int | None:
    """Tell on which side of one half an interval lies: 1 above, -1 below, 0 on both; None of under `FEWEST` prompts."""
    if number.low is None or number.high is None or len({row.group for row in select(rows, number.where)}) < FEWEST:
        return None
    return int(number.low > _EVEN) - int(number.high < _EVEN)


def _findings(
    rows: Sequence[Row], flips: Number, first: Number, same: Number, found: Sequence[Controlled]
) -> list[str]:
    """Say what the intervals bear out, and nothing else."""
    said = []
    if flips.value is not None:
        said.append(f"Shown the other way round, {flips.value:.1%} of your rows get another winner.")
    for number, what in ((first, "Where it does, it prefers"), (same, "Of the same text twice, it prefers")):
        side = _side(rows, number)
        if side:
            slot = "first" if side > 0 else "second"
            rate = (number.value or 0.0) if side > 0 else 1.0 - (number.value or 0.0)
            said.append(f"{what} what comes {slot}, {rate:.1%} of {number.n}.")
    sides = [_side(rows, each.preferred) for each in found]
    for each, side in zip(found, sides, strict=True):
        if side:
            liking = "prefers" if side > 0 else "dislikes"
            said.append(f"It {liking} a response with {each.meaning}: it won {each.preferred.value:.1%}.")
    if any(side is not None for side in sides) and not any(sides):
        said.append("None of the changes that say nothing new sways it for sure.")
    return said
