"""Judged rows for tests of evals, and a judge whose truth is known."""

from typing import Any

from pydantic import BaseModel

from benchmarks.tournament import JUDGE, chance, planted
from producer.evals.numbers import Number, Result, select
from producer.evals.rows import Row
from producer.evals.style import Style

__all__ = ["JUDGE", "chance", "numbers", "planted", "sized", "untraceable"]


def sized(length: int) -> Style:
    """The style of a plain answer of so many characters."""
    return Style(length, 0, 0, 0)


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
