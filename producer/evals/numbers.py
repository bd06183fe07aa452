"""Numbers that know their interval and their rows, and what every result has in common."""

from collections import Counter
from collections.abc import Mapping, Sequence
from math import log
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy import special, stats

from producer.evals.rows import Judged, Row
from schemas.verdict import Judge

Where: TypeAlias = Mapping[str, str | int | bool | list[str] | list[bool] | None]
"""Selects the rows whose columns have these values, or one of those listed; of `systems`, the one or the other."""
Floats: TypeAlias = NDArray[np.float64]

LEVEL = 0.95
"""Of every interval."""
FEWEST = 10
"""Prompts, under which no bootstrap is to be believed: too many draws are alike, and of unanimous ones all are."""
RESAMPLES = 2000
SEED = 0
"""Every bootstrap draws by it, so that the same verdicts give the same interval."""
_EVEN = {"preference_a": 0.5, "preference_b": 0.5, "brier": 0.25, "log_loss": log(2)}
"""What even odds have in columns with an end: near it, the few prompts on the other side are what counts."""
_ROOM = 20_000_000
"""Numbers that a bootstrap holds at a time."""


SWAYED: Where = {"first_slot": [True, False]}
"""Rows whose votes are for different responses. Odds that are even in one order agree with none, but have a vote."""


class Frozen(BaseModel):
    """A part of a result."""

    model_config = ConfigDict(frozen=True)


class Number(Frozen):
    """A figure with its 95 % interval, and the way back to the rows that it came from."""

    value: float | None = Field(description="Null where there was nothing to count")
    low: float | None = None
    high: float | None = None
    n: int = Field(description="Of how many rows it was made")
    where: Where = Field(default_factory=dict, description="Selects these rows")
    hits: int | None = Field(default=None, description="Of a share: how many of the rows have it")
    hit: Where | None = Field(default=None, description="Of a share: selects those, among the others")

    @property
    def width(self) -> float:
        """The width of the interval; infinite where there is none."""
        return float("inf") if self.low is None or self.high is None else self.high - self.low


class Result(Frozen):
    """What every eval says beside its own."""

    kind: str
    pairs: int = Field(description="How many pairs were given")
    decided: int = Field(description="How many of them have a verdict; the others are in no denominator")
    without_verdict: dict[str, int] = Field(description="The others, by the code of what happened to them")
    judges: list[Judge] = Field(description="What the verdicts were made with; one, unless verdicts were mixed")
    caveat: str | None = Field(description="What a reader must know before believing any of it")


def common(kind: str, judged: Judged) -> dict[str, Any]:
    """Fill in what every result has."""
    missing = Counter(row.error or row.status for row in judged.rows if not row.decided)
    return {
        "kind": kind,
        "pairs": len(judged.rows),
        "decided": len(judged.rows) - missing.total(),
        "without_verdict": dict(missing.most_common()),
        "judges": judged.judges,
        "caveat": judged.caveat(),
    }


def select(rows: Sequence[Row], where: Where) -> list[Row]:
    """Pick the rows that a number was made of."""
    return [row for row in rows if all(_fits(getattr(row, name), value) for name, value in where.items())]


def _fits(found: object, wanted: object) -> bool:
    if isinstance(wanted, list):
        return found in wanted
    return wanted in found if isinstance(found, tuple) else found == wanted


def share(rows: Sequence[Row], where: Where, hit: Where) -> Number:
    """Count how many of the rows that `where` selects have `hit` too, with the interval of `wilson`."""
    among = select(rows, where)
    counted = {id(row) for row in select(among, hit)}
    if not among:
        return Number(value=None, n=0, where=where, hits=0, hit=hit)
    low, high = wilson([row.group for row in among], np.array([id(row) in counted for row in among], dtype=np.float64))
    return Number(
        value=len(counted) / len(among),
        low=low,
        high=high,
        n=len(among),
        where=where,
        hits=len(counted),
        hit=hit,
    )


def wilson(groups: Sequence[str], values: Floats) -> tuple[float | None, float | None]:
    """Make the score interval (Wilson 1927) of a mean of values from 0 to 1, which holds near 0 and 1, too.

    Rows on one prompt share its difficulty, and so count as fewer where there are such: divided by their design effect,
    and fewer again as Student's t asks for (Korn and Graubard 1998). Where fewer than `FEWEST` prompts hold any of the
    rarer kind of rows, no such effect can be estimated, and rows count as one a prompt at most; where a few prompts
    have most of the rows, so that these are worth fewer than `FEWEST` equally large ones (their number is (sum of m)^2
    / sum of m^2, with m rows on each; Kish 1965), as one of those at most. Several rows on one prompt alone have no
    interval.
    """
    # Quantiles from the functions themselves: what `stats` has around them takes longer than all the rest.
    middle = (1 + LEVEL) / 2
    _, index = np.unique(groups, return_inverse=True)
    rows, prompts, share_of = len(values), int(index.max()) + 1, float(values.mean())
    told = float(rows)
    if prompts < rows:
        if prompts == 1:
            return None, None
        off = np.bincount(index, weights=values - share_of)
        variance = prompts / (prompts - 1) * float(off @ off) / rows**2
        rarer = min(len(np.unique(index[values > 0])), len(np.unique(index[values < 1])))
        sizes = np.bincount(index)
        alike = rows**2 / float(sizes @ sizes)
        told = min(float(rows if variance and rarer >= FEWEST else prompts), alike if alike < FEWEST else rows)
        if variance:
            few = (special.stdtrit(rows - 1, middle) / special.stdtrit(prompts - 1, middle)) ** 2
            told = min(told, few * share_of * (1 - share_of) / variance)
    z2 = float(special.ndtri(middle)) ** 2
    center = (share_of + z2 / (2 * told)) / (1 + z2 / told)
    reach = (z2 * (share_of * (1 - share_of) / told + z2 / (4 * told**2))) ** 0.5 / (1 + z2 / told)
    return max(0.0, center - reach), min(1.0, center + reach)


