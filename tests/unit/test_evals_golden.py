"""Evals against what others have published: the same verdicts give the same figures."""

import csv
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from support.judged import sized
from support.rows import read

from producer.evals import gold, ratings, rewardbench, versus
from producer.evals.numbers import select, share
from producer.evals.rows import Judged, Row


def recorded(row: dict) -> Row:
    """A row of LLMBar's recorded judgments."""
    ab, ba = row["winner_ab"], row["winner_ba_mapped_back"]
    both = ab is not None and ba is not None
    return Row(
        id=row["id"],
        group=row["id"],
        label=row["label"],
        vote_ab=ab,
        vote_ba=ba,
        consistent=ab == ba if both else None,
        winner=(ab if ab == ba else "tie") if both else None,
    )


def counted(right: dict[str, int], sizes: dict[str, int]) -> list[Row]:
    """Rows of subsets of those sizes, so many of each right in the order shown first."""
    return [
        Row(id=f"{subset}-{n}", group=f"{subset}-{n}", subset=subset, label="A", vote_ab="A" if n < most else "B")
        for subset, most in right.items()
        for n in range(sizes[subset])
    ]


class TestLLMBar:
    def test_all_published_statistics_recompute_exactly(self, shared_data):
        """36 judges on 5 subsets: accuracy in either order, on average and in both, and agreement, to the digit."""
        parts = defaultdict(list)
        for row in read(shared_data / "golden" / "llmbar_judgments.jsonl"):
            parts[row["subset"], row["judge"]].append(recorded(row))
        published = json.loads((shared_data / "golden" / "llmbar_judgments_stats.json").read_text())
        assert len(published) == len(parts) == 180
        for each in published:
            rows = parts[each["subset"], each["judge"]]
            found = gold.count(Judged(rows, []))
            # LLMBar counts two orders without a verdict as agreeing; here they are in no figure.
            silent = len(select(rows, {"vote_ab": None, "vote_ba": None}))
            correct = (found.accuracy_ab.hits, found.accuracy_ba.hits)
            assert {
                "correct_False": f"{correct[0]} / {len(rows)} = {correct[0] / len(rows) * 100}%",
                "correct_True": f"{correct[1]} / {len(rows)} = {correct[1] / len(rows) * 100}%",
                "correct_average": f"{sum(correct) / 2 / len(rows) * 100}%",
                "correct_both": f"{found.accuracy_both.hits} / {len(rows)} = "
                f"{found.accuracy_both.hits / len(rows) * 100}%",
                "equal": f"{found.consistent.hits + silent} / {len(rows)} = "
                f"{(found.consistent.hits + silent) / len(rows) * 100}%",
            } == {name: text for name, text in each["published"].items() if not name.startswith("kappa")}

    def test_what_has_no_verdict_is_in_no_denominator(self, shared_data):
        """Unlike LLMBar's, our rates leave out votes that were not given."""
        rows = [
            recorded(row)
            for row in read(shared_data / "golden" / "llmbar_judgments.jsonl")
            if (row["judge"], row["subset"]) == ("PaLM2/Vanilla_NoRules", "llmbar-adver-GPTInst")
        ]
        found = gold.count(Judged(rows, []))
        assert (len(rows), found.consistent.n, found.accuracy.n) == (92, 88, 88)


def annotated(shared_data: Path, model: str) -> list[Row]:
    """AlpacaEval's published annotations of a model: response A is the baseline's."""
    rows = []
    for row in read(shared_data / "golden" / "alpaca_annotations" / f"{model}.jsonl"):
        preference = row["preference"]
        rows.append(
            Row(
                id=str(row["id"]),
                group=str(row["id"]),
                system_a=row["baseline"],
                system_b=model,
                winner={-1: "A", 0: "tie", 1: "B"}[int(np.sign(preference - 1.5))],
                probability_a=2 - preference,
                style_a=sized(row["len_baseline"]),
                style_b=sized(row["len_model"]),
            )
        )
    return rows


