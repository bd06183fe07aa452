"""Versus: two systems on the same prompts. Response A is the baseline's, response B the system's."""

from collections.abc import Sequence

import numpy as np
from pydantic import Field
from scipy import special, stats

from producer.evals import logistic
from producer.evals.numbers import (
    FEWEST,
    LEVEL,
    SWAYED,
    Floats,
    Frozen,
    Number,
    Result,
    Where,
    common,
    expanded,
    mean,
    one_sided,
    percentiles,
    select,
    share,
)
from producer.evals.rows import Judged, Row, subsets

_DECIDED: Where = {"decided": True}
_BOTH: Where = {"both": True}
_REFITS = 200
_OVERLAP = 0.2
"""Under this share of prompts with the other length order, adjusting is extrapolating: on AlpacaEval's published
annotations the adjusted rate is within 2 points of the leaderboard's own above it, and 3 to 19 off below."""
_EVEN = 0.5
_POWER = 0.8
_UNFAIR = "Not every pair was judged in both orders, so that a leaning to a slot cannot be told from a difference."


class LengthAdjusted(Frozen):
    """The win rate that a logistic model expects if both answers were equally long.

    Not AlpacaEval's length-controlled win rate, which also needs its model of each instruction's difficulty.
    """

    win_rate: Number
    coefficient: float = Field(description="Of tanh(length difference / its standard deviation); over 0: longer wins")
    length_baseline: float = Field(description="Mean characters")
    length_system: float
    overlap: float = Field(description="Share of prompts with the rarer length order; 0.5 where lengths do not differ")
    warning: str | None = Field(description="Set where lengths hardly overlap: the figure is an extrapolation")


class Part(Frozen):
    """The same figures for one subset."""

    subset: str
    win_rate: Number
    wins: Number
    consistent: Number


class Versus(Result):
    """How a system does against a baseline."""

    system: str
    baseline: str
    win_rate: Number = Field(description="Mean of P(system better): AlpacaEval's win rate")
    standard_error: float | None = Field(description="Of the win rate: standard deviation / sqrt(n)")
    wins: Number = Field(description="Share of prompts that the system won")
    losses: Number
    ties: Number
    discrete_win_rate: float | None = Field(description="(wins + ties / 2) / n")
    agreed_win_rate: float | None = Field(description="The same with a tie wherever the orders disagree (MT-Bench)")
    consistent: Number = Field(description="Share of pairs where both orders name the same winner")
    first_slot: Number = Field(description="Of pairs whose orders disagree, the share that preferred what came first")
    position_bias: Number = Field(description="Mean b in log-odds: over 0, a leaning to what is shown first")
    length_adjusted: LengthAdjusted | None
    subsets: list[Part]
    real: bool | None = Field(
        description="Whether the interval of the win rate leaves out one half; null without one, or without both orders"
    )
    sentence: str


def count(judged: Judged, system: str, baseline: str) -> Versus:
    """Count how a system does against a baseline.

    Args:
        judged: rows whose response A is the baseline's.
        system: its name.
        baseline: its name.
    """
    rows = judged.rows
    win_rate = mean(rows, _DECIDED, "preference_b")
    wins, losses, ties = (share(rows, _DECIDED, {"winner": winner}) for winner in ("B", "A", "tie"))
    decided = select(rows, _DECIDED)
    spread = float(np.std(_preferences(decided), ddof=1)) if len(decided) > 1 else None
    # The baseline is always shown in the same slot of an order, so that one order cannot tell it from the slot.
    fair = all(row.both for row in decided)
    real = None
    if fair and win_rate.low is not None and win_rate.high is not None:
        real = not win_rate.low <= _EVEN <= win_rate.high
    return Versus(
        **common("versus", judged),
        system=system,
        baseline=baseline,
        win_rate=win_rate,
        standard_error=None if spread is None else spread / len(decided) ** 0.5,
        wins=wins,
        losses=losses,
        ties=ties,
        discrete_win_rate=_halves([row.winner for row in decided]),
        agreed_win_rate=_halves([row.agreed for row in select(rows, _BOTH)]),
        consistent=share(rows, _BOTH, {"consistent": True}),
        first_slot=share(rows, SWAYED, {"first_slot": True}),
        position_bias=mean(rows, {"odds": True}, "position_bias"),
        length_adjusted=adjust_for_length(decided),
        subsets=[_part(name, part) for name, part in subsets(rows).items()],
        real=real,
        sentence=_sentence(win_rate, _by_prompt(decided), system, baseline) if fair else _UNFAIR,
    )


