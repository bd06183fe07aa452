"""Tournament: several systems, rated by who beats whom, one batch of matches a round."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from pydantic import Field as Described

from producer.evals import ratings
from producer.evals.numbers import Floats, Frozen, Number, Result, Where, common, percentiles, select, share
from producer.evals.ratings import MEAN, POINTS, STYLES
from producer.evals.rows import Judged, Pair, Row
from producer.evals.schedule import Field, Schedule, seek, spread_evenly
from schemas.verdict import Judge

JudgeRound = Callable[[list[Pair], int], Judged]
"""Has the pairs of a round judged; told the number of the round, from 1."""
_DECIDED: Where = {"decided": True}


@dataclass(frozen=True, slots=True)
class Plan:
    """How matches are chosen, and when it is enough."""

    schedule: Schedule = "full"
    baseline: str | None = None
    """With schedule baseline: the system that all others meet."""
    budget: int | None = None
    """At most this many matches."""
    target: float | None = None
    """Enough once the interval of the least sure difference is no wider than this, in points."""
    round_size: int = 200
    """Matches a round, with schedule adaptive."""


class Standing(Frozen):
    """A system's line of the leaderboard."""

    system: str
    rating: Number
    rank_low: int = Described(description="The best rank in the middle 95 % of resampled tournaments")
    rank_high: int
    wins: Number
    ties: Number
    mean_length: float = Described(description="Characters, over its answers that were judged")
    style_adjusted: Number | None = Described(description="The rating at equal style; null where styles never differ")


class Gap(Frozen):
    """The difference between neighbours on the leaderboard, in points."""

    above: str
    below: str
    difference: Number
    real: bool = Described(description="Whether the interval leaves out zero: the order is not chance")


class Meeting(Frozen):
    """Two systems against each other."""

    system_a: str
    system_b: str
    wins_a: Number
    ties: Number


class StyleEffect(Frozen):
    """What a style is worth with this judge."""

    style: str
    points: Number = Described(
        description="For as much more of it than the other answer has as is usual (root mean square)"
    )


class Round(Frozen):
    """How sure the ranking was after a round."""

    number: int
    matches: int
    matches_so_far: int
    least_sure: tuple[str, str] = Described(description="Neighbours whose difference's interval reached lowest")
    width: float = Described(description="Of the interval of their difference, in points")


class Tournament(Result):
    """A leaderboard of several systems."""

    schedule: Schedule
    baseline: str | None
    matches_full: int = Described(description="How many matches every pair on every prompt would be")
    standings: list[Standing] = Described(description="Best first")
    gaps: list[Gap]
    meetings: list[Meeting]
    styles: list[StyleEffect]
    rounds: list[Round]


def play(field: Field, plan: Plan, judge: JudgeRound, tell: Callable[[Round, int], None] = lambda *_: None) -> Judged:
    """Have matches judged, round by round, until it is enough.

    The rounds follow from the field, the plan and the verdicts alone: played again, they are the same, so that a
    judge that remembers its batches resumes a tournament that was interrupted.

    Args:
        field: who plays, on what.
        plan: how matches are chosen.
        judge: has a round judged.
        tell: told each round, and how many matches it may still be.
    """
    room = dict.fromkeys(field.meetings(plan.baseline), len(field.prompts))
    everything = sum(room.values())
    budget = everything if plan.budget is None else min(plan.budget, everything)
    rows: list[Row] = []
    judges: dict[str, Judge] = {}
    number = 0
    while len(rows) < budget:
        number += 1
        adaptive = plan.schedule == "adaptive"
        size = min(plan.round_size, budget - len(rows)) if adaptive else budget
        if adaptive and any(row.decided for row in rows):
            given = seek(ratings.wins_by_group(select(rows, _DECIDED), field.systems).sum(axis=0), room, size)
        else:
            given = spread_evenly(room, size)
        had = {meeting: len(field.prompts) - left for meeting, left in room.items()}
        pairs = [
            field.pair(meeting, nth)
            for meeting, matches in given.items()
            for nth in range(had[meeting], had[meeting] + matches)
        ]
        room = {meeting: left - given[meeting] for meeting, left in room.items()}
        result = judge(pairs, number)
        rows += [replace(row, round=number) for row in result.rows]
        judges |= {each.model_dump_json(): each for each in result.judges}
        seen = how_sure(rows, field.systems, number)
        if seen is not None:
            tell(seen, budget - len(rows))
            if plan.target is not None and seen.width <= plan.target:
                break
    return Judged(rows, list(judges.values()))