class TestAlpacaEval:
    @pytest.mark.parametrize(
        "model",
        [
            "FuseChat-Llama-3.1-8B-Instruct",
            "NullModel",
            "alpaca-7b",
            "claude-2.1",
            "claude-2.1_concise",
            "gpt-3.5-turbo-1106",
            "vicuna-7b",
        ],
    )
    def test_win_rates_and_standard_errors_are_the_leaderboards(self, shared_data, model):
        """From the annotations, the win rate, its standard error and the discrete rate are those published."""
        golden = json.loads((shared_data / "golden" / "alpaca_annotations" / "GOLDEN.json").read_text())[model]
        found = versus.count(Judged(annotated(shared_data, model), []), model, "gpt4_1106_preview")
        assert 100 * found.win_rate.value == pytest.approx(float(golden["published"]["win_rate"]), abs=1e-6)
        assert 100 * found.standard_error == pytest.approx(float(golden["published"]["standard_error"]), abs=1e-6)
        discrete = float(golden["published"]["discrete_win_rate"])
        assert 100 * found.discrete_win_rate == pytest.approx(discrete, abs=1e-6)
        # A bootstrap interval of a mean is about two standard errors to either side.
        assert found.win_rate.width == pytest.approx(2 * 1.96 * found.standard_error, rel=0.1)

    @pytest.mark.parametrize(
        ("model", "off"),
        [
            ("FuseChat-Llama-3.1-8B-Instruct", 2.0),
            ("NullModel", 2.0),
            ("claude-2.1_concise", None),
            ("alpaca-7b", None),
        ],
    )
    def test_the_adjusted_rate_warns_where_it_is_far_off(self, shared_data, model, off):
        """Where lengths overlap it is near AlpacaEval's length-controlled rate, and where they do not it warns."""
        golden = json.loads((shared_data / "golden" / "alpaca_annotations" / "GOLDEN.json").read_text())[model]
        controlled = float(golden["published"]["length_controlled_winrate"])
        found = versus.count(Judged(annotated(shared_data, model), []), model, "gpt4_1106_preview").length_adjusted
        assert found.win_rate.low < found.win_rate.value < found.win_rate.high
        if off is None:
            assert abs(100 * found.win_rate.value - controlled) > 5
            assert "extrapolation" in found.warning
        else:
            assert abs(100 * found.win_rate.value - controlled) < off
            assert found.warning is None


def test_bradley_terry_is_evalicas(shared_data):
    """From evalica's matches between foods, the strengths are those of its golden file."""
    sides = {"left": "A", "right": "B", "tie": "tie"}
    matches = csv.DictReader((shared_data / "golden" / "evalica_food.csv").read_text().splitlines())
    rows = [
        Row(id=str(n), group=str(n), system_a=row["left"], system_b=row["right"], winner=sides[row["winner"]])
        for n, row in enumerate(matches)
    ]
    golden = {
        row["item"]: float(row["score"])
        for row in csv.DictReader((shared_data / "golden" / "evalica_food-golden.csv").read_text().splitlines())
        if row["algorithm"] == "bradley_terry"
    }
    found = np.exp(ratings.strengths(ratings.wins_by_group(rows, list(golden)).sum(axis=0)))
    assert dict(zip(golden, found / found.sum(), strict=True)) == pytest.approx(golden, abs=1e-6)


class TestRewardBench:
    @pytest.mark.parametrize("each", rewardbench.PUBLISHED, ids=lambda each: each.model)
    def test_published_overalls_are_the_means_of_their_sections(self, each):
        """Sections weigh the same: within what rounding to a tenth can do, their mean is the published overall."""
        right = {next(iter(rewardbench.SECTIONS[name])): round(10 * share) for name, share in each.sections.items()}
        found = rewardbench.count(Judged(counted(right, dict.fromkeys(right, 1000)), []))
        assert 100 * found.overall.published_protocol.value == pytest.approx(each.overall, abs=0.1)

    def test_the_authors_own_figures_of_skywork_critic(self):
        """The sections that the authors gave in full are counts of rows, and come out as they did for them."""
        chat = {
            "alpacaeval-easy": 94,
            "alpacaeval-length": 88,
            "alpacaeval-hard": 92,
            "mt-bench-easy": 25,
            "mt-bench-med": 37,
        }
        assert sum(chat.values()) == 336
        hard = dict(rewardbench.SECTIONS["Chat Hard"])
        hard["llmbar-adver-neighbor"] -= 85  # 371 of 456, however they fall on the subsets
        sizes = rewardbench.SECTIONS["Chat"] | rewardbench.SECTIONS["Chat Hard"]
        found = rewardbench.count(Judged(counted(chat | hard, sizes), []))
        assert {each.section: each.published_protocol.value for each in found.sections} == {
            "Chat": pytest.approx(0.938547, abs=1e-6),
            "Chat Hard": pytest.approx(0.813596, abs=1e-6),
        }

    def test_the_weights_are_the_sets_sizes_but_for_math(self):
        """2,985 rows, where math's 447 weigh as much as all 984 of code."""
        sizes = {name: sum(weights.values()) for name, weights in rewardbench.SECTIONS.items()}
        assert sizes == {"Chat": 358, "Chat Hard": 456, "Safety": 740, "Reasoning": 1968}
        assert sum(sizes.values()) - 984 + 447 == 2985

    def test_llmbars_rows_are_five_of_the_six_subsets_of_chat_hard(self, shared_data):
        """The real rows have exactly the counts by which the section weighs them."""
        rows = [
            Row(
                id=row["id"],
                group=row["id"],
                subset=row["subset"],
                label=row["label"],
                winner=row["label"],
                vote_ab=row["label"],
                vote_ba=row["label"],
                consistent=True,
            )
            for row in read(shared_data / "llmbar.jsonl")
        ]
        found = rewardbench.count(Judged(rows, []))
        assert {each.subset: each.both_orders.n for each in found.subsets} == {
            name: count for name, count in rewardbench.SECTIONS["Chat Hard"].items() if name != "mt-bench-hard"
        }
        assert found.overall.both_orders.value == share(rows, {}, {"correct": True}).value == 1.0
        assert "mt-bench-hard" in found.missing
        assert "Not the whole set" in found.note
