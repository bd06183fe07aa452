"""Gold: a judge against labels that people gave."""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from pydantic import Field
from scipy import special

from producer.evals.numbers import SWAYED, Floats, Frozen, Number, Result, Where, common, mean, select, share
from producer.evals.rows import BINS, Judged, Row, subsets

_LABELLED: Where = {"labelled": True}
_SCORED: Where = {"scored": True}
_BOTH: Where = {"both": True}


class Bin(Frozen):
    """Verdicts of about the same confidence: how sure they were, and how often right."""

    low: float = Field(description="Of the winner's probability")
    high: float
    confidence: float = Field(description="Mean probability of the winner")
    accuracy: Number


class Calibration(Frozen):
    """Whether P means what it says."""

    log_loss: Number = Field(description="Mean -log of the probability given to the label; 0.693 is a coin's")
    brier: Number = Field(description="Mean of (probability of the label - 1) squared; 0.25 is a coin's (Brier 1950)")
    expected_error: float = Field(description="ECE: mean over verdicts of |accuracy - confidence| of their bin")
    bins: list[Bin] = Field(description="The reliability table; empty bins are left out")


class Part(Frozen):
    """The same figures for one subset."""

    subset: str
    accuracy: Number
    consistent: Number


class Gold(Result):
    """How a judge does against gold labels."""

    labelled: int
    accuracy: Number = Field(description="Share of verdicts that are the label; a tie is none")
    accuracy_ab: Number = Field(description="The same for the votes in order ab alone")
    accuracy_ba: Number = Field(description="The same for order ba")
    accuracy_average: float | None = Field(description="Mean of the two: LLMBar's accuracy")
    accuracy_both: Number = Field(description="Share of pairs where each order preferred the label")
    consistent: Number
    first_slot: Number = Field(description="Of pairs whose orders disagree, the share that preferred what came first")
    position_bias: Number
    agreement: float | None = Field(description="Krippendorff's alpha, nominal, of verdicts and labels")
    agreement_of_orders: float | None = Field(description="Krippendorff's alpha of the two orders' votes")
    calibration: Calibration | None = Field(description="Null where no verdict has a probability and a label")
    subsets: list[Part]


def count(judged: Judged) -> Gold:
    """Count how a judge does against the labels of its rows."""
    rows = judged.rows
    ab = _orders(rows, "ab")
    ba = _orders(rows, "ba")
    averaged = None if ab.value is None or ba.value is None else (ab.value + ba.value) / 2
    return Gold(
        **common("gold", judged),
        labelled=sum(row.label is not None for row in rows),
        accuracy=share(rows, _LABELLED, {"correct": True}),
        accuracy_ab=ab,
        accuracy_ba=ba,
        accuracy_average=averaged,
        accuracy_both=_orders(rows, "both"),
        consistent=share(rows, _BOTH, {"consistent": True}),
        first_slot=share(rows, SWAYED, {"first_slot": True}),
        position_bias=mean(rows, {"odds": True}, "position_bias"),
        agreement=alpha([(row.winner, row.label) for row in select(rows, _LABELLED)]),
        agreement_of_orders=alpha([(row.vote_ab, row.vote_ba) for row in rows]),
        calibration=calibration(rows),
        subsets=[
            Part(
                subset=name,
                accuracy=share(part, {"subset": name, **_LABELLED}, {"correct": True}),
                consistent=share(part, {"subset": name, **_BOTH}, {"consistent": True}),
            )
            for name, part in subsets(rows).items()
        ],
    )


def _orders(rows: Sequence[Row], order: str) -> Number:
    return share(rows, {f"labelled_{order}": True}, {f"correct_{order}": True})


def alpha(pairs: Iterable[tuple[str | None, str | None]]) -> float | None:
    """Compute Krippendorff's alpha of two raters' nominal codes (Krippendorff 2011): 1 - observed / expected.

    Of N codes in pairs, N / 2 of each rater, 2 * disagreements / N is the observed disagreement, and the expected one
    (N^2 - sum of n_c^2) / (N * (N - 1)) with n_c codes of kind c. 1 is agreement, 0 what chance would give; what only
    one rater coded counts for nothing. None where nothing was coded by both, or everything alike: chance agrees as
    well then.
    """
    # From counts: a table with a column a pair, which libraries ask for, took seconds and hundreds of megabytes.
    coded = Counter(pair for pair in pairs if None not in pair)
    of_kind: Counter[str | None] = Counter()
    for pair, times in coded.items():
        for code in pair:
            of_kind[code] += times
    if len(of_kind) < 2:  # noqa: PLR2004 - one code for all
        return None
    codes = of_kind.total()
    observed = 2 * sum(times for (one, other), times in coded.items() if one != other) / codes
    expected = (codes**2 - sum(times**2 for times in of_kind.values())) / (codes * (codes - 1))
    return 1.0 - observed / expected


def calibration(rows: Sequence[Row]) -> Calibration | None:
    """Hold probabilities against labels. The bins are a twentieth wide, over the probability of the likelier."""
    scored = select(rows, _SCORED)
    if not scored:
        return None
    table = []
    for index in sorted({row.bin for row in scored if row.bin is not None}):
        where: Where = {**_SCORED, "bin": index}
        table.append(
            Bin(
                low=0.5 + index / 2 / BINS,
                high=0.5 + (index + 1) / 2 / BINS,
                confidence=float(np.mean([row.confidence for row in select(scored, where)])),
                accuracy=share(scored, where, {"likelier_correct": True}),
            )
        )
    return Calibration(
        log_loss=mean(scored, _SCORED, "log_loss"),
        brier=mean(scored, _SCORED, "brier"),
        expected_error=sum(
            each.accuracy.n / len(scored) * abs((each.accuracy.value or 0.0) - each.confidence) for each in table
        ),
        bins=table,
    )


def expected_error(logits: Floats, labels: Floats) -> float:
    """Compute the expected calibration error over the same bins (Naeini et al. 2015), for other temperatures.

    Args:
        logits: of P(A better).
        labels: 1 where A is the label, else 0.
    """
    chance = special.expit(logits)
    confidence = np.maximum(chance, 1.0 - chance)
    right = (chance >= 0.5) == (labels == 1.0)  # noqa: PLR2004 - even odds
    bins = np.minimum(((confidence - 0.5) * 2 * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, weights=right - confidence, minlength=BINS)
    return float(np.abs(gaps).sum() / len(logits))
