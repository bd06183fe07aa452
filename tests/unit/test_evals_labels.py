"""Evals beside labels: what a judge is worth, how its odds are calibrated, and what is given away of both."""

import csv
import io
import json
import math
import tracemalloc
from dataclasses import replace

import evalica
import numpy as np
import pandas as pd
import pytest
from support.judged import FAILED, JUDGE, a_row, as_fields, chance, drawn, numbers, untraceable

from producer.evals import calibrating, exports, gold, logistic, rewardbench
from producer.evals.numbers import select
from producer.evals.rows import Judged, Pair, Row
from schemas.calibration import CalibratedJudge


class TestGold:
    def test_agreement_is_krippendorffs(self):
        """Two raters, four units, one disagreement: alpha by its own formula is 0.533."""
        coded = [("A", "A"), ("A", "A"), ("B", "B"), ("A", "B")]
        # Coincidences: A-A 4, B-B 2, A-B 2 of n = 8; alpha = 1 - (n - 1) * 2 / (2 * 5 * 3).
        assert gold.alpha(coded) == pytest.approx(1 - 7 * 2 / (2 * 5 * 3), abs=1e-12)
        assert gold.alpha([*coded, ("A", None)]) == gold.alpha(coded)
        assert gold.alpha([("A", "A")] * 5) is None
        assert gold.alpha([("A", None), (None, "B")]) is None
        assert gold.alpha([]) is None

    @pytest.mark.parametrize("agreeing", [0.0, 0.3, 0.9, 1.0])
    def test_agreement_is_evalicas(self, agreeing):
        """From counts comes what evalica makes of the table of all codes, ties and codes of one rater in it."""
        generator = np.random.default_rng(2)
        codes = np.array(["A", "B", "tie", None], dtype=object)
        first, second = generator.choice(codes, size=(2, 300), p=[0.5, 0.3, 0.15, 0.05])
        second = np.where(generator.random(300) < agreeing, first, second)
        table = pd.DataFrame([first, second])
        expected = evalica.alpha(table, distance="nominal").alpha
        assert gold.alpha(list(zip(first, second, strict=True))) == pytest.approx(expected, abs=1e-12)

    def test_agreement_takes_no_room_by_the_pair(self):
        """A report within the service is of 100,000 pairs: what is held of them is how many there are of each kind."""
        coded = [(("A", "B", "tie")[n % 3], "AB"[n % 2]) for n in range(10_000)]
        tracemalloc.start()
        gold.alpha(coded)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 100_000

    def test_calibration_by_hand(self):
        """Four verdicts at 0.8 of which three are right are 5 points off; Brier and log-loss by their formulas."""
        rows = [a_row(n, label="A" if n else "B", probability_a=0.8) for n in range(4)]
        found = gold.count(Judged(rows, [JUDGE])).calibration
        assert found.expected_error == pytest.approx(0.05)
        assert found.brier.value == pytest.approx((3 * 0.04 + 0.64) / 4)
        assert found.log_loss.value == pytest.approx(-(3 * math.log(0.8) + math.log(0.2)) / 4)
        [only] = found.bins
        assert (only.accuracy.hits, only.accuracy.n, only.low) == (3, 4, pytest.approx(0.8))

    def test_certainty_that_is_wrong_costs_much_but_not_everything(self):
        """A probability of exactly zero for the label has a finite log-loss."""
        found = gold.count(Judged([a_row(1, label="B", probability_a=1.0), a_row(2, label="A")], [JUDGE]))
        assert found.calibration.log_loss.value < 20

    def test_the_two_ways_to_the_expected_error_agree(self):
        """From rows and from log-odds, it is the same number."""
        rows = drawn(300)
        logits = np.array([row.log_odds_a for row in rows])
        labels = np.array([row.label == "A" for row in rows], dtype=float)
        table = gold.calibration(rows).expected_error
        assert gold.expected_error(logits, labels) == pytest.approx(table, abs=1e-12)

    def test_a_tie_is_not_correct(self):
        """A verdict that names no winner is not the label."""
        rows = [a_row(1, label="A"), a_row(2, label="A", winner="tie", probability_a=0.5)]
        assert gold.count(Judged(rows, [JUDGE])).accuracy.value == 0.5


def told(label) -> Judged:
    """Judged pairs with other labels."""
    return Judged([replace(row, label=label(row)) for row in drawn(200)], [JUDGE])


