"""Tournaments between systems whose strengths are known: the order, the intervals, and how few matches it takes."""

import json
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from support.judged import numbers, planted, untraceable

from producer.evals import html, ratings, tournament
from producer.evals.numbers import select
from producer.evals.rows import Judged, Row
from producer.evals.schedule import Field, Prompt, seek, spread_evenly
from producer.evals.style import Style
from producer.evals.tournament import Plan, count, how_sure, play

FILES = ("gpt-4o-2024-05-13", "claude-3-opus-20240229", "Mistral-7B-Instruct-v0.2", "gpt-3.5-turbo-1106", "alpaca-7b")
WIN_RATES = {"a": 0.5133, "b": 0.2911, "c": 0.1472, "d": 0.0918, "e": 0.0259}
"""About those of AlpacaEval's leaderboard against one baseline: a real spread of strengths."""
STRENGTHS = {name: float(np.log(rate / (1 - rate))) for name, rate in WIN_RATES.items()}


def a_field(prompts: int, names=tuple(STRENGTHS), seed: int = 0) -> Field:
    """Systems that all said the same to so many prompts."""
    asked = [Prompt(group=str(number), prompt="?") for number in range(prompts)]
    return Field(list(names), asked, {name: ["-"] * prompts for name in names}, seed=seed)


def truth(names) -> dict[str, float]:
    """The planted strengths as ratings."""
    mean = np.mean([STRENGTHS[name] for name in names])
    return {name: ratings.MEAN + ratings.POINTS * (STRENGTHS[name] - mean) for name in names}


def alpaca_field(shared_data, seed: int) -> tuple[Field, dict[str, float]]:
    """The five real systems on their 805 prompts, with strengths planted in the leaderboard's order."""
    published = json.loads((shared_data / "alpaca_outputs" / "LEADERBOARD.json").read_text())
    rows = {
        name: [
            json.loads(line)
            for line in (shared_data / "alpaca_outputs" / f"{name}.jsonl").read_text().split("\n")
            if line
        ]
        for name in FILES
    }
    first = rows[FILES[0]]
    field = Field(
        list(FILES),
        [Prompt(group=str(row["id"]), prompt=row["instruction"]) for row in first],
        {name: [row["output"] for row in each] for name, each in rows.items()},
        seed=seed,
    )
    rates = {name: float(published[name]["win_rate"]) / 100 for name in FILES}
    return field, {name: float(np.log(rate / (1 - rate))) for name, rate in rates.items()}


class TestRecovery:
    def test_order_and_intervals_of_the_five_systems_are_those_planted(self, shared_data):
        """Every pair on every prompt: the planted order comes back, and the planted ratings lie in their intervals."""
        held = 0
        for seed in range(4):
            field, strengths = alpaca_field(shared_data, seed)
            judged = play(field, Plan(budget=4000), planted(strengths, seed))
            found = count(judged, field, Plan())
            assert [each.system for each in found.standings] == sorted(strengths, key=strengths.get, reverse=True)
            assert all(gap.real for gap in found.gaps)
            assert [each.rank_low for each in found.standings] == [each.rank_high for each in found.standings]
            mean = np.mean(list(strengths.values()))
            for each in found.standings:
                planted_at = ratings.MEAN + ratings.POINTS * (strengths[each.system] - mean)
                held += each.rating.low <= planted_at <= each.rating.high
        assert held >= 17  # of 20, 19 are to be expected

    def test_adaptive_reaches_the_full_schedules_interval_with_at_most_sixty_percent_of_its_matches(self, shared_data):
        """What the full schedule leaves least sure after 4,000 matches is as sure after 2,400 at most."""
        shares = []
        for seed in range(3):
            field, strengths = alpaca_field(shared_data, seed)
            judge = planted(strengths, seed)
            full = how_sure(play(field, Plan(budget=4000), judge).rows, field.systems, 1)
            plan = Plan("adaptive", budget=4000, target=full.width, round_size=100)
            judged = play(field, plan, judge)
            last = max(row.round for row in judged.rows)
            assert how_sure(judged.rows, field.systems, last).width <= full.width
            found = ratings.strengths(ratings.wins_by_group(judged.rows, field.systems).sum(axis=0))
            assert [field.systems[each] for each in np.argsort(-found)] == sorted(
                strengths, key=strengths.get, reverse=True
            )
            shares.append(len(judged.rows) / 4000)
        assert max(shares) <= 0.6

    @pytest.mark.slow
    def test_equal_systems_are_not_told_apart(self):
        """Of twenty tournaments of two systems of the same strength, about one in twenty claims an order."""
        field = a_field(80, names=("a", "b"))
        claims = 0
        for seed in range(20):
            found = count(play(field, Plan(), planted({"a": 0.0, "b": 0.0}, seed)), field, Plan())
            claims += found.gaps[0].real
            ranks = {(each.rank_low, each.rank_high) for each in found.standings}
            assert ranks == ({(1, 1), (2, 2)} if found.gaps[0].real else {(1, 2)})
        assert claims <= 3


