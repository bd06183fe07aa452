"""What evals count, with figures worked out by hand and truths that were planted."""

import cProfile
import json
import pstats
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy import special, stats
from support.judged import FAILED, JUDGE, a_row, as_fields, chance, drawn, numbers, sized, untraceable
from support.program import ROOT

from producer.evals import audit, calibrating, gold, rewardbench, versus
from producer.evals.numbers import interval_over_groups, mean, share, wilson
from producer.evals.rows import Judged, Pair, Row, judged
from producer.evals.style import style
from schemas.comparison import Comparison
from schemas.verdict import Ballot, Usage, Verdict


def calls(work: Callable[[], object]) -> int:
    """Count the calls that something takes."""
    profile = cProfile.Profile()
    profile.runcall(work)
    return pstats.Stats(profile).total_calls


class TestNumbers:
    def test_a_share_is_wilsons(self):
        """9 of 10 is 0.9, and Wilson's interval of it 0.596 to 0.982, as the textbooks have it."""
        rows = [a_row(n, winner="A" if n else "B") for n in range(10)]
        found = share(rows, {"decided": True}, {"winner": "A"})
        assert (found.value, found.n, found.hits) == (0.9, 10, 9)
        assert (found.low, found.high) == pytest.approx((0.5958, 0.9821), abs=1e-4)

    def test_a_share_of_many_rows_on_few_prompts_holds_the_truth_as_often_as_it_says(self):
        """Of 300 samples of 50 prompts with ten rows each, about 95 % hold the truth, though rows share prompts."""
        generator = np.random.default_rng(1)
        held = 0
        for _ in range(300):
            hard = generator.beta(2, 2, size=50)
            right = generator.random((10, 50)) < hard
            rows = [a_row(n, group=str(n % 50), winner="A" if each else "B") for n, each in enumerate(right.ravel())]
            found = share(rows, {"decided": True}, {"winner": "A"})
            held += found.low <= 0.5 <= found.high
        assert 275 <= held <= 295

    def test_rows_on_one_prompt_that_agree_tell_no_more_than_the_prompts(self):
        """Unanimous rows count as one a prompt, and several rows on one prompt alone have no interval."""
        rows = [a_row(n, group=str(n % 5)) for n in range(500)]
        five = share([a_row(n) for n in range(5)], {}, {"winner": "A"})
        found = share(rows, {}, {"winner": "A"})
        assert (found.low, found.high) == (five.low, five.high)
        assert share(rows[::5], {}, {"winner": "A"}).low is None

    def test_an_error_on_one_prompt_makes_nothing_surer(self):
        """Of 500 rows on five prompts, one that is wrong lowers the interval, and does not narrow it to its end."""
        rows = [a_row(n, group=str(n % 5), winner="A" if n else "B") for n in range(500)]
        assert share(rows, {}, {"winner": "A"}).low < share(rows[1:], {}, {"winner": "A"}).low

    def test_a_share_holds_the_truth_as_often_as_it_says_where_a_few_prompts_have_the_errors(self):
        """Of samples of 20 prompts with 20 rows each, one prompt in 20 being hard, about 95 % hold the truth."""
        generator = np.random.default_rng(1)
        held = samples = 0
        for _ in range(300):
            wrong = np.where(generator.random(20) < 0.05, generator.random(20), 0.0)
            rows = (generator.random((20, 20)) >= wrong).astype(float).ravel()
            if rows.all():
                continue
            low, high = wilson([str(n % 20) for n in range(400)], rows)
            samples += 1
            held += low <= 1 - 0.05 / 2 <= high
        assert held >= 0.93 * samples > 100

    @pytest.mark.parametrize("hard", [0.3, 1.0])
    def test_a_share_holds_the_truth_as_often_as_it_says_where_one_prompt_has_most_rows(self, hard):
        """One prompt with 100 rows and 60 with one each: about 95 % hold the truth, wherever the large prompt is."""
        generator = np.random.default_rng(1)
        index = np.repeat(np.arange(61), [100, *[1] * 60])
        held = 0
        for _ in range(300):
            chances = np.where(generator.random(61) < hard, generator.random(61), 0.98)
            low, high = wilson([str(n) for n in index], (generator.random(160) < chances[index]).astype(float))
            held += low <= hard / 2 + (1 - hard) * 0.98 <= high
        assert held >= 0.93 * 300

    @pytest.mark.parametrize("prompts", [10, 5])
    def test_an_interval_costs_less_than_a_quantile_of_a_distribution(self, prompts):
        """A report of thousands of subsets makes two each; counted in calls, which are the same on every machine."""
        groups, values = [str(n % prompts) for n in range(10)], np.array([1.0] * 9 + [0.0])
        assert calls(lambda: wilson(groups, values)) < calls(lambda: stats.norm.ppf(0.975))

    def test_of_nothing_there_is_no_share_and_no_mean(self):
        """Where nothing was counted, the value is null and not zero."""
        assert share([], {}, {"winner": "A"}).value is None
        assert mean([FAILED], {"decided": True}, "preference_a").value is None

    def test_rows_on_one_prompt_are_drawn_together(self):
        """Ten copies of each row on its prompt tell no more than the row: the interval stays as it was."""
        values = np.array([chance(n) for n in range(50)])
        groups = [str(n) for n in range(50)]
        once = interval_over_groups(groups, values)
        tenfold = interval_over_groups(groups * 10, np.tile(values, 10))
        assert tenfold == pytest.approx(once)
        apart = interval_over_groups([str(n) for n in range(500)], np.tile(values, 10))
        assert apart[1] - apart[0] < 0.5 * (once[1] - once[0])

    def test_the_interval_holds_the_truth_as_often_as_it_says(self):
        """Of 200 samples of 100 prompts each, about 95 % have the true mean in their interval."""
        generator = np.random.default_rng(1)
        held = 0
        for _ in range(200):
            low, high = interval_over_groups([str(n) for n in range(100)], generator.exponential(size=100))
            held += low <= 1.0 <= high
        assert 178 <= held <= 198

    @pytest.mark.parametrize("prompts", [10, 20, 40])
    @pytest.mark.parametrize(
        ("column", "columns", "truth"),
        [
            ("preference_b", [{"winner": "A"}, {"winner": "B"}], 0.97),
            ("preference_b", [{"probability_a": 0.8}, {"probability_a": 0.1}], 0.03 * 0.2 + 0.97 * 0.9),
            ("brier", [{"probability_a": 0.05}, {"probability_a": 0.95}], 0.03 * 0.95**2 + 0.97 * 0.05**2),
        ],
        ids=["votes", "odds", "brier"],
    )
    def test_a_mean_near_an_end_holds_the_truth_as_often_as_it_says(self, prompts, column, columns, truth):
        """Where one prompt in 33 is on the other side, at least 93 % of samples hold the truth, unanimous ones too."""
        generator = np.random.default_rng(1)
        held = 0
        for _ in range(100):
            usual = generator.random(prompts) < 0.97
            rows = [
                a_row(n, **{"probability_a": None, "label": "A"} | columns[int(each)]) for n, each in enumerate(usual)
            ]
            found = mean(rows, {}, column)
            held += found.low <= truth <= found.high
        assert held >= 93

    def test_a_mean_that_prompts_of_both_sides_tell_is_a_bootstraps(self):
        """Ten prompts on the rarer side are enough to draw from, and no fewer."""
        rows = [a_row(n, probability_a=0.7 if n < 10 else 0.2) for n in range(60)]
        values, groups = np.array([row.preference_b for row in rows]), [row.group for row in rows]
        found, fewer = mean(rows, {}, "preference_b"), mean(rows[1:], {}, "preference_b")
        assert (found.low, found.high) == interval_over_groups(groups, values)
        assert fewer.low < interval_over_groups(groups[1:], values[1:])[0]

    def test_a_log_loss_of_a_judge_that_is_right_has_no_interval(self):
        """One error might cost any amount: until ten prompts show what errors cost, nobody knows."""
        rows = [a_row(n, label="B" if n < 10 else "A", probability_a=0.9) for n in range(60)]
        whole, fewer = mean(rows, {}, "log_loss"), mean(rows[1:], {}, "log_loss")
        assert whole.low < whole.value < whole.high
        assert (fewer.low, fewer.high) == (None, None)
        assert fewer.value > 0

    @pytest.mark.parametrize(
        "count",
        [
            lambda rows: versus.count(rows, "ours", "theirs"),
            gold.count,
            calibrating.fit,
            lambda rows: rewardbench.count(
                Judged([Row(**{**as_fields(row), "subset": PART[row.subset]}) for row in rows.rows], rows.judges)
            ),
        ],
        ids=["versus", "gold", "calibrate", "rewardbench"],
    )
    def test_every_number_names_its_rows(self, count):
        """What a number says of itself selects as many rows as it was made of, among them those that count."""
        rows = [*drawn(120, lean=0.5), FAILED]
        result = count(Judged(rows, [JUDGE]))
        if result.kind == "rewardbench":
            rows = [Row(**{**as_fields(row), "subset": PART[row.subset]}) for row in rows]
        assert len(numbers(result)) > 0
        assert untraceable(result, rows) == []
        assert (result.pairs, result.decided, result.without_verdict) == (121, 120, {"unparseable": 1})
        assert result.caveat == JUDGE.caveat
        json.loads(result.model_dump_json())


