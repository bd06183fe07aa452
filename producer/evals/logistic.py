"""Logistic regression: what length-adjusted win rates, style-adjusted ratings and temperatures are fitted by."""

from collections.abc import Sequence

import numpy as np
from scipy import optimize, special

from producer.evals.numbers import SEED, Floats


def log_loss(logits: Floats, targets: Floats) -> Floats:
    """Compute -log of the probability given to what happened, -t log p - (1 - t) log(1 - p) with p = sigmoid(logit).

    Args:
        logits: of any shape.
        targets: from 0 to 1, of the same shape.
    """
    return np.asarray(np.logaddexp(0.0, logits) - targets * logits)


def fit(
    design: Floats,
    targets: Floats,
    *,
    weights: Floats | None = None,
    ridge: float = 0.0,
    start: Floats | None = None,
) -> Floats:
    """Find the coefficients that make the targets likeliest, by L-BFGS on the convex loss.

    Args:
        design: rows by coefficients; give a column of ones for an intercept.
        targets: by row, from 0 to 1.
        weights: by row; ones when left out.
        ridge: half of this times the squared coefficients is added to the summed loss, so that what the data does
            not tell stays finite.
        start: coefficients to begin from, for refits on nearly the same rows.
    """
    each = np.ones(len(targets)) if weights is None else weights

    def loss(beta: Floats) -> tuple[float, Floats]:
        logits = design @ beta
        slope = design.T @ (each * (special.expit(logits) - targets)) + ridge * beta
        return float(each @ log_loss(logits, targets) + 0.5 * ridge * beta @ beta), slope

    begin = np.zeros(design.shape[1]) if start is None else start
    found = optimize.minimize(loss, begin, jac=True, method="L-BFGS-B", options={"gtol": 1e-7})
    return np.asarray(found.x)


def refit(groups: Sequence[str], design: Floats, targets: Floats, *, ridge: float, start: Floats, times: int) -> Floats:
    """Fit again on groups of rows that are drawn anew, each with all of its rows.

    Args:
        groups: by row.
        design: as in `fit`, like `targets`, `ridge` and `start`.
        targets: as in `fit`.
        ridge: as in `fit`.
        start: as in `fit`.
        times: how many draws.

    Returns:
        Draws by coefficients.
    """
    _, group = np.unique(groups, return_inverse=True)
    size = int(group.max()) + 1
    generator = np.random.default_rng(SEED)

    def once() -> Floats:
        weights = generator.multinomial(size, np.full(size, 1.0 / size))[group].astype(np.float64)
        return fit(design, targets, weights=weights, ridge=ridge, start=start)

    return np.array([once() for _ in range(times)])