def how_sure(rows: Sequence[Row], systems: Sequence[str], number: int) -> Round | None:
    """Tell which order of neighbours is least sure after a round; None while nothing has a verdict."""
    so_far = [row for row in rows if (row.round or 1) <= number]
    decided = select(so_far, _DECIDED)
    if not decided:
        return None
    wins = ratings.wins_by_group(decided, systems)
    strength = ratings.strengths(wins.sum(axis=0))
    gaps = _gaps(decided, systems, strength, ratings.resample(wins))
    least = min(gaps, key=lambda gap: gap.difference.low or 0.0)
    return Round(
        number=number,
        matches=sum(row.round == number for row in so_far),
        matches_so_far=len(so_far),
        least_sure=(least.above, least.below),
        width=least.difference.width,
    )


def count(judged: Judged, field: Field, plan: Plan) -> Tournament:
    """Rate the systems by the matches that were judged.

    Raises:
        ValueError: no match has a verdict.
    """
    rows, systems = select(judged.rows, _DECIDED), field.systems
    if not rows:
        raise ValueError("no match has a verdict, so that nothing can be rated")
    wins = ratings.wins_by_group(rows, systems)
    strength, drawn = ratings.strengths(wins.sum(axis=0)), ratings.resample(wins)
    fit = ratings.fit_with_style(rows, systems)
    return Tournament(
        **common("tournament", judged),
        schedule=plan.schedule,
        baseline=plan.baseline,
        matches_full=len(field.meetings()) * len(field.prompts),
        standings=[_standing(rows, systems, index, strength, drawn, fit) for index in np.argsort(-strength)],
        gaps=_gaps(rows, systems, strength, drawn),
        meetings=[_meeting(rows, systems[one], systems[other]) for one, other in field.meetings()],
        styles=[] if fit is None else _styles(rows, fit),
        rounds=_rounds(judged.rows, systems),
    )


def _rounds(rows: Sequence[Row], systems: Sequence[str]) -> list[Round]:
    numbers = sorted({row.round for row in rows if row.round is not None})
    return [seen for number in numbers if (seen := how_sure(rows, systems, number)) is not None]


def _standing(
    rows: Sequence[Row],
    systems: Sequence[str],
    index: int,
    strength: Floats,
    drawn: Floats,
    fit: ratings.StyleFit | None,
) -> Standing:
    name = systems[index]
    where: Where = {"systems": name, **_DECIDED}
    own = select(rows, where)
    ranks = 1 + (drawn > drawn[:, [index]]).sum(axis=1)
    best, worst = np.percentile(ranks, [2.5, 97.5], method="nearest")
    lengths = [row.length_a if row.system_a == name else row.length_b for row in own]
    adjusted = None
    if fit is not None:
        adjusted = _rating(fit.strengths[index], fit.drawn_strengths[:, index], len(own), where)
    return Standing(
        system=name,
        rating=_rating(strength[index], drawn[:, index], len(own), where),
        rank_low=int(best),
        rank_high=int(worst),
        wins=share(own, where, {"winner_system": name}),
        ties=share(own, where, {"winner": "tie"}),
        mean_length=float(np.mean(lengths)) if lengths else 0.0,
        style_adjusted=adjusted,
    )


def _rating(strength: float, drawn: Floats, n: int, where: Where) -> Number:
    low, high = percentiles(MEAN + POINTS * drawn)
    return Number(value=MEAN + POINTS * float(strength), low=low, high=high, n=n, where=where)


def _gaps(rows: Sequence[Row], systems: Sequence[str], strength: Floats, drawn: Floats) -> list[Gap]:
    gaps = []
    for above, below in pairwise(np.argsort(-strength)):
        low, high = percentiles(POINTS * (drawn[:, above] - drawn[:, below]))
        difference = Number(
            value=POINTS * float(strength[above] - strength[below]), low=low, high=high, n=len(rows), where=_DECIDED
        )
        gaps.append(Gap(above=systems[above], below=systems[below], difference=difference, real=low > 0))
    return gaps


def _meeting(rows: Sequence[Row], one: str, other: str) -> Meeting:
    where: Where = {"system_a": one, "system_b": other, **_DECIDED}
    own = select(rows, where)
    return Meeting(
        system_a=one,
        system_b=other,
        wins_a=share(own, where, {"winner": "A"}),
        ties=share(own, where, {"winner": "tie"}),
    )


def _styles(rows: Sequence[Row], fit: ratings.StyleFit) -> list[StyleEffect]:
    effects = []
    for index, style in enumerate(STYLES):
        low, high = percentiles(POINTS * fit.drawn_coefficients[:, index])
        value = POINTS * float(fit.coefficients[index])
        effects.append(
            StyleEffect(style=style, points=Number(value=value, low=low, high=high, n=len(rows), where=_DECIDED))
        )
    return effects
