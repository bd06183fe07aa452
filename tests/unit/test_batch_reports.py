"""What a batch's verdicts add up to over HTTP: the same as on the command line."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import pytest
from support.judged import JUDGE, chance
from support.rows import write

from producer import reports
from producer.cli.eval_inputs import read_pairs, read_verdicts
from producer.cli.report import Report
from producer.evals import gold
from producer.evals.rows import judged
from schemas.comparison import Comparison
from schemas.problems import Problem
from schemas.verdict import Ballot, Usage, Verdict

PROMPTS = {
    "plain text": lambda number: f"Question {number}?",
    "text beyond ASCII": lambda number: f"Quelle est la {number}ᵉ réponse ?",
    "a conversation": lambda number: [{"role": "user", "content": f"Question {number}?"}],
}


def decided(number: int) -> Comparison:
    """A comparison of line `number`, with odds that are drawn."""
    s1, s2 = (4 * (chance(number, order) - 0.5) for order in ("ab", "ba"))
    ballots = [
        Ballot(order=order, log_odds=odds, mass=0.9, vote="A" if odds > 0 else "B")
        for order, odds in (("ab", s1), ("ba", s2))
    ]
    a_better = 1 / (1 + 2.718281828 ** -((s1 - s2) / 2))
    return Comparison(
        id=f"cmp_{uuid4().hex}_{number}",
        status="succeeded",
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        decided_at=datetime(2026, 1, 1, tzinfo=UTC),
        custom_id=str(number),
        metadata={},
        verdict=Verdict(
            winner="A" if a_better > 0.5 else "B",
            probability_a=a_better,
            consistent=(s1 > 0) != (s2 > 0),
            position_bias=(s1 + s2) / 2,
            ballots=ballots,
            judge=JUDGE,
            usage=Usage(prompt_tokens=1, cached_tokens=0, gpu_seconds=0.0),
        ),
        error=None,
    )


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS.keys())
def test_the_same_verdicts_give_the_same_figures_both_ways(prompt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """By HTTP and by the command line, prompts are drawn in the same order, whatever letters and turns they have."""
    rows = [
        {"custom_id": str(n), "prompt": prompt(n // 2), "response_a": "x", "response_b": "yes", "label": "AB"[n % 2]}
        for n in range(60)
    ]
    comparisons = {str(n): decided(n) for n in range(60)}

    async def stream(*_: object) -> AsyncIterator[bytes]:
        for number, row in enumerate(rows):
            comparison = comparisons[str(number)].model_dump(mode="json")
            line = {"line": number + 1, "body": row, "comparison": comparison}
            yield json.dumps(line, ensure_ascii=False).encode() + b"\n"

    monkeypatch.setattr(reports.outputs, "stream", stream)
    batch = SimpleNamespace(progress=SimpleNamespace(decided=len(rows)))
    over_http = asyncio.run(reports.count(None, batch, uuid4()))
    on_the_command_line = gold.count(judged(read_pairs(write(tmp_path / "pairs.jsonl", rows)), comparisons))
    assert over_http == on_the_command_line
    assert over_http.position_bias.width > 0


def test_what_to_mind_of_any_judge_is_in_the_summary_of_a_batch():
    """Where the first verdict is of a model and a later one simulated, the summary does not pass as the model's."""
    real = JUDGE.model_copy(update={"simulated": False, "caveat": None})
    report = Report()
    for number, judge in enumerate((real, JUDGE, JUDGE)):
        comparison = decided(number).model_dump(mode="json")
        comparison["verdict"]["judge"] = judge.model_dump(mode="json")
        report.add(comparison, None, None)
    assert JUDGE.caveat
    assert report.as_json()["caveat"] == JUDGE.caveat


@pytest.mark.parametrize("figure", ["probability_a", "position_bias", "log_odds"])
@pytest.mark.parametrize("value", ["NaN", "Infinity", "-1e999"])
def test_verdicts_with_odds_that_cannot_be_are_refused(figure: str, value: str, tmp_path: Path):
    """No figure is made of what is no number: the line is named instead."""
    line = decided(1).model_dump_json()
    file = tmp_path / "verdicts.jsonl"
    file.write_text(line + "\n" + re.sub(rf'("{figure}":)[-0-9.e]+', rf"\g<1>{value}", line) + "\n")
    with pytest.raises(Problem, match="line 2: its odds must be finite, and its probability from 0 to 1"):
        read_verdicts(file)