class TestCalibrate:
    @pytest.mark.parametrize("planted", [0.5, 1.0, 3.0])
    def test_a_planted_temperature_is_found_and_lowers_the_held_out_loss(self, planted):
        """Labels drawn at odds d / T give T back within its interval, and on held-out pairs it pays."""
        found = calibrating.fit(Judged(drawn(3000, scale=planted), [JUDGE]))
        assert found.temperature.low < planted < found.temperature.high
        assert found.temperature.value == pytest.approx(planted, rel=0.15)
        if planted != 1.0:
            assert found.better
            assert found.log_loss_after < found.log_loss_before - 0.01
            assert found.expected_error_after < found.expected_error_before
        else:
            assert found.log_loss_after == pytest.approx(found.log_loss_before, abs=0.002)

    def test_odds_of_one_order_of_two_are_not_fitted_on(self):
        """Half a verdict has the leaning to a slot in it, and no probability that T would change."""
        half = [a_row(n, label="B", probability_a=None, log_odds_ba=None) for n in range(1000, 1030)]
        assert calibrating.fit(Judged([*drawn(100), *half], [JUDGE])).temperature.n == 100

    def test_it_is_the_temperature_of_least_loss(self):
        """No temperature on a grid has a lower log-loss than the fitted one."""
        rows = drawn(400, scale=2.0)
        d = np.array([row.log_odds_a for row in rows])
        labels = np.array([row.label == "A" for row in rows], dtype=float)
        best = logistic.log_loss(d / calibrating.fit_temperature(d, labels), labels).mean()
        assert all(logistic.log_loss(d / t, labels).mean() >= best - 1e-9 for t in np.geomspace(0.05, 50, 300))

    def test_the_file_says_whose_temperature_it_is(self):
        """The judge is named without what does not matter to the temperature."""
        found = calibrating.fit(Judged(drawn(100), [JUDGE])).calibration
        assert found.judge == CalibratedJudge.of(JUDGE.model_copy(update={"engine_build": "2", "temperature": 7.0}))
        assert found.judge != CalibratedJudge.of(JUDGE.model_copy(update={"weights": "sha256:other"}))

    def test_two_builds_of_an_engine_are_one_judge(self):
        """Verdicts from before and after an upgrade of workers tell one temperature."""
        found = calibrating.fit(Judged(drawn(100), [JUDGE, JUDGE.model_copy(update={"engine_build": "2"})]))
        assert found.calibration.judge == CalibratedJudge.of(JUDGE)

    def test_where_one_error_in_many_tells_the_temperature_nobody_knows_how_well(self):
        """Redrawn prompts without the error tell no temperature, so that there is no interval to believe."""
        rows = [
            replace(row, label=row.winner if n else "AB"[row.winner == "A"])
            for n, row in enumerate(row for row in drawn(60) if abs(row.log_odds_a) > 1)
        ]
        found = calibrating.fit(Judged(rows, [JUDGE]))
        assert found.temperature.value < 2
        assert (found.temperature.low, found.calibration.low) == (None, None)

    @pytest.mark.parametrize(
        ("judged", "why"),
        [
            (Judged(drawn(100), [JUDGE, JUDGE.model_copy(update={"model": "other"})]), "2 judges"),
            (Judged(drawn(10), [JUDGE]), "10 pairs have a label"),
            (Judged([Row(**{**as_fields(row), "group": "g"}) for row in drawn(50)], [JUDGE]), "fewer than 5 prompts"),
            (told(lambda row: row.winner), "right on all of them"),
            (told(lambda row: "B" if row.winner == "A" else "A"), "no better than chance"),
            (told(lambda row: "A" if chance(row.id, "coin") < 0.5 else "B"), "no better than chance"),
            (Judged([replace(row, log_odds_ab=1e-5, log_odds_ba=-1e-5, label="A" if n else "B")
                     for n, row in enumerate(drawn(50))], [JUDGE]), "all but even"),
        ],
    )  # fmt: skip
    def test_where_it_would_mean_nothing_it_is_refused(self, judged, why):
        """Two judges, too few pairs or prompts, and pairs whose best temperature is at no end are no ground."""
        with pytest.raises(calibrating.CannotCalibrateError, match=why):
            calibrating.fit(judged)


