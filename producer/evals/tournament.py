"""Tournament: several systems, rated by who beats whom, one batch of matches a round."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import inf, isfinite

import numpy as np
from numpy.typing import NDArray
from pydantic import Field as Described

from producer.evals import ratings
from producer.evals.numbers import (
    FEWEST,
    Floats,
    Frozen,
    Number,
    Result,
    Where,
    common,
    expanded,
    percentiles,
    select,
    share,
)
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
    rank_low: int = Described(description="One more than there are systems surely above it")
    rank_high: int = Described(description="As many as there are systems that are not surely below it")
    wins: Number
    ties: Number
    mean_length: float = Described(description="Characters, over its answers that were judged")
    style_adjusted: Number | None = Described(description="The rating at equal style; null where styles never differ")


class Gap(Frozen):
    """The difference between neighbours on the leaderboard, in points."""

    above: str
    below: str
    difference: Number
    real: bool = Described(
        description="Whether the order is not chance: the interval is over zero or, between systems that no chain of "
        "wins joins both ways, the one beat the other, or what beat it, on ten prompts at least"
    )


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
        description="For as much more of it than the other answer has as is usual (root mean square); "
        "null where it never differs"
    )


class Round(Frozen):
    """How sure the ranking was after a round."""

    number: int
    matches: int
    matches_so_far: int
    least_sure: tuple[str, str] = Described(description="Neighbours whose difference's interval reached lowest")
    width: float | None = Described(description="Of the interval of their difference, in points; null without one")


class Tournament(Result):
    """A leaderboard of several systems."""

    schedule: Schedule
    baseline: str | None
    matches_full: int = Described(description="How many matches every pair on every prompt would be")
    standings: list[Standing] = Described(description="Best first")
    unrated: list[str] = Described(description="Systems without a match that has a verdict: in no rating and no rank")
    given_up: list[str] = Described(
        description="With schedule adaptive: systems, and pairs of systems, that got no more matches after ten or more "
        "of which none has a verdict"
    )
    gaps: list[Gap]
    meetings: list[Meeting]
    styles: list[StyleEffect]
    rounds: list[Round]


@dataclass(frozen=True, slots=True)
class _Ranking:
    """Systems that have matches with a verdict, and how strong they are by these."""

    rows: Sequence[Row]
    systems: Sequence[str]
    prompts: Sequence[int]
    """On how many each system has a match."""
    strength: Floats
    drawn: Floats
    leagues: Sequence[int]
    sure: NDArray[np.bool_]
    """Above by below."""


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
            given = _sought(rows, field, room, size)
        else:
            given = spread_evenly(room, size)
        if not any(given.values()):
            break
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
            if plan.target is not None and seen.width is not None and seen.width <= plan.target:
                break
    return Judged(rows, list(judges.values()))


def _sought(
    rows: Sequence[Row], field: Field, room: Mapping[tuple[int, int], int], size: int
) -> dict[tuple[int, int], int]:
    """Seek matches among what can be judged; none where there are no more of these."""
    silent = _silent(rows)
    systems = [name for name in field.systems if name not in silent]
    # What never gets a verdict would stay the least sure of all, and be sought until its prompts ran out.
    among: dict[tuple[int, int], int] = {}
    meetings = []
    for meeting, left in room.items():
        one, other = (field.systems[each] for each in meeting)
        if silent.isdisjoint({one, other, (one, other)}):
            meetings.append(meeting)
            among[systems.index(one), systems.index(other)] = left
    given = seek(ratings.wins_by_group(select(rows, _DECIDED), systems).sum(axis=0), among, size)
    return dict.fromkeys(room, 0) | dict(zip(meetings, given.values(), strict=True))


def _silent(rows: Sequence[Row]) -> set[str | tuple[str | None, str | None] | None]:
    """Find the systems, and the pairs of them, that had `FEWEST` matches at least and not one verdict."""
    tried = Counter(each for row in rows for each in (*row.systems, row.systems))
    heard = {each for row in rows if row.decided for each in (*row.systems, row.systems)}
    return {each for each, times in tried.items() if times >= FEWEST and each not in heard}


def _given_up(rows: Sequence[Row], field: Field) -> list[str]:
    silent = _silent(rows)
    systems = [name for name in field.systems if name in silent]
    pairs = [tuple(field.systems[each] for each in meeting) for meeting in field.meetings()]
    return systems + [" against ".join(pair) for pair in pairs if pair in silent and silent.isdisjoint(pair)]


def how_sure(rows: Sequence[Row], systems: Sequence[str], number: int) -> Round | None:
    """Tell which order of neighbours is least sure after a round; None while nothing has a verdict."""
    so_far = [row for row in rows if (row.round or 1) <= number]
    decided = select(so_far, _DECIDED)
    if not decided:
        return None
    least = min(_gaps(_rank(decided, systems)), key=_doubt)
    width = least.difference.width
    return Round(
        number=number,
        matches=sum(row.round == number for row in so_far),
        matches_so_far=len(so_far),
        least_sure=(least.above, least.below),
        width=width if isfinite(width) else None,
    )


def _doubt(gap: Gap) -> float:
    """Give how low the difference may be; without an interval, as low or as high as can be."""
    if gap.difference.low is None:
        return inf if gap.real else -inf
    return gap.difference.low


def count(judged: Judged, field: Field, plan: Plan) -> Tournament:
    """Rate the systems by the matches that were judged.

    Raises:
        ValueError: no match has a verdict.
    """
    rows = select(judged.rows, _DECIDED)
    if not rows:
        raise ValueError("no match has a verdict, so that nothing can be rated")
    ranking = _rank(rows, field.systems)
    fit = ratings.fit_with_style(rows, ranking.systems)
    return Tournament(
        **common("tournament", judged),
        schedule=plan.schedule,
        baseline=plan.baseline,
        matches_full=len(field.meetings()) * len(field.prompts),
        standings=[_standing(ranking, index, fit) for index in np.argsort(-ranking.strength)],
        unrated=[name for name in field.systems if name not in ranking.systems],
        given_up=_given_up(judged.rows, field) if plan.schedule == "adaptive" else [],
        gaps=_gaps(ranking),
        meetings=[_meeting(rows, field.systems[one], field.systems[other]) for one, other in field.meetings()],
        styles=[] if fit is None else _styles(ranking, fit),
        rounds=_rounds(judged.rows, field.systems),
    )


def _rounds(rows: Sequence[Row], systems: Sequence[str]) -> list[Round]:
    numbers = sorted({row.round for row in rows if row.round is not None})
    return [seen for number in numbers if (seen := how_sure(rows, systems, number)) is not None]


def _rank(rows: Sequence[Row], systems: Sequence[str]) -> _Ranking:
    met = [name for name in systems if any(name in row.systems for row in rows)]
    wins = ratings.wins_by_group(rows, met)
    drawn = ratings.resample(wins)
    return _Ranking(
        rows=rows,
        systems=met,
        prompts=ratings.prompts_met(wins),
        strength=ratings.strengths(wins.sum(axis=0)),
        drawn=drawn,
        leagues=ratings.leagues(wins.sum(axis=0)),
        sure=ratings.surely_above(wins, drawn),
    )


def _standing(ranking: _Ranking, index: int, fit: ratings.StyleFit | None) -> Standing:
    name = ranking.systems[index]
    where: Where = {"systems": name, **_DECIDED}
    own = select(ranking.rows, where)
    lengths = [row.length_a if row.system_a == name else row.length_b for row in own]

    def rating(strength: float, drawn: Floats) -> Number:
        prompts = ranking.prompts[index] if len(set(ranking.leagues)) == 1 else 0
        low, high = _interval(MEAN + POINTS * drawn, prompts)
        return Number(value=MEAN + POINTS * float(strength), low=low, high=high, n=len(own), where=where)

    return Standing(
        system=name,
        rating=rating(ranking.strength[index], ranking.drawn[:, index]),
        rank_low=1 + int(ranking.sure[:, index].sum()),
        rank_high=len(ranking.systems) - int(ranking.sure[index].sum()),
        wins=share(own, where, {"winner_system": name}),
        ties=share(own, where, {"winner": "tie"}),
        mean_length=float(np.mean(lengths)) if lengths else 0.0,
        style_adjusted=None if fit is None else rating(fit.strengths[index], fit.drawn_strengths[:, index]),
    )


def _interval(drawn: Floats, prompts: int) -> tuple[float | None, float | None]:
    """Make the interval of what so many prompts tell, which too few do not."""
    return (None, None) if prompts < FEWEST else percentiles(drawn, expanded(prompts))


def _gaps(ranking: _Ranking) -> list[Gap]:
    gaps = []
    strength, drawn, leagues = ranking.strength, ranking.drawn, ranking.leagues
    for above, below in pairwise(np.argsort(-strength)):
        prompts = min(ranking.prompts[above], ranking.prompts[below]) if leagues[above] == leagues[below] else 0
        low, high = _interval(POINTS * (drawn[:, above] - drawn[:, below]), prompts)
        apart = POINTS * float(strength[above] - strength[below])
        gaps.append(
            Gap(
                above=ranking.systems[above],
                below=ranking.systems[below],
                difference=Number(value=apart, low=low, high=high, n=len(ranking.rows), where=_DECIDED),
                real=bool(ranking.sure[above, below]),
            )
        )
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


def _styles(ranking: _Ranking, fit: ratings.StyleFit) -> list[StyleEffect]:
    effects = []
    for index, style in enumerate(STYLES):
        low, high = _interval(POINTS * fit.drawn_coefficients[:, index], fit.prompts[index])
        # What never differs has a coefficient of zero, which is no finding.
        value = POINTS * float(fit.coefficients[index]) if fit.prompts[index] else None
        points = Number(value=value, low=low, high=high, n=len(ranking.rows), where=_DECIDED)
        effects.append(StyleEffect(style=style, points=points))
    return effects