def won(first: str, second: str, winners: str) -> list[Row]:
    """Matches of two systems, one on each prompt; a dot has no verdict."""
    return [
        Row(id=f"{first}{second}{n}", group=str(n), system_a=first, system_b=second, winner=None if w == "." else w)
        for n, w in enumerate(winners)
    ]


class TestWhatIsNotKnown:
    def test_coin_flips_on_one_prompt_put_nobody_above_anybody(self):
        """A round that is all on one prompt has no interval: no target is met by it, and everybody has every rank."""
        names = tuple(f"s{number}" for number in range(21))
        field, plan = a_field(50, names), Plan("adaptive", budget=300, target=1000.0, round_size=150)
        judged = play(field, plan, planted(dict.fromkeys(names, 0.0), 0))
        assert len(judged.rows) == 300
        first = [row for row in judged.rows if row.round == 1]
        assert {row.group for row in first} == {first[0].group}
        found = count(Judged(first, judged.judges), field, plan)
        assert {(each.rank_low, each.rank_high) for each in found.standings} == {(1, 21)}
        assert not any(gap.real for gap in found.gaps)
        assert [seen.width for seen in found.rounds] == [None]
        assert {each.rating.low for each in found.standings} == {None}
        assert tournament.Tournament.model_validate_json(found.model_dump_json()) == found

    @pytest.mark.parametrize(("prompts", "real"), [(9, False), (10, True)])
    def test_who_won_everything_is_above_by_ten_prompts_at_least(self, prompts: int, real: bool):
        """How far is not known, however many they were, so that there is no interval and no target is met."""
        rows = won("a", "b", "A" * prompts)
        found = count(Judged(rows, []), a_field(prompts, ("a", "b")), Plan())
        [gap] = found.gaps
        assert (gap.above, gap.real, gap.difference.low, gap.difference.width) == ("a", real, None, np.inf)
        ranks = [(each.rank_low, each.rank_high) for each in found.standings]
        assert ranks == ([(1, 1), (2, 2)] if real else [(1, 2), (1, 2)])
        assert how_sure(rows, ["a", "b"], 1).width is None

    def test_few_matches_of_who_won_everything_are_no_order_though_there_are_many_prompts(self):
        """Redrawn again and again, three wins of three look sure; they are not."""
        rows = won("a", "b", "AAA") + won("b", "c", "AB" * 20)
        found = count(Judged(rows, []), a_field(40, ("a", "b", "c")), Plan())
        of = {(gap.above, gap.below): gap for gap in found.gaps}
        [others] = [gap for names, gap in of.items() if "a" not in names]
        assert others.difference.low < 0 < others.difference.high
        assert [gap.real for gap in found.gaps] == [False, False]
        assert found.standings[0].rank_high == 3

    @pytest.mark.parametrize(("matches", "sure"), [("AAAABAAAA", False), ("AAAABAAAAA", True)])
    def test_a_system_with_few_verdicts_is_no_surer_for_the_prompts_of_others(self, matches: str, sure: bool):
        """Most of its matches failed: nine tell no interval of it, however many the others have."""
        rows = won("a", "b", matches + "." * 91) + won("b", "c", "AB" * 50)
        found = count(Judged(rows, []), a_field(100, ("a", "b", "c")), Plan())
        of = {each.system: each for each in found.standings}
        assert found.standings[0].system == "a"
        assert (of["a"].rating.low is not None, found.gaps[0].difference.low is not None) == (sure, sure)
        assert (found.gaps[0].real, of["a"].rank_high == 1) == (sure, sure)
        assert of["c"].rating.low is not None

    def test_a_style_that_hardly_ever_differs_is_not_known_to_be_worth_nothing(self):
        """None that never differs has a worth, and none that differs on nine prompts has an interval; on ten it has."""
        rows = [
            replace(row, style_a=Style(100 + n % 7, 0, int(n < 9), int(n < 10)), style_b=Style(103 - n % 5, 0, 0, 0))
            for n, row in enumerate(won("a", "b", "AABAB" * 12))
        ]
        found = count(Judged(rows, []), a_field(60, ("a", "b")), Plan())
        length, headers, lists, bold = (each.points for each in found.styles)
        assert (headers.value, headers.low) == (None, None)
        assert lists.value is not None
        assert lists.low is None
        assert None not in {length.low, bold.low}

    def test_above_what_is_above_is_above(self):
        """Two that never met have an order where each met a third and everything went one way."""
        rows = won("a", "b", "A" * 12) + won("b", "c", "A" * 12)
        found = count(Judged(rows, []), a_field(12, ("a", "b", "c")), Plan())
        assert [(each.rank_low, each.rank_high) for each in found.standings] == [(1, 1), (2, 2), (3, 3)]

    def test_who_has_no_verdict_is_not_rated(self):
        """A system that no match was decided of is in no rating, gap or rank, and is named."""
        rows = won("a", "b", "AB" * 10) + won("a", "c", "." * 20) + won("b", "c", "." * 20)
        judged = Judged(rows, [])
        found = count(judged, a_field(20, ("c", "a", "b")), Plan())
        assert {each.system for each in found.standings} == {"a", "b"}
        assert [each.rank_high for each in found.standings] == [2, 2]
        assert len(found.gaps) == 1
        assert found.unrated == ["c"]
        assert b"Not rated, for want of a verdict: c." in html.render(found, judged, {})
        assert how_sure(rows, ["c", "a", "b"], 1).width == found.gaps[0].difference.width