PART = {"part 0": "llmbar-natural", "part 1": "hep-go", "part 2": "math-prm"}


class TestRows:
    def test_a_comparison_becomes_a_row(self):
        """Votes are turned from slots to responses, and d is half the difference of the ballots."""
        ballots = [
            Ballot(order="ab", log_odds=2.0, mass=0.9, vote="A"),
            Ballot(order="ba", log_odds=0.5, mass=0.9, vote="A"),
        ]
        verdict = Verdict(
            winner="A", probability_a=0.68, consistent=False, position_bias=1.25, ballots=ballots, judge=JUDGE,
            usage=Usage(prompt_tokens=1, cached_tokens=0, gpu_seconds=0.0),
        )  # fmt: skip
        comparison = Comparison.model_construct(status=Status("succeeded"), verdict=verdict, error=None)
        pair = Pair(id="x", prompt="?", response_a="one **bold**", response_b=TURNS, label="B")
        [row] = judged([pair], {"x": comparison}).rows
        assert (row.vote_ab, row.vote_ba, row.first_slot) == ("A", "B", True)
        assert row.log_odds_a == 0.75
        assert (row.correct, row.correct_ab, row.correct_ba, row.correct_both) == (False, False, True, False)
        assert (row.agreed, row.preference_b) == ("tie", pytest.approx(0.32))
        assert (row.style_a.bold, row.length_b) == (1, len("first\n\nsecond"))

    def test_votes_without_odds_are_whole_preferences(self):
        """A winner without a probability counts as 1 or 0, and a tie as a half."""
        given = [a_row(n, winner=winner, probability_a=None) for n, winner in enumerate(("A", "B", "tie"))]
        assert [row.preference_b for row in given] == [0.0, 1.0, 0.5]

    def test_a_run_of_empty_lines_takes_no_longer_than_other_text(self):
        """Two million newlines are read once: read from each of them on, they would take days."""
        count = (
            "from producer.evals.audit import CHANGES; from producer.evals.style import style; "
            "text = 'One.' + '\\n' * 2_000_000 + '- item'; "
            "assert style(text)[1:] == (0, 1, 0); "
            "assert [each.name for each in CHANGES if each.change(text) is None] == ['list', 'bold', 'header']"
        )
        subprocess.run([sys.executable, "-c", count], cwd=ROOT, check=True, timeout=60)

    def test_style_leaves_code_alone(self):
        """Markdown in a code block is code."""
        text = "# Title\n\n- one\n- **two**\n\n```\n# not a title\n- not an item\n```\n"
        assert style(text)[1:] == (1, 2, 1)


