"""How a report's page is laid out: figures and tables of numbers that name their rows."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from producer.evals.gold import Calibration
from producer.evals.numbers import Number, Result
from schemas.problems import OutcomeError

Unit = Literal["share", "points", "plain"]

_SUBSETS = 200
"""Subsets that a page shows: each row names its own, so there may be as many as rows."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A number with its name, and how to draw it."""

    label: str
    number: Number
    unit: Unit = "share"
    even: float | None = None
    """Where nothing would be preferred; drawn as a line."""
    note: str = ""
    brief: bool = False
    """Of a share: a terminal's table, where so many intervals have no room, shows how many it counts."""


Cell = str | int | float | Figure | None


@dataclass(frozen=True, slots=True)
class Table:
    """A table that can be sorted by each column."""

    title: str
    columns: list[str]
    rows: list[list[Cell]]
    note: str = ""
    looked_up: bool = False
    """Whether it is for looking things up: too long to stand among the others where nothing can be scrolled past."""


@dataclass(frozen=True, slots=True)
class Page:
    """All that stands above the pairs."""

    title: str
    headline: str
    figures: list[Figure]
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    reliability: Calibration | None = None


def figures(laid_out: Page) -> Sequence[Figure]:
    """Give every figure of a page, in the order in which they stand."""
    return [
        *laid_out.figures,
        *(cell for table in laid_out.tables for row in table.rows for cell in row if isinstance(cell, Figure)),
    ]


def by_subset(columns: list[str], rows: list[list[Cell]]) -> Table:
    """Lay out a table with a row for each subset; of too many, the largest, and how many there are; of one, none."""
    note = ""
    if len(rows) == 1:
        rows = []  # it would say what the figures say
    if len(rows) > _SUBSETS:
        note = f"The {_SUBSETS} largest of {len(rows):,} subsets; the others are in the same report as JSON."
        rows = sorted(rows, key=_size, reverse=True)[:_SUBSETS]
    return Table("By subset", columns, rows, note)


def _size(row: list[Cell]) -> int:
    return max(cell.number.n for cell in row if isinstance(cell, Figure))


def over(value: float | None, of: Number) -> Number:
    """Give a figure that has no interval, of the rows that another was made of."""
    return Number(value=value, n=of.n, where=of.where)


def bias(number: Number) -> Figure:
    """Show the leaning to a slot."""
    return Figure("Position bias, in log-odds", number, "plain", 0.0, "Over 0 it leans to what is shown first.")


def consistency(result: Any) -> list[Figure]:
    """Show how far both orders agree, and what decides where they do not."""
    return [
        Figure("Both orders name the same winner", result.consistent),
        Figure(
            "Of those that do not: preferred what came first",
            result.first_slot,
            even=0.5,
            note="At 50 % it leans to neither slot.",
        ),
    ]


def unless_empty(*tables: Table) -> list[Table]:
    """Leave out tables that have no row."""
    return [table for table in tables if table.rows]


def counted_in(result: Result, code: str) -> str:
    """Say which figures pairs are in that have no verdict for a reason: RewardBench's own protocol scores failures.

    What was cancelled or expired was never asked, and is no failure.
    """
    if result.kind == "rewardbench" and code not in {OutcomeError.CANCELLED, OutcomeError.DEADLINE_PASSED}:
        return "are in no figure but those of one placement, where what was asked in vain is half right"
    return "are in no verdict's figure"


def percent(number: Number) -> str:
    """Give a share and its interval in words."""
    if number.value is None:
        return "-"
    interval = "" if number.low is None else f" (95 %: {100 * number.low:.1f} to {100 * (number.high or 0.0):.1f})"
    return f"{number.value:.1%}{interval}"


def plain(value: float | None) -> str:
    """Give a value in words."""
    return "-" if value is None else f"{value:.3f}"


def said(figure: Figure) -> str:
    """Give a figure's value as it is read."""
    return _said(figure.number.value, figure.unit)


def interval(figure: Figure) -> str:
    """Give a figure's interval as it is read; empty where there is none."""
    low, high = figure.number.low, figure.number.high
    return "" if low is None or high is None else f"{_said(low, figure.unit)} to {_said(high, figure.unit)}"


def _said(value: float | None, unit: str) -> str:
    if value is None:
        return "–"  # noqa: RUF001 - a dash for what is not there
    return {"share": f"{value:.1%}", "points": f"{value:.0f}", "plain": f"{value:.3f}"}[unit]