class TestRewardBench:
    def test_rows_without_a_label_are_in_no_score(self):
        """They are not the judge's failures: all scores are as without them, and the note says how many there were."""
        rows = [a_row(n, label="A" if n % 4 else "B", subset="hep-go") for n in range(40)]
        bare = [a_row(100 + n, subset="hep-go") for n in range(40)]
        alone, together = (rewardbench.count(Judged(each, [JUDGE])) for each in (rows, [*rows, *bare]))
        assert (together.overall, together.subsets) == (alone.overall, alone.subsets)
        assert (alone.unlabelled, together.unlabelled) == (0, 40)
        assert "want of a label: 40 rows" in together.note
        assert untraceable(together, [*rows, *bare]) == []

    def test_rows_on_one_prompt_are_drawn_together(self):
        """Ten copies of each row on its prompt tell no more than the row: the interval stays as it was."""
        rows = [a_row(n, label="A" if n % 4 else "B", subset="hep-go") for n in range(40)]
        copies = [replace(row, id=f"{row.id}-{copy}") for row in rows for copy in range(10)]
        alone, together = (rewardbench.count(Judged(each, [JUDGE])) for each in (rows, copies))
        for found, of_copies in zip(numbers(alone), numbers(together), strict=True):
            assert found.width <= of_copies.width <= 1.1 * found.width

    def test_sections_weigh_subsets_by_their_counts(self):
        """Code right throughout and mathematics wrong throughout is half of the section, whatever the rows."""
        rows = [a_row(n, label="A", subset="math-prm", winner="B", vote_ab="B", vote_ba="B") for n in range(5)]
        for number, language in enumerate(("cpp", "go", "java", "js", "python", "rust")):
            rows.append(a_row(100 + number, label="A", subset=f"hep-{language}"))
        [reasoning] = rewardbench.count(Judged(rows, [JUDGE])).sections
        assert reasoning.both_orders.value == pytest.approx(0.5)
        assert reasoning.published_protocol.value == pytest.approx(0.5)

    def test_what_is_right_throughout_leaves_something_open(self):
        """Three right rows are no proof of perfection: each figure has the interval of three, its section's too."""
        rows = [a_row(n, label="A", subset="hep-go") for n in range(3)]
        found = rewardbench.count(Judged(rows, [JUDGE]))
        for number in numbers(found):
            assert (number.value, number.low, number.high) == pytest.approx((1.0, 0.4385, 1.0), abs=1e-4)

    def test_a_section_is_as_sure_as_its_subsets_together(self):
        """Of two equal halves of a section, each known to within the same, the mean is known sqrt(2) times better."""
        rows = [a_row(n, label="AB"[n % 2], subset="hep-go") for n in range(100)]
        rows += [a_row(100 + n, label="AB"[n % 2], subset="hep-js") for n in range(100)]
        found = rewardbench.count(Judged(rows, [JUDGE]))
        expected = found.subsets[0].published_protocol.width / math.sqrt(2)
        assert found.overall.published_protocol.width == pytest.approx(expected)

    def test_what_was_asked_in_one_order_is_in_no_figure_of_the_other(self):
        """Rows judged in order "ab" alone have the published protocol, and neither the other placement nor both."""
        rows = [
            a_row(n, label="A", subset="hep-go", vote_ba=None, log_odds_ba=None, consistent=None, position_bias=None)
            for n in range(30)
        ]
        found = rewardbench.count(Judged(rows, [JUDGE]))
        assert found.overall.published_protocol.value == 1.0
        assert (found.overall.other_placement, found.overall.both_orders.value) == (None, None)
        assert (found.subsets[0].both_orders.n, found.subsets[0].consistent.n) == (0, 0)
        assert "30 of 30 verdicts were asked in one order alone" in found.caveat

    def test_the_published_protocol_goes_by_the_drawn_placement_alone(self):
        """A judge that always prefers what comes first is right where chosen came first; both orders tell on it."""
        rows = [
            a_row(n, label="AB"[n % 2], subset="hep-go", winner="tie", consistent=False, vote_ab="A", vote_ba="B")
            for n in range(10)
        ]
        found = rewardbench.count(Judged(rows, [JUDGE])).overall
        assert (found.published_protocol.value, found.other_placement, found.both_orders.value) == (0.5, 0.5, 0.0)

    def test_no_verdict_is_half_right_as_published_and_left_out_otherwise(self):
        """The published protocol gives half a point for an error; ours leaves the row out and says so."""
        rows = [a_row(1, label="A", subset="hep-go"), Row(**{**as_fields(FAILED), "subset": "hep-go"})]
        found = rewardbench.count(Judged(rows, [JUDGE]))
        assert found.overall.published_protocol.value == 0.75
        assert (found.overall.both_orders.value, found.overall.both_orders.n) == (1.0, 1)
        assert found.without_verdict == {"unparseable": 1}
        assert found.note.endswith("half right in either placement: 1 rows.")

    @pytest.mark.parametrize("code", ["context_length_exceeded", "engine_failed", "worker_lost"])
    def test_the_note_counts_every_row_that_scores_half(self, code):
        """Whatever it was that left a row without a verdict, it is half right as published, and told."""
        rows = [
            a_row(1, label="A", subset="hep-go"),
            *(replace(FAILED, id=str(n), group=str(n), subset="hep-go", error=code) for n in range(2, 5)),
        ]
        found = rewardbench.count(Judged(rows, [JUDGE]))
        assert found.overall.published_protocol.value == (1 + 3 / 2) / 4
        assert "half right in either placement: 3 rows." in found.note

    @pytest.mark.parametrize("status", ["cancelled", "expired"])
    def test_what_was_never_asked_is_in_no_score(self, status):
        """Rows that were called off, or not come to in time, are no failures of the judge: all scores are without."""
        rows = [a_row(n, label="AB"[n % 2], subset="hep-go") for n in range(4)]
        never = [replace(FAILED, id=str(n), status=status, error="x", subset="hep-go") for n in range(10, 17)]
        alone, together = (rewardbench.count(Judged(each, [JUDGE])) for each in (rows, [*rows, *never]))
        assert (together.overall, together.subsets) == (alone.overall, alone.subsets)
        assert "Never asked, and so in no score: 7 rows." in together.note
        assert "half right" not in together.note
        assert untraceable(together, [*rows, *never]) == []

    def test_unknown_subsets_are_named_and_in_no_score(self):
        """Rows that RewardBench does not weigh are told, not dropped in silence."""
        found = rewardbench.count(
            Judged([a_row(1, label="A", subset="mine"), a_row(2, subset="hep-go", label="A")], [])
        )
        assert found.unknown == {"mine": 1}
        assert found.overall.both_orders.n == 1


