"""Calibration: the temperature at which a judge's probabilities mean what they say."""

from collections.abc import Sequence

import numpy as np
from pydantic import Field
from scipy import optimize

from producer.evals import gold
from producer.evals.logistic import log_loss
from producer.evals.numbers import FEWEST, SEED, Floats, Number, Result, Where, common, expanded, percentiles, select
from producer.evals.rows import Judged, Row
from schemas.calibration import CalibratedJudge, Calibration

_ODDS: Where = {"scored": True}
"""There is a probability where each order that was asked has its odds."""
_FOLDS = 5
_RESAMPLES = 500
_LEAST = 20
"""Gold pairs, under which a temperature is not worth writing down."""
_REACH = (-5.0, 5.0)
"""Of log T: temperatures from 0.007 to 148."""
_EDGE = 0.01
"""Of log T: the search ends so near to an end of its range only where the least loss lies beyond."""


class Fitted(Result):
    """A temperature, and what it is worth on pairs that it was not fitted on."""

    temperature: Number
    log_loss_before: float = Field(description="At temperature 1")
    log_loss_after: float = Field(description="Each fold at the temperature fitted on the others")
    better: bool = Field(description="Whether it lowers the held-out log-loss; if not, it is not written: leave T at 1")
    expected_error_before: float = Field(description="ECE at temperature 1")
    expected_error_after: float = Field(description="ECE, each fold at the temperature fitted on the others")
    calibration: Calibration


class CannotCalibrateError(ValueError):
    """The pairs tell no temperature, or it would be one for several judges."""


def fit_temperature(preferences: Floats, labels: Floats) -> float:
    """Find T that makes the labels likeliest under P(A better) = sigmoid(d / T), by Brent's method on log T.

    Temperature scaling (Guo et al. 2017, arXiv:1706.04599). The loss is convex in 1 / T, so it has one minimum.

    Args:
        preferences: d, in log-odds at temperature 1.
        labels: 1 where A is the label, else 0.
    """
    found = optimize.minimize_scalar(
        lambda logs: float(log_loss(preferences * np.exp(-logs), labels).mean()), bounds=_REACH, method="bounded"
    )
    return float(np.exp(found.x))


def fit(judged: Judged) -> Fitted:
    """Fit a temperature on gold pairs, and try it on held-out ones (five folds, whole prompts).

    Raises:
        CannotCalibrateError: the message says why.
    """
    rows = select(judged.rows, _ODDS)
    judges = {CalibratedJudge.of(judge) for judge in judged.judges}
    if len(judges) != 1:
        raise CannotCalibrateError(f"the verdicts were made by {len(judges)} judges; a temperature is good for one")
    if len(rows) < _LEAST:
        raise CannotCalibrateError(
            f"{len(rows)} pairs have a label and log-odds; give {_LEAST} at least, and some hundreds to be sure"
        )
    preferences, labels, groups = _arrays(rows)
    if len(np.unique(groups)) < _FOLDS:
        raise CannotCalibrateError(f"the pairs are of fewer than {_FOLDS} prompts; nothing can be held out")
    temperature = fit_temperature(preferences, labels)
    _refuse_an_edge(temperature, preferences, labels)
    low, high = _interval(preferences, labels, groups)
    held_out = _held_out(preferences, labels, groups)
    before, after = float(log_loss(preferences, labels).mean()), float(log_loss(held_out, labels).mean())
    return Fitted(
        **common("calibrate", judged),
        temperature=Number(value=temperature, low=low, high=high, n=len(rows), where=_ODDS),
        log_loss_before=before,
        log_loss_after=after,
        better=after < before,
        expected_error_before=gold.expected_error(preferences, labels),
        expected_error_after=gold.expected_error(held_out, labels),
        calibration=Calibration(
            temperature=temperature,
            low=low,
            high=high,
            pairs=len(rows),
            log_loss_before=before,
            log_loss_after=after,
            judge=CalibratedJudge.of(judged.judges[0]),
        ),
    )


def _refuse_an_edge(temperature: float, preferences: Floats, labels: Floats) -> None:
    """Refuse a temperature that is the end of the search and not the least of the loss."""
    if not _errs(preferences, labels):
        raise CannotCalibrateError(
            "the pairs tell no temperature, because the judge is right on all of them; give harder ones"
        )
    least, most = _REACH
    if np.log(temperature) > most - _EDGE:
        raise CannotCalibrateError(
            "the pairs tell no temperature, because the judge is no better than chance on them; give others"
        )
    if np.log(temperature) < least + _EDGE:
        raise CannotCalibrateError(
            f"the pairs tell no temperature of {np.exp(least):.3f} or more, because the judge's odds are all but even"
        )


def _errs(preferences: Floats, labels: Floats) -> bool:
    """Whether the judge is wrong on any pair; where it is not, the loss only falls as T goes to 0."""
    return bool(np.any(np.where(labels, preferences, -preferences) < 0))


def _arrays(rows: Sequence[Row]) -> tuple[Floats, Floats, Floats]:
    _, groups = np.unique([row.group for row in rows], return_inverse=True)
    preferences = np.array([row.log_odds_a for row in rows], dtype=np.float64)
    labels = np.array([row.label == "A" for row in rows], dtype=np.float64)
    return preferences, labels, groups.astype(np.float64)


def _held_out(preferences: Floats, labels: Floats, groups: Floats) -> Floats:
    """Give d / T for each pair, T fitted on the folds that its prompt is not in."""
    generator = np.random.default_rng(SEED)
    fold = generator.permutation(int(groups.max()) + 1)[groups.astype(int)] % _FOLDS
    scaled = np.empty_like(preferences)
    for index in range(_FOLDS):
        out = fold == index
        scaled[out] = preferences[out] / fit_temperature(preferences[~out], labels[~out])
    return scaled


def _interval(preferences: Floats, labels: Floats, groups: Floats) -> tuple[float | None, float | None]:
    """Fit on redrawn prompts, again and again; none where prompts are few, or draws tell no temperature.

    A draw without an error has no least loss but at T = 0, and so counts as the lowest: an end of the interval that is
    an end of the search is not known.
    """
    generator = np.random.default_rng(SEED)
    order = np.argsort(groups, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
    if len(members) < FEWEST:
        return None, None
    least, most = np.exp(_REACH)
    drawn = []
    for _ in range(_RESAMPLES):
        picked = np.concatenate([members[each] for each in generator.integers(len(members), size=len(members))])
        some = preferences[picked], labels[picked]
        drawn.append(fit_temperature(*some) if _errs(*some) else least)
    low, high = percentiles(np.array(drawn), expanded(len(members)))
    known = low > least * np.exp(_EDGE) and high < most * np.exp(-_EDGE)
    return (low, high) if known else (None, None)
