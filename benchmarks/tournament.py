"""How many matches an adaptive tournament saves, between systems whose strengths are planted.

Five systems, their strengths spread as the win rates of five real ones on AlpacaEval's leaderboard; 805 prompts, as
many as that set has. The full schedule plays 4,000 matches evenly; the adaptive one stops once its least sure
difference is as sure. No model is asked: A beats B with probability sigmoid(strength of A - strength of B),
independently for each match.
"""

import hashlib
import math
from collections.abc import Mapping
from statistics import mean
from typing import Any

from producer.evals.rows import Judged, Pair, Row
from producer.evals.schedule import Field, Prompt
from producer.evals.style import style
from producer.evals.tournament import JudgeRound, Plan, Tournament, count, how_sure, play
from schemas.verdict import Judge

WIN_RATES = {
    "gpt-4o-2024-05-13": 0.5133,
    "claude-3-opus-20240229": 0.2911,
    "Mistral-7B-Instruct-v0.2": 0.1472,
    "gpt-3.5-turbo-1106": 0.0918,
    "alpaca-7b": 0.0259,
}
"""Against one baseline, as AlpacaEval published them: a real spread of strengths. Nothing else of these is used."""
STRENGTHS = {name: math.log(rate / (1 - rate)) for name, rate in WIN_RATES.items()}
JUDGE = Judge(
    model="planted",
    weights="sha256:0",
    quantisation="none",
    engine="planted",
    engine_build="1",
    profile="card",
    prompt="sha256:1",
    temperature=1.0,
    simulated=True,
    caveat="Planted: no model was asked.",
)
_PROMPTS, _MATCHES, _ROUND, _SEEDS = 805, 4000, 100, 8


def chance(*words: object) -> float:
    """Draw a number from 0 to 1 that follows from words alone."""
    digest = hashlib.sha256(repr(words).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def planted(strengths: Mapping[str, float], seed: int) -> JudgeRound:
    """Make a judge by whom A beats B with probability sigmoid(strength of A - strength of B)."""

    def verdict(pair: Pair) -> Row:
        p = 1 / (1 + math.exp(strengths[pair.system_b or ""] - strengths[pair.system_a or ""]))
        return Row(
            id=pair.id,
            group=pair.group,
            system_a=pair.system_a,
            system_b=pair.system_b,
            winner="A" if chance(seed, pair.id) < p else "B",
            style_a=style(pair.response_a),
            style_b=style(pair.response_b),
        )

    return lambda pairs, _: Judged([verdict(pair) for pair in pairs], [JUDGE])


def measure() -> dict[str, Any]:
    """Play both for several seeds."""
    prompts = [Prompt(group=str(number), prompt="?") for number in range(_PROMPTS)]
    runs = [_play(prompts, seed) for seed in range(_SEEDS)]
    shares = [run["share_of_matches"] for run in runs]
    return {
        "what": "matches until the least sure difference between neighbours is as sure as that of the full schedule",
        "simulated": JUDGE.caveat,
        "full_matches": _MATCHES,
        "share_of_matches": {"least": min(shares), "mean": mean(shares), "most": max(shares)},
        "runs": runs,
    }


def _play(prompts: list[Prompt], seed: int) -> dict[str, Any]:
    field = Field(list(STRENGTHS), prompts, {name: ["-"] * _PROMPTS for name in STRENGTHS}, seed=seed)
    judge = planted(STRENGTHS, seed)
    even = Plan(budget=_MATCHES)
    full = play(field, even, judge)
    sure = how_sure(full.rows, field.systems, 1)
    plan = Plan("adaptive", budget=_MATCHES, target=sure.width if sure else None, round_size=_ROUND)
    adaptive = play(field, plan, judge)
    found = count(adaptive, field, plan)
    return {
        "seed": seed,
        "least_sure_points": round(sure.width, 1) if sure and sure.width else None,
        "share_of_matches": len(adaptive.rows) / _MATCHES,
        "order_is_the_planted_one": [each.system for each in found.standings] == list(STRENGTHS),
        "widths_full": _widths(count(full, field, even)),
        "widths_adaptive": _widths(found),
    }


def _widths(found: Tournament) -> list[int | None]:
    """Give the widths of the intervals of the differences between neighbours, best first, in points; None without."""
    widths = [gap.difference.width for gap in found.gaps]
    return [round(width) if math.isfinite(width) else None for width in widths]
