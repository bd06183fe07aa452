"""From log-odds to verdict. Pure arithmetic, so that anyone can recompute a verdict from its ballots.

With s1 the log-odds in order "ab" and s2 in order "ba": d = (s1 - s2) / 2 is the preference, b = (s1 + s2) / 2 the
position bias. Averaging log-odds cancels an additive leaning to one slot exactly. P(A better) = sigmoid(d / T).
"""

import math
from collections.abc import Sequence
from typing import Literal, TypedDict

from schemas.verdict import Order, Winner


class Ballot(TypedDict):
    """A `schemas.verdict.Ballot` as its JSON has it: models are not worth their price where nothing is validated."""

    order: Order
    log_odds: float | None
    mass: float | None
    vote: Literal["A", "B"]


class Tally(TypedDict):
    """A `schemas.verdict.Tally` as its JSON has it."""

    winner: Winner
    probability_a: float | None
    consistent: bool | None
    position_bias: float | None
    ballots: list[Ballot]


def sigmoid(x: float) -> float:
    """Compute 1 / (1 + exp(-x)) without overflow."""
    if x >= 0:
        return 1.0 / (1.0 + math.exp(-x))
    grown = math.exp(x)
    return grown / (1.0 + grown)


def vote(log_odds: float) -> Literal["A", "B"]:
    """Name the slot that the model would write: of two tokens that are exactly as likely, greedily, the first.

    Logits of 16 bits are equal more often than one would think; the letters' tokens are in the alphabet's order.
    """
    return "A" if log_odds >= 0 else "B"


def ballot(order: Order, log_odds: float, mass: float) -> Ballot:
    """Make a ballot from what the model said in one order."""
    return {"order": order, "log_odds": log_odds, "mass": mass, "vote": vote(log_odds)}


def vote_only(order: Order, voted: Literal["A", "B"]) -> Ballot:
    """Make a ballot from a vote whose odds are not known."""
    return {"order": order, "log_odds": None, "mass": None, "vote": voted}


def count(ballots: Sequence[Ballot], *, temperature: float, tie_margin: float | None) -> Tally:
    """Add ballots up.

    Args:
        ballots: one, or one in each order.
        temperature: T in P = sigmoid(d / T).
        tie_margin: a tie where |P - 0.5| is at most this; None for no ties. Without odds, or with d exactly 0, two
            ballots that cancel are a tie all the same: there is nothing left to tell the responses apart by.
    """
    odds = [log_odds for each in ballots if (log_odds := each["log_odds"]) is not None]
    odds_known = len(odds) == len(ballots)
    said = odds if odds_known else [1.0 if each["vote"] == "A" else -1.0 for each in ballots]
    # Turned to response A's side: in order "ba" the first slot is response B's.
    preferences = [value if each["order"] == "ab" else -value for each, value in zip(ballots, said, strict=True)]
    d = preferences[0]
    consistent = bias = None
    if len(preferences) == 2:  # noqa: PLR2004 - both orders
        # Halved first: the sum of what an engine says may be beyond all numbers, and JSON has no word for that.
        d = d / 2 + preferences[1] / 2
        # s1 * s2 < 0: the two preferences, each turned to response A's side, have the same sign.
        consistent = preferences[0] * preferences[1] > 0
        bias = odds[0] / 2 + odds[1] / 2 if odds_known else None
    probability = sigmoid(d / temperature) if odds_known else None
    return {
        "winner": _winner(d, probability, tie_margin),
        "probability_a": probability,
        "consistent": consistent,
        "position_bias": bias,
        "ballots": list(ballots),
    }


def _winner(d: float, probability: float | None, tie_margin: float | None) -> Winner:
    within = tie_margin is not None and probability is not None and abs(probability - 0.5) <= tie_margin
    if d == 0 or within:
        return "tie"
    return "A" if d > 0 else "B"