def _preferences(rows: Sequence[Row]) -> Floats:
    return np.array([row.preference_b for row in rows], dtype=np.float64)


def _by_prompt(rows: Sequence[Row]) -> Floats:
    """Average the preferences on each prompt."""
    _, prompts = np.unique([row.group for row in rows], return_inverse=True)
    return np.asarray(np.bincount(prompts, weights=_preferences(rows)) / np.bincount(prompts), dtype=np.float64)


def _halves(winners: Sequence[str | None]) -> float | None:
    """Count a tie as half a win of response B."""
    return (winners.count("B") + winners.count("tie") / 2) / len(winners) if winners else None


def _part(name: str, rows: list[Row]) -> Part:
    where: Where = {"subset": name}
    return Part(
        subset=name,
        win_rate=mean(rows, {**where, **_DECIDED}, "preference_b"),
        wins=share(rows, {**where, **_DECIDED}, {"winner": "B"}),
        consistent=share(rows, {**where, **_BOTH}, {"consistent": True}),
    )


def adjust_for_length(rows: Sequence[Row]) -> LengthAdjusted | None:
    """Fit P(system better) = sigmoid(b0 + b1 tanh(difference / its standard deviation)); sigmoid(b0) is the rate.

    The length term is that of AlpacaEval 2 (Dubois et al. 2024, arXiv:2404.04475); its terms for instructions and
    for gamed baselines are left out. The interval refits on resampled prompts.

    Returns:
        None where lengths never differ, or by the same always: there is nothing to tell them by.
    """
    differences = np.array([row.length_b - row.length_a for row in rows], dtype=np.float64)
    spread = float(np.std(differences, ddof=1)) if len(rows) > 1 else 0.0
    if not spread:
        return None
    design = np.column_stack([np.ones(len(rows)), np.tanh(differences / spread)])
    targets = _preferences(rows)
    fitted = logistic.fit(design, targets)
    low, high = _interval([row.group for row in rows], design, targets, fitted)
    longer = float(np.mean(differences > 0))
    shorter = float(np.mean(differences < 0))
    overlap = min(longer, shorter) + (1.0 - longer - shorter) / 2
    warning = None
    if overlap < _OVERLAP:
        order = "shorter" if shorter > longer else "longer"
        warning = (
            f"the system's answer is {order} for {max(longer, shorter):.0%} of the prompts, so that equal length is an "
            "extrapolation; do not rely on this figure"
        )
    return LengthAdjusted(
        win_rate=Number(
            value=float(special.expit(fitted[0])),
            low=low,
            high=high,
            n=len(rows),
            where=_DECIDED,
        ),
        coefficient=float(fitted[1]),
        length_baseline=float(np.mean([row.length_a for row in rows])),
        length_system=float(np.mean([row.length_b for row in rows])),
        overlap=overlap,
        warning=warning,
    )


def _interval(
    groups: Sequence[str], design: Floats, targets: Floats, fitted: Floats
) -> tuple[float | None, float | None]:
    """Refit on redrawn prompts; too few have no interval, and neither have those that nearly all say the same."""
    prompts = len(set(groups))
    if prompts < FEWEST or one_sided(groups, targets, _EVEN):
        return None, None
    drawn = logistic.refit(groups, design, targets, ridge=1e-6, start=fitted, times=_REFITS)
    return percentiles(special.expit(drawn[:, 0]), expanded(prompts))


def _sentence(win_rate: Number, by_prompt: Floats, system: str, baseline: str) -> str:
    """Say in one sentence whether the difference is real."""
    if win_rate.value is None:
        return "No pair has a verdict, so nothing can be said."
    if win_rate.low is None or win_rate.high is None:
        return f"Fewer than {FEWEST} prompts tell nothing of the difference."
    # A mean of probabilities: how many prompts were won is another figure.
    found = f"win rate {win_rate.value:.1%}, 95 % interval {win_rate.low:.1%} to {win_rate.high:.1%}"
    if win_rate.low > _EVEN:
        return f"The difference is real: this judge prefers {system} to {baseline} ({found})."
    if win_rate.high < _EVEN:
        return f"The difference is real: this judge prefers {baseline} to {system} ({found} for {system})."
    off = abs(win_rate.value - _EVEN)
    reach = stats.norm.ppf((1 + LEVEL) / 2) + stats.norm.ppf(_POWER)
    needed = int(np.ceil((reach * np.std(by_prompt, ddof=1) / off) ** 2)) if off else 0
    more = (
        f"; to show a difference of this size four times in five would take about {needed} prompts"
        if needed > len(by_prompt)
        else ""
    )
    return f"The difference between {system} and {baseline} may be chance ({found}){more}."
