"""The demo as a newcomer runs it: real Postgres, real Redis and a real model, from nothing to verdicts to nothing."""

import json
import math
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.processes import processes_of

from infra.environment import child_environment

pytestmark = pytest.mark.timeout(900)  # two cores that do other things as well take their time over 68 prompts

ROOT = Path(__file__).resolve().parents[2]
LABELS = {
    row["custom_id"]: row["label"]
    for row in map(json.loads, (ROOT / "examples" / "first-docket.jsonl").read_text().splitlines())
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place for the demo's data."""
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def said(folder: Path) -> list[dict]:
    """What `nightcourt demo --json` prints, run once: an object a line."""
    if find_spec("xllamacpp") is None:
        pytest.skip("the wheel of the llama_cpp engine is not installed")
    ours = {name: value for name, value in child_environment({}).items() if not name.startswith("NIGHTCOURT_")}
    ended = subprocess.run(
        [sys.executable, "-m", "producer.cli", "demo", "--json", "--data-dir", folder / "data"],
        cwd=ROOT,
        env=ours,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return [json.loads(line) for line in ended.stdout.splitlines()]


def test_every_example_is_judged_and_then_summed_up(said: list[dict]):
    """A comparison for each line of the examples, in their order, and one summary at the end."""
    assert [each["object"] for each in said] == ["comparison"] * len(LABELS) + ["summary"]
    assert [each["custom_id"] for each in said[:-1]] == list(LABELS)
    assert {each["status"] for each in said[:-1]} == {"succeeded"}


def test_each_verdict_recomputes_from_its_ballots(said: list[dict]):
    """Winner, probability, leaning and agreement are what the two ballots add up to."""
    for comparison in said[:-1]:
        verdict = comparison["verdict"]
        assert [ballot["order"] for ballot in verdict["ballots"]] == ["ab", "ba"]
        s1, s2 = (ballot["log_odds"] for ballot in verdict["ballots"])
        probability = 1 / (1 + math.exp(-(s1 - s2) / 2 / verdict["judge"]["temperature"]))
        assert verdict["probability_a"] == pytest.approx(probability, abs=1e-9)
        assert verdict["position_bias"] == pytest.approx((s1 + s2) / 2, abs=1e-9)
        assert verdict["consistent"] == (s1 * s2 < 0)
        assert verdict["winner"] == ("A" if probability > 0.5 else "B")
        assert [ballot["vote"] for ballot in verdict["ballots"]] == ["A" if s > 0 else "B" for s in (s1, s2)]


def test_the_summary_recomputes_from_the_comparisons(said: list[dict]):
    """Counts, rates and costs are those of the objects above it."""
    *comparisons, summary = said
    verdicts = [each["verdict"] for each in comparisons]
    right = sum(each["verdict"]["winner"] == LABELS[each["custom_id"]] for each in comparisons)
    agree = sum(verdict["consistent"] for verdict in verdicts)
    statuses = Counter(each["status"] for each in comparisons)
    assert summary["total"] == summary["labelled"] == summary["both_orders"] == len(LABELS)
    for status in ("succeeded", "errored", "cancelled", "expired"):
        assert summary[status] == statuses[status]
    assert (summary["correct"], summary["accuracy"]) == (right, right / len(LABELS))
    assert (summary["consistent"], summary["swap_consistency"]) == (agree, agree / len(LABELS))
    for cost in ("prompt_tokens", "cached_tokens", "gpu_seconds"):
        assert summary[cost] == pytest.approx(sum(verdict["usage"][cost] for verdict in verdicts))


def test_nobody_can_take_the_stand_in_for_the_judge(said: list[dict]):
    """The caveat stands in every verdict and in the summary: a real model was asked, which is no judge of quality."""
    judges = [each["verdict"]["judge"] for each in said[:-1]]
    assert all(judge == said[-1]["judge"] for judge in judges)
    assert said[-1]["caveat"] == judges[0]["caveat"]
    assert "tells a good answer from a better one hardly at all" in said[-1]["caveat"]
    assert (judges[0]["engine"], judges[0]["simulated"]) == ("llama_cpp", False)


def test_the_verdicts_on_obvious_pairs_are_sensible(said: list[dict]):
    """An answer off the topic, garbled, cut or empty loses to a good one in at least five of six; a coin has 11 %."""
    obvious = [each for each in said[:-1] if each["custom_id"].startswith("obvious-")]
    assert len(obvious) == 6
    assert sum(each["verdict"]["winner"] == LABELS[each["custom_id"]] for each in obvious) >= 5


def test_nothing_is_left_running(said: list[dict], folder: Path):
    """When the demo has ended, so has everything that it started."""
    assert processes_of(folder) == []