class Status(str):
    """A status as the wire has it."""

    __slots__ = ()

    @property
    def value(self) -> str:
        """Its text."""
        return str(self)


TURNS = [
    {"role": "assistant", "content": "first"},
    {"role": "user", "content": "and?"},
    {"role": "assistant", "content": "second"},
]


class TestVersus:
    def test_counts_by_hand(self):
        """Three wins, a loss and a tie: rates, ties and agreement as counted on fingers."""
        rows = [
            a_row(1, winner="B", probability_a=0.1, vote_ab="B", vote_ba="B"),
            a_row(2, winner="B", probability_a=0.2, vote_ab="B", vote_ba="B"),
            a_row(3, winner="B", probability_a=0.4, consistent=False, vote_ab="A", vote_ba="B"),
            a_row(4, winner="A", probability_a=0.9),
            a_row(5, winner="tie", probability_a=0.5, consistent=False, vote_ab="B", vote_ba="A"),
        ]
        found = versus.count(Judged(rows, [JUDGE]), "ours", "theirs")
        assert found.win_rate.value == pytest.approx((0.9 + 0.8 + 0.6 + 0.1 + 0.5) / 5)
        assert (found.wins.hits, found.losses.hits, found.ties.hits) == (3, 1, 1)
        assert found.discrete_win_rate == 0.7
        assert found.agreed_win_rate == pytest.approx(0.6)  # two wins, a loss, two ties
        assert found.consistent.value == 0.6
        assert (found.first_slot.hits, found.first_slot.n) == (1, 2)
        assert found.length_adjusted is None

    def test_odds_that_are_even_in_one_order_prefer_no_slot(self):
        """Such votes name the same response, though no winner that both orders bear out: they are no leaning."""
        even = {"consistent": False, "vote_ab": "A", "vote_ba": "A", "log_odds_ab": 0.0, "subset": audit.OWN}
        first = even | {"vote_ba": "B"}
        rows = [a_row(n, **even) for n in range(3)] + [a_row(n, **first) for n in range(3, 5)]
        judged = Judged(rows, [JUDGE])
        for found in (versus.count(judged, "ours", "theirs"), gold.count(judged), audit.count(judged)):
            assert (found.first_slot.hits, found.first_slot.n) == (2, 2)

    @pytest.mark.parametrize(
        ("p", "real", "words"),
        [
            (0.7, True, "The difference is real: this judge prefers ours to theirs"),
            (0.3, True, "The difference is real: this judge prefers theirs to ours"),
            (0.5, False, "may be chance"),
        ],
    )
    def test_whether_the_difference_is_real_is_said_in_a_sentence(self, p, real, words):
        """With 400 prompts a win rate of 70 % is no chance, and one of 50 % may be."""
        rows = [a_row(n, winner="B" if n < 400 * p else "A", probability_a=None) for n in range(400)]
        found = versus.count(Judged(rows, [JUDGE]), "ours", "theirs")
        assert found.real is real
        assert words in found.sentence
        assert "\n" not in found.sentence

    def test_the_sentence_calls_a_mean_of_probabilities_a_win_rate(self):
        """At P .6 on each of 400 prompts all of them are won, and no share of prompts is 60 %."""
        rows = [a_row(n, winner="B", probability_a=0.4 + 0.01 * (-1) ** n) for n in range(400)]
        found = versus.count(Judged(rows, [JUDGE]), "ours", "theirs")
        assert found.wins.value == 1.0
        assert "(win rate 60.0%, 95 % interval" in found.sentence
        assert "of prompts" not in found.sentence

    def test_a_small_difference_tells_how_many_prompts_it_would_take(self):
        """At 52 % of 400 prompts it is (1.96 + 0.84) squared times the variance over the squared difference: 4,906."""
        rows = [a_row(n, winner="B" if n < 208 else "A", probability_a=None) for n in range(400)]
        said = versus.count(Judged(rows, [JUDGE]), "ours", "theirs").sentence
        needed = int(said.split("about ")[1].split()[0])
        assert needed == pytest.approx(4906, rel=0.01)

    def test_of_prompts_with_several_rows_it_tells_how_many_prompts(self):
        """Of 100 prompts 29 were won twice, 25 lost twice, and 46 won once: what is drawn is their means."""
        winners = ["BB"] * 29 + ["AA"] * 25 + ["AB"] * 46
        rows = [
            a_row(2 * n + k, group=str(n), winner=winner, probability_a=None)
            for n, both in enumerate(winners)
            for k, winner in enumerate(both)
        ]
        said = versus.count(Judged(rows, [JUDGE]), "ours", "theirs").sentence
        needed = int(said.split("about ")[1].split()[0])
        assert needed == pytest.approx(7.849 * (29 * 0.48**2 + 25 * 0.52**2 + 46 * 0.02**2) / 99 / 0.02**2, rel=0.01)

    def test_one_order_alone_tells_no_difference(self):
        """A judge that always prefers what comes first would make the baseline better: nothing is called real."""
        rows = [a_row(n, vote_ba=None, log_odds_ba=None, consistent=None, position_bias=None) for n in range(400)]
        found = versus.count(Judged(rows, [JUDGE]), "ours", "theirs")
        assert found.win_rate.high < 0.5
        assert found.real is None
        assert "cannot be told from a difference" in found.sentence
        assert "400 of 400 verdicts were asked in one order alone" in found.caveat

    @pytest.mark.parametrize("prompts", [2, 5, 10, 20, 30])
    @pytest.mark.parametrize(
        "preference",
        [
            lambda generator, count: generator.integers(2, size=count).astype(float),
            lambda generator, count: special.expit(4 * generator.standard_normal(count)),
        ],
        ids=["votes", "odds"],
    )
    def test_without_a_difference_few_prompts_claim_one_no_more_often_than_many(self, prompts, preference):
        """Of 400 comparisons of equal systems about one in twenty calls its difference real, or none."""
        generator = np.random.default_rng(3)
        groups = [str(number) for number in range(prompts)]
        claims = 0
        for _ in range(400):
            low, high = interval_over_groups(groups, preference(generator, prompts))
            claims += low is not None and not low <= 0.5 <= high
        assert claims <= 28

    def test_nothing_and_few_prompts_tell_nothing(self):
        """Without verdicts or with a few only there is no claim, however unanimous they are."""
        few = versus.count(Judged([a_row(n) for n in range(9)], []), "x", "y")
        assert (few.real, few.win_rate.low) == (None, None)
        assert few.sentence == "Fewer than 10 prompts tell nothing of the difference."
        assert versus.count(Judged([a_row(n) for n in range(10)], []), "x", "y").real
        assert versus.count(Judged([FAILED], []), "x", "y").real is None
        assert "nothing can be said" in versus.count(Judged([FAILED], []), "x", "y").sentence
        assert versus.count(Judged([a_row(1)], []), "x", "y").real is None

    def test_a_planted_love_of_length_is_adjusted_away(self):
        """A judge that goes by length alone makes the longer system win, and an even match of it at equal length."""
        rows = []
        for number in range(2000):
            longer = 400 * (chance(number, "length") - 0.35)
            p = special.expit(2.5 * np.tanh(longer / 115))
            winner = "B" if chance(number, "verdict") < p else "A"
            rows.append(
                a_row(number, winner=winner, probability_a=None, style_a=sized(1000), style_b=sized(1000 + int(longer)))
            )
        found = versus.count(Judged(rows, [JUDGE]), "long", "short")
        assert found.win_rate.value > 0.6
        assert found.length_adjusted.win_rate.low < 0.5 < found.length_adjusted.win_rate.high
        assert found.length_adjusted.coefficient == pytest.approx(2.5, abs=0.4)
        assert found.length_adjusted.warning is None

    def test_a_judge_that_is_sure_of_little_but_everywhere_prefers_for_real(self):
        """A hundred prompts near P .55 are no chance, though as many votes of which 55 % were won would be."""
        rows = [a_row(n, winner="B", probability_a=0.45 - 0.02 * (-1) ** n) for n in range(100)]
        assert versus.count(Judged(rows, [JUDGE]), "ours", "theirs").real

    def test_what_was_won_throughout_has_no_adjusted_interval(self):
        """Refits on prompts that were all won agree with each other, and tell nothing of how sure that is."""
        rows = [
            a_row(n, winner="B", probability_a=None, style_a=sized(100), style_b=sized(95 + n % 9)) for n in range(30)
        ]
        found = versus.count(Judged(rows, [JUDGE]), "ours", "theirs")
        assert found.length_adjusted.win_rate.value > 0.99
        assert found.length_adjusted.win_rate.low is None
        assert found.win_rate.low < 0.95

    def test_the_adjusted_interval_draws_prompts(self):
        """Five copies of each row on its prompt tell no more than the row: the interval stays as it was."""
        once = drawn(30)
        copies = [replace(row, id=f"{row.id}-{copy}") for row in once for copy in range(5)]
        alone, together = (versus.adjust_for_length(rows).win_rate for rows in (once, copies))
        assert (together.low, together.high) == pytest.approx((alone.low, alone.high), abs=0.01)
        assert alone.high - alone.low > 0.1

    def test_subsets_are_parts_of_the_whole(self):
        """Each row is in one subset, and the subsets' counts add up."""
        found = versus.count(Judged(drawn(90), [JUDGE]), "ours", "theirs")
        assert [part.subset for part in found.subsets] == ["part 0", "part 1", "part 2"]
        assert sum(part.wins.hits for part in found.subsets) == found.wins.hits
