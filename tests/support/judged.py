"""Judged rows for tests of evals, and a judge whose truth is known."""

from typing import Any

from pydantic import BaseModel
from scipy import special

from benchmarks.tournament import JUDGE, chance, planted
from producer.evals.numbers import Number, Result, select
from producer.evals.rows import Row
from producer.evals.style import Style

__all__ = ["FAILED", "JUDGE", "a_row", "as_fields", "chance", "drawn", "numbers", "planted", "sized", "untraceable"]


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


def a_row(number: int, **columns) -> Row:
    """A row that two orders agree on."""
    plain = {"winner": "A", "probability_a": 0.8, "consistent": True, "vote_ab": "A", "vote_ba": "A"}
    plain |= {"position_bias": 0.0, "log_odds_ab": 1.4, "log_odds_ba": -1.4}
    return Row(**{"id": str(number), "group": str(number)} | plain | columns)


def drawn(count: int, *, scale: float = 1.0, lean: float = 0.0) -> list[Row]:
    """Rows with gold labels; the odds of the label are the judge's, divided by `scale`."""
    rows = []
    for number in range(count):
        d = 6 * (chance(number, "d") - 0.5) * scale
        label = "A" if chance(number, "label") < special.expit(d / scale) else "B"
        s1, s2 = d + lean, lean - d
        ab, ba = "A" if s1 > 0 else "B", "B" if s2 > 0 else "A"
        rows.append(
            a_row(
                number,
                label=label,
                winner="A" if d > 0 else "B",
                probability_a=float(special.expit(d)),
                consistent=ab == ba,
                vote_ab=ab,
                vote_ba=ba,
                position_bias=lean,
                log_odds_ab=s1,
                log_odds_ba=s2,
                subset=f"part {number % 3}",
                style_a=sized(100 + number % 7),
                style_b=sized(103 - number % 5),
            )
        )
    return rows


def as_fields(row: Row) -> dict:
    """A row's own columns."""
    return {name: getattr(row, name) for name in Row.__dataclass_fields__}


FAILED = a_row(
    9999, winner=None, probability_a=None, consistent=None, vote_ab=None, vote_ba=None, position_bias=None,
    log_odds_ab=None, log_odds_ba=None, label="A", status="errored", error="unparseable", subset="part 0",
)  # fmt: skip