def mean(rows: Sequence[Row], where: Where, column: str) -> Number:
    """Average a column over the rows that `where` selects, all of which must have it; bootstrapped over prompts.

    Where fewer than `FEWEST` prompts are on the rarer side of even odds, a bootstrap takes the few it drew from for all
    there are, and its interval closes on the end: it is widened to hold that of `plus_four`, too. A log-loss, which
    has no other end, has no interval then.
    """
    found = select(rows, where)
    if not found:
        return Number(value=None, n=0, where=where)
    values = np.array([getattr(row, column) for row in found], dtype=np.float64)
    groups = [row.group for row in found]
    low, high = interval_over_groups(groups, values)
    if low is not None and high is not None and column in _EVEN and one_sided(groups, values, _EVEN[column]):
        wide = plus_four(groups, values)
        low, high = (None, None) if column == "log_loss" else (min(low, wide[0]), max(high, wide[1]))
    return Number(value=float(values.mean()), low=low, high=high, n=len(found), where=where)


def one_sided(groups: Sequence[str], values: Floats, even: float) -> bool:
    """Tell whether fewer than `FEWEST` prompts have a value over `even`, or fewer have one under it."""
    _, index = np.unique(groups, return_inverse=True)
    return min(len(np.unique(index[values > even])), len(np.unique(index[values < even]))) < FEWEST


def plus_four(groups: Sequence[str], values: Floats) -> tuple[float, float]:
    """Make the interval of a mean of values from 0 to 1 as if two prompts more had had 0, and two had had 1.

    This is what Agresti and Coull (1998) do for shares. Unlike theirs, the variance is that of the values, linearised
    over prompts, and Student's t is used: a judge that is a little sure everywhere does not vary as much as votes do.
    """
    _, index = np.unique(groups, return_inverse=True)
    sums, sizes = np.bincount(index, weights=values), np.bincount(index).astype(np.float64)
    usual = float(sizes.mean())
    sums = np.append(sums, [0.0, 0.0, usual, usual])
    sizes = np.append(sizes, [usual] * 4)
    prompts, middle = len(sizes), float(sums.sum() / sizes.sum())
    off = sums - middle * sizes
    error = (prompts / (prompts - 1) * float(off @ off)) ** 0.5 / float(sizes.sum())
    reach = float(special.stdtrit(prompts - 1, (1 + LEVEL) / 2)) * error
    return max(0.0, middle - reach), min(1.0, middle + reach)


def interval_over_groups(groups: Sequence[str], values: Floats) -> tuple[float | None, float | None]:
    """Make the percentile bootstrap interval of a mean, drawing whole prompts and not rows.

    Rows on one prompt share its difficulty, so drawing them one by one would make the interval too narrow
    (the cluster bootstrap, Field and Welsh 2007). Fewer prompts than `FEWEST` have no interval.
    """
    _, index = np.unique(groups, return_inverse=True)
    sums, sizes = np.bincount(index, weights=values), np.bincount(index).astype(np.float64)
    if len(sums) < FEWEST:
        return None, None

    def ratio(picked: Floats, of: Floats, axis: int = -1) -> Floats:
        return np.asarray(picked.sum(axis=axis) / of.sum(axis=axis))

    drawn = stats.bootstrap(
        (sums, sizes),
        ratio,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, _ROOM // len(sums)),
        confidence_level=expanded(len(sums)),
        method="percentile",
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return float(drawn.low), float(drawn.high)


def expanded(prompts: int) -> float:
    """Tell how much of what a bootstrap drew makes a 95 % interval: the more than 95 % the fewer the prompts.

    A bootstrap's spread is too small by the square root of (n - 1) / n, and knows nothing of Student's t: the expanded
    percentile interval (Hesterberg 2015, "What teachers should know about the bootstrap") makes up for both.
    """
    reach = stats.t.ppf((1 + LEVEL) / 2, prompts - 1) * (prompts / (prompts - 1)) ** 0.5
    return float(2 * stats.norm.cdf(reach) - 1)


def percentiles(drawn: Floats, level: float = LEVEL) -> tuple[float, float]:
    """Give the interval that holds the middle of what a bootstrap drew, so much of it."""
    edge = 50.0 * (1.0 - level)
    low, high = np.percentile(drawn, [edge, 100.0 - edge])
    return float(low), float(high)
