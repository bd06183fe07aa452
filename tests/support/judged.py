"""Judged rows for tests of evals, and a judge whose truth is known."""

import hashlib
import math
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from producer.evals.numbers import Number, Result, select
from producer.evals.rows import Judged, Pair, Row
from producer.evals.style import Style, style
from schemas.verdict import Judge

JUDGE = Judge(
    model="planted",
    weights="sha256:0",
    quantisation="none",
    engine="scripted",
    engine_build="1",
    profile="card",
    prompt="sha256:1",
    temperature=1.0,
    simulated=True,
    caveat="Planted: no model was asked.",
)


def sized(length: int) -> Style:
    """The style of a plain answer of so many characters."""
    return Style(length, 0, 0, 0)


def chance(*words: object) -> float:
    """A number from 0 to 1 that follows from words alone."""
    digest = hashlib.sha256(repr(words).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def planted(strengths: Mapping[str, float], seed: int):
    """A judge by whom A beats B with probability sigmoid(strength of A - strength of B), independently."""

    def judge(pairs: list[Pair], number: int | None = None) -> Judged:
        rows = [_row(pair, strengths, seed) for pair in pairs]
        return Judged(rows, [JUDGE])

    return judge


def _row(pair: Pair, strengths: Mapping[str, float], seed: int) -> Row:
    p = 1 / (1 + math.exp(strengths[pair.system_b] - strengths[pair.system_a]))
    return Row(
        id=pair.id,
        group=pair.group,
        system_a=pair.system_a,
        system_b=pair.system_b,
        winner="A" if chance(seed, pair.id) < p else "B",
        style_a=style(pair.response_a),
        style_b=style(pair.response_b),
    )


def numbers(part: Any) -> list[Number]:
    """Every number in a result, wherever it stands."""
    if isinstance(part, Number):
        return [part]
    if isinstance(part, list | tuple):
        return [number for each in part for number in numbers(each)]
    if isinstance(part, BaseModel):
        return [number for name in type(part).model_fields for number in numbers(getattr(part, name))]
    return []


def untraceable(result: Result, rows: list[Row]) -> list[Number]:
    """The numbers of a result that do not select as many rows as they say they were made of."""
    return [
        number
        for number in numbers(result)
        if len(found := select(rows, number.where)) != number.n
        or (number.hit is not None and len(select(found, number.hit)) != number.hits)
    ]