class TestExports:
    PAIRS = (
        Pair(id="1", prompt="One?", response_a="theirs", response_b="ours", system_a="base", system_b="new"),
        Pair(id="2", prompt=[{"role": "user", "content": "Two?"}], response_a="t", response_b="o"),
    )
    ROWS = (
        a_row(1, winner="B", probability_a=0.25, system_a="base", system_b="new"),
        a_row(2, winner=None, probability_a=None, system_a="base", system_b="new", error="unparseable"),
    )

    def test_alpaca_annotations(self):
        """Preference runs from 1 (output 1, the baseline's) to 2, null without a verdict, and the caveat goes along."""
        lines = exports.as_annotations(Judged(list(self.ROWS), [JUDGE]), {pair.id: pair for pair in self.PAIRS})
        first, second = json.loads(b"\n".join(lines))
        assert first | {"dataset": None} == {
            "instruction": "One?", "output_1": "theirs", "generator_1": "base", "output_2": "ours",
            "generator_2": "new", "dataset": None, "annotator": "planted", "preference": 1.75, "caveat": JUDGE.caveat,
        }  # fmt: skip
        assert (second["preference"], second["instruction"]) == (None, "Two?")

    def test_evalicas_comparisons(self):
        """The header and the words are those of its own files; what has no verdict is left out."""
        assert list(exports.as_evalica(self.ROWS)) == [b"left,right,winner", b"base,new,right"]

    def test_rows_carry_every_column_that_numbers_select_by(self):
        """From the written rows alone, a number's rows can be found again."""
        rows = drawn(60)
        table = list(csv.DictReader(io.StringIO(b"\n".join(exports.as_csv(rows)).decode())))
        lines = [json.loads(line) for line in exports.as_json_lines(rows)]
        for number in numbers(gold.count(Judged(rows, [JUDGE]))):
            assert number.where.keys() <= lines[0].keys()
            assert number.where.keys() <= table[0].keys()
            chosen = [line for line in lines if all(line[name] == value for name, value in number.where.items())]
            assert len(chosen) == number.n == len(select(rows, number.where))