class TestPlay:
    def test_it_is_the_same_again(self):
        """From the same field, plan and verdicts come the same rounds: what is interrupted can be played again."""
        field = a_field(60)
        plan = Plan("adaptive", budget=200, round_size=40)
        asked: list[list[str]] = []

        def noting(pairs, number):
            asked.append([pair.id for pair in pairs])
            return planted(STRENGTHS, 1)(pairs, number)

        first, second = play(field, plan, noting), play(field, plan, noting)
        assert asked[: len(asked) // 2] == asked[len(asked) // 2 :]
        assert first.rows == second.rows
        assert [len(each) for each in asked[:5]] == [40] * 5

    def test_no_match_is_played_twice_and_every_match_is_played_once(self):
        """Adaptive rounds without a target end when every pair has met on every prompt."""
        field = a_field(9)
        ids = [row.id for row in play(field, Plan("adaptive", round_size=7), planted(STRENGTHS, 1)).rows]
        assert sorted(ids) == sorted({field.pair(pair, nth).id for pair in field.meetings() for nth in range(9)})

    def test_a_baseline_meets_all_others_and_nobody_else(self):
        """With a baseline there are as many matches as others and prompts."""
        field = a_field(5)
        judged = play(field, Plan("baseline", baseline="c"), planted(STRENGTHS, 1))
        assert len(judged.rows) == 20
        assert all("c" in row.systems for row in judged.rows)
        assert len(count(judged, field, Plan("baseline", baseline="c")).standings) == 5

    @pytest.mark.parametrize("schedule", ["full", "adaptive"])
    def test_a_budget_is_kept(self, schedule):
        """No more matches than were allowed, spread over all pairs of systems."""
        judged = play(a_field(50), Plan(schedule, budget=73, round_size=20), planted(STRENGTHS, 1))
        assert len(judged.rows) == 73
        assert len({row.systems for row in judged.rows}) == 10

    def test_rounds_are_told_with_what_may_follow(self):
        """A listener hears of every round, with the width that a target is held against."""
        told = []
        field, plan = a_field(50), Plan("adaptive", budget=60, round_size=20)
        judged = play(field, plan, planted(STRENGTHS, 1), lambda seen, left: told.append((seen, left)))
        assert [(seen.number, seen.matches_so_far, left) for seen, left in told] == [
            (1, 20, 40),
            (2, 40, 20),
            (3, 60, 0),
        ]
        assert count(judged, field, plan).rounds == [seen for seen, _ in told]

    def test_matches_without_a_verdict_are_not_played_again(self):
        """A judge that fails at everything ends the tournament, which then cannot be counted."""
        field = a_field(4)

        def failing(pairs, _):
            return Judged([Row(id=pair.id, group=pair.group, status="errored", error="x") for pair in pairs], [])

        judged = play(field, Plan("adaptive", round_size=9), failing)
        assert len(judged.rows) == 40
        with pytest.raises(ValueError, match="no match has a verdict"):
            count(judged, field, Plan())


def mute(judge, fails):
    """A judge without a verdict where `fails` says so of the two systems."""

    def verdicts(pairs, number):
        given = judge(pairs, number)
        rows = [
            replace(row, winner=None, status="errored", error="x") if fails(set(row.systems)) else row
            for row in given.rows
        ]
        return Judged(rows, given.judges)

    return verdicts


class TestWhatCannotBeJudged:
    """Where every match of a system, or of a pair of systems, ends without a verdict."""

    def test_a_system_that_is_never_judged_gets_no_more_matches(self):
        """All its matches fail: after ten of them the others are played on as if it was not there."""
        field, plan = a_field(200), Plan("adaptive", budget=400, round_size=40)
        judged = play(field, plan, mute(planted(STRENGTHS, 1), lambda met: "c" in met))
        assert len(judged.rows) == 400
        assert len(select(judged.rows, {"systems": "c"})) == 16  # the four pairs' share of a first round of 40
        found = count(judged, field, plan)
        assert (found.unrated, found.given_up) == (["c"], ["c"])
        assert b"without any verdict: c." in html.render(found, judged, {})
        assert tournament.Tournament.model_validate_json(found.model_dump_json()) == found

    def test_a_target_is_met_though_a_system_is_never_judged(self):
        """What the others' matches tell is as soon enough as without it, but for the matches that it had."""
        strengths = {"a": 0.4, "b": 0.0, "c": 0.0}
        plan = Plan("adaptive", target=150.0, round_size=30)
        alone, beside = (
            play(a_field(300, names), plan, mute(planted(strengths, 1), lambda met: "c" in met))
            for names in (("a", "b"), ("a", "b", "c"))
        )
        assert len(beside.rows) <= len(alone.rows) + 20 + plan.round_size

    def test_a_pair_that_is_never_judged_leaves_its_systems_to_others(self):
        """Two that cannot be judged against each other are told apart by whom else they meet."""
        names = ("a", "b", "c")
        field, plan = a_field(200, names), Plan("adaptive", budget=300, round_size=30)
        judge = mute(planted({"a": 0.1, "b": 0.0, "c": -1.0}, 1), lambda met: met == {"a", "b"})
        judged = play(field, plan, judge)
        assert len(judged.rows) == 300
        assert len(select(judged.rows, {"system_a": "a", "system_b": "b"})) <= 40
        found = count(judged, field, plan)
        assert (found.unrated, found.given_up) == ([], ["a against b"])

    def test_where_nothing_is_left_that_can_be_judged_it_ends(self):
        """Of two pairs one is played out and the other gives no verdicts: the budget is not waited for."""
        field, plan = a_field(30, ("a", "b", "c")), Plan("adaptive", round_size=36)
        judged = play(field, plan, mute(planted(STRENGTHS, 1), lambda met: "c" in met))
        assert len(select(judged.rows, {"systems": "c"})) == 24
        assert len(select(judged.rows, {"decided": True})) == 30


class TestSchedule:
    def test_spreading_is_even_and_stops_where_there_is_no_room(self):
        """Every pair gets the same, until its prompts are used up."""
        assert spread_evenly({(0, 1): 5, (0, 2): 1, (1, 2): 5}, 7) == {(0, 1): 3, (0, 2): 1, (1, 2): 3}
        assert spread_evenly({(0, 1): 2}, 9) == {(0, 1): 2}

    def test_what_is_sought_is_the_doubtful_order(self):
        """With c and d nearly even and all others far apart, most matches go to c and d."""
        wins = np.zeros((5, 5))
        for one, other in combinations(range(5), 2):
            strong = 32 if (one, other) == (2, 3) else 54
            wins[one, other], wins[other, one] = strong, 60 - strong
        given = seek(wins, dict.fromkeys(combinations(range(5), 2), 1000), 100)
        assert sum(given.values()) == 100
        assert given[2, 3] > 60

    def test_a_pair_without_prompts_is_not_sought(self):
        """Where the doubtful pair has met on every prompt, others tell of it in its place."""
        wins = np.ones((3, 3)) * 10 * (1 - np.eye(3))
        given = seek(wins, {(0, 1): 0, (0, 2): 50, (1, 2): 50}, 20)
        assert given[0, 1] == 0
        assert sum(given.values()) == 20


class TestRatings:
    def test_a_system_that_never_won_is_far_down_and_not_infinitely(self):
        """Where no maximum exists one drawn match holds the strengths together."""
        wins = np.array([[0, 30.0, 30.0], [0, 0, 20.0], [0, 10.0, 0]])
        found = ratings.strengths(wins)
        assert np.isfinite(found).all()
        assert list(np.argsort(-found)) == [0, 1, 2]

    def test_a_tie_is_half_a_win_for_each(self):
        """Ties alone make equal strengths."""
        rows = [Row(id=str(n), group=str(n), system_a="x", system_b="y", winner="tie") for n in range(8)]
        wins = ratings.wins_by_group(rows, ["x", "y"]).sum(axis=0)
        assert wins.tolist() == [[0, 4], [4, 0]]
        assert ratings.strengths(wins) == pytest.approx([0, 0])

    def test_a_planted_love_of_lists_is_told_from_strength(self):
        """Two equal systems, one of which writes lists: the rating follows the lists, the adjusted one does not."""
        generator = np.random.default_rng(5)
        rows = []
        for number in range(3000):
            first, second = generator.poisson(6), generator.poisson(3)
            p = 1 / (1 + np.exp(-1.5 * (first - second) / max(first + second, 1)))
            winner = "A" if generator.random() < p else "B"
            styles = {"style_a": Style(500, 0, int(first), 0), "style_b": Style(500, 0, int(second), 0)}
            rows.append(
                Row(id=str(number), group=str(number), system_a="lists", system_b="prose", winner=winner, **styles)
            )
        field = a_field(1, names=("lists", "prose"))
        found = count(Judged(rows, []), field, Plan())
        assert found.standings[0].system == "lists"
        assert found.gaps[0].real
        adjusted = {each.system: each.style_adjusted for each in found.standings}
        assert adjusted["lists"].low < ratings.MEAN < adjusted["lists"].high
        effects = {each.style: each.points for each in found.styles}
        assert effects["lists"].low > 0
        assert effects["length"].value is None  # all are equally long, so nothing tells what length is worth


def test_every_number_of_a_leaderboard_names_its_rows():
    """Ratings, wins, gaps and meetings select the matches that they were made of."""
    field = a_field(40)
    judged = play(field, Plan(), planted(STRENGTHS, 2))
    found = count(judged, field, Plan())
    assert len(numbers(found)) > 30
    assert untraceable(found, judged.rows) == []
    assert sum(each.wins.hits for each in found.standings) == len(select(judged.rows, {"decided": True}))
    assert found.matches_full == len(judged.rows) == 400
    assert found.caveat.startswith("Planted")
    assert tournament.Tournament.model_validate_json(found.model_dump_json()) == found
