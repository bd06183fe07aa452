"""Bradley-Terry ratings: how strong each of several systems is, from who beat whom."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import evalica
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csgraph

from producer.evals import logistic
from producer.evals.numbers import FEWEST, SEED, Floats, expanded, percentiles
from producer.evals.rows import Row

POINTS = 400.0 / log(10.0)
"""Rating points for one unit of log-strength: 400 points are odds of ten to one, as in Elo."""
MEAN = 1000.0
"""The mean rating of the systems of a tournament."""
RESAMPLES = 500
_REFITS = 100
_RIDGE = 0.5
_HALF = {"A": (1.0, 0.0), "B": (0.0, 1.0), "tie": (0.5, 0.5)}
STYLES = ("length", "headers", "lists", "bold")


def wins_by_group(rows: Sequence[Row], systems: Sequence[str]) -> Floats:
    """Count who beat whom on each prompt; a tie is half a win for each.

    Args:
        rows: with a verdict each.
        systems: gives the order of the axes.

    Returns:
        Prompts by winner by loser.
    """
    place = {name: index for index, name in enumerate(systems)}
    groups = {name: index for index, name in enumerate(dict.fromkeys(row.group for row in rows))}
    wins = np.zeros((len(groups), len(systems), len(systems)))
    for row in rows:
        first, second = place[row.system_a or ""], place[row.system_b or ""]
        for_first, for_second = _HALF[row.winner or "tie"]
        wins[groups[row.group], first, second] += for_first
        wins[groups[row.group], second, first] += for_second
    return wins


def leagues(wins: Floats) -> list[int]:
    """Number each system's league: within one, each can be reached from every other by wins.

    Between leagues all matches went one way, or there were none, so that nothing bounds how far they are apart.

    Args:
        wins: winner by loser.
    """
    labels = csgraph.connected_components(wins > 0, directed=True, connection="strong")[1]
    return [int(label) for label in labels]


def strengths(wins: Floats) -> Floats:
    """Fit Bradley-Terry (1952): log-strengths with mean 0, so that P(i beats j) = sigmoid(s_i - s_j). By evalica.

    A maximum exists where every system could be reached from every other by wins (Ford 1957). Where that is not so,
    one drawn match is spread over all pairs of systems, so that a system that never won is far down, not infinitely.

    Args:
        wins: winner by loser.
    """
    count = len(wins)
    if len(set(leagues(wins))) > 1:
        wins = wins + (1.0 - np.eye(count)) / (count * (count - 1))
    winners, losers = np.nonzero(wins)
    fitted = evalica.bradley_terry(
        winners,
        losers,
        [evalica.Winner.X] * len(winners),
        index=pd.Index(range(count)),
        weights=wins[winners, losers],
        tolerance=1e-9,
        limit=10_000,
    ).scores.sort_index()
    logs = np.log(np.maximum(fitted.to_numpy(dtype=np.float64), 1e-300))
    return np.asarray(logs - logs.mean())


def prompts_met(wins: Floats) -> list[int]:
    """Count the prompts on which each system has a match.

    Args:
        wins: prompts by winner by loser.
    """
    return [int(each) for each in (wins + wins.transpose(0, 2, 1)).any(axis=2).sum(axis=0)]


def surely_above(wins: Floats, drawn: Floats) -> NDArray[np.bool_]:
    """Tell which systems are surely above which others; none is by fewer than `FEWEST` prompts.

    Within a league: where the interval of the difference is over zero; of two systems it takes the prompts of the one
    that has fewer, since a bootstrap knows as little of their difference as those tell. Between leagues a bootstrap
    draws the same winner again and again, however few matches there were; there it takes `FEWEST` prompts on which the
    one beat the other, which chance would do once in 512 times. What is above a system is above what that one is above.

    Args:
        wins: prompts by winner by loser.
        drawn: draws by systems, of `resample`.

    Returns:
        Above by below.
    """
    count = wins.shape[1]
    sure = np.zeros((count, count), dtype=bool)
    prompts = np.array(prompts_met(wins))
    league = np.array(leagues(wins.sum(axis=0)))
    beaten = ((wins > 0) & (wins.transpose(0, 2, 1) == 0)).sum(axis=0)
    for system in range(count):
        fewer = np.minimum(prompts, prompts[system])
        over = [
            each >= FEWEST and percentiles(drawn[:, system] - drawn[:, other], expanded(each))[0] > 0
            for other, each in enumerate(fewer)
        ]
        sure[system] = np.where(league == league[system], over, beaten[system] >= FEWEST)
    for middle in range(count):
        sure |= np.outer(sure[:, middle], sure[middle])
    return sure


def resample(wins: Floats) -> Floats:
    """Draw prompts again and again, and fit each draw.

    Args:
        wins: prompts by winner by loser.

    Returns:
        Draws by systems: log-strengths.
    """
    groups, count, _ = wins.shape
    generator = np.random.default_rng(SEED)
    drawn = generator.multinomial(groups, np.full(groups, 1.0 / groups), size=RESAMPLES)
    sums = (drawn @ wins.reshape(groups, count * count)).reshape(RESAMPLES, count, count)
    return np.array([strengths(each) for each in sums])


@dataclass(frozen=True, slots=True)
class StyleFit:
    """Log-strengths at equal style, what style is worth, and both for each refit."""

    strengths: Floats
    coefficients: Floats
    """By style: log-odds for a difference of the usual size (root mean square)."""
    drawn_strengths: Floats
    drawn_coefficients: Floats
    prompts: list[int]
    """By style: on how many prompts it differs."""


def fit_with_style(rows: Sequence[Row], systems: Sequence[str]) -> StyleFit | None:
    """Fit Bradley-Terry with style beside: logistic regression on who met whom and on differences of style.

    The differences are (a - b) / (a + b) of length and of Markdown headers, list items and bold runs, in units of
    their root mean square, with a ridge of 0.5: Chatbot Arena's style control (Li et al. 2024, "Does style matter?").

    Args:
        rows: with a verdict each.
        systems: gives the order.

    Returns:
        None where no style ever differs.
    """
    place = {name: index for index, name in enumerate(systems)}
    met = np.zeros((len(rows), len(systems)))
    for number, row in enumerate(rows):
        met[number, place[row.system_a or ""]] += 1.0
        met[number, place[row.system_b or ""]] -= 1.0
    first = np.array([row.style_a for row in rows], dtype=np.float64)
    second = np.array([row.style_b for row in rows], dtype=np.float64)
    differences = (first - second) / np.maximum(first + second, 1.0)
    # Not centred: which system is A is no matter of chance here, and zero has to stay "the same style".
    scale = np.sqrt((differences**2).mean(axis=0))
    if not scale.any():
        return None
    design = np.hstack([met, differences / np.where(scale > 0, scale, 1.0)])
    targets = np.array([_HALF[row.winner or "tie"][0] for row in rows])
    fitted = logistic.fit(design, targets, ridge=_RIDGE)
    drawn = logistic.refit([row.group for row in rows], design, targets, ridge=_RIDGE, start=fitted, times=_REFITS)
    count = len(systems)
    return StyleFit(
        strengths=fitted[:count] - fitted[:count].mean(),
        coefficients=fitted[count:],
        drawn_strengths=drawn[:, :count] - drawn[:, :count].mean(axis=1, keepdims=True),
        drawn_coefficients=drawn[:, count:],
        prompts=[len({row.group for row, each in zip(rows, style, strict=True) if each}) for style in differences.T],
    )
