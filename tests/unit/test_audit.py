"""The bias audit finds the biases that were planted, and no others."""

from collections.abc import Callable

import pytest
from scipy import special
from support.judged import JUDGE, chance, untraceable

from producer.evals import audit, html
from producer.evals.audit import CHANGES, OWN, controlled
from producer.evals.rows import Judged, Pair, Row
from producer.evals.style import style

COUNT = 400
Judge = Callable[[Row], float]


def own_rows() -> list[Pair]:
    """Rows whose responses differ in length by chance."""
    return [
        Pair(
            id=str(number),
            prompt=f"Q{number}",
            response_a=f"One thing is {number}. " * (1 + int(4 * chance(number, "a"))),
            response_b=f"Another is {number}. " * (1 + int(4 * chance(number, "b"))),
            subset=OWN,
            group=str(number),
            label="A" if chance(number, "label") < 0.5 else "B",
        )
        for number in range(COUNT)
    ]


def judged_by(pairs: list[Pair], love: Judge, lean: float = 0.0) -> Judged:
    """Judge pairs by chance, and by what a judge loves or leans to."""
    rows = []
    for pair in pairs:
        row = Row(
            id=pair.id,
            group=pair.group,
            subset=pair.subset,
            label=pair.label,
            style_a=style(pair.response_a),
            style_b=style(pair.response_b),
        )
        noise = 0.0 if pair.response_a == pair.response_b else 4 * (chance(pair.id, "noise") - 0.5)
        d = noise + love(row)
        s1, s2 = d + lean, lean - d
        votes = {"vote_ab": "A" if s1 > 0 else "B", "vote_ba": "B" if s2 > 0 else "A"}
        rows.append(
            Row(
                **{name: getattr(row, name) for name in ("id", "group", "subset", "label", "style_a", "style_b")},
                **votes,
                winner="A" if d > 0 else "B",
                probability_a=float(special.expit(d)),
                consistent=votes["vote_ab"] == votes["vote_ba"],
                position_bias=lean,
                log_odds_ab=s1,
                log_odds_ba=s2,
            )
        )
    return Judged(rows, [JUDGE])


def found(love: Judge, lean: float = 0.0) -> tuple[audit.Audit, Judged]:
    """The audit of a planted judge."""
    own = own_rows()
    judged = judged_by([*own, *controlled(own, COUNT)], love, lean)
    return audit.count(judged), judged


LOVES: dict[str, Judge] = {
    "longer": lambda row: 1.5 * ((row.length_a > row.length_b + 15) - (row.length_b > row.length_a + 15)),
    "list": lambda row: 1.5 * ((row.style_a.lists > 0) - (row.style_b.lists > 0)),
    "bold": lambda row: 1.5 * ((row.style_a.bold > 0) - (row.style_b.bold > 0)),
    "header": lambda row: 1.5 * ((row.style_a.headers > 0) - (row.style_b.headers > 0)),
}


class TestPlanted:
    @pytest.mark.parametrize("loved", LOVES)
    def test_a_planted_love_is_found_and_no_other(self, loved: str):
        """Of the changes, the one that the judge loves is called a bias."""
        result, _ = found(LOVES[loved])
        assert {each.change for each in result.controlled if each.biased} == {loved}
        meaning = next(change.meaning for change in CHANGES if change.name == loved)
        [finding] = [said for said in result.findings if said.startswith("It prefers")]
        assert meaning in finding

    def test_a_judge_without_bias_is_cleared(self):
        """Where chance alone decides, no change is called a bias."""
        result, _ = found(lambda _: 0.0)
        assert not any(each.biased for each in result.controlled)
        assert "None of the changes" in result.findings[-1]

    def test_few_prompts_prove_no_bias(self):
        """Nine prompts on which the judge loved a header are no finding, ten are: few would be such by chance."""
        own = own_rows()
        for prompts, biased in ((audit.FEWEST - 1, None), (audit.FEWEST, True)):
            pairs = [pair for pair in controlled(own, COUNT) if pair.subset == "header"][:prompts]
            result = audit.count(
                judged_by(pairs, lambda row: 9.0 * ((row.style_a.headers > 0) - (row.style_b.headers > 0)))
            )
            assert next(each.biased for each in result.controlled if each.change == "header") is biased
            assert bool(result.findings) is bool(biased)

    def test_where_no_change_was_tried_none_is_cleared(self):
        """Own rows alone say nothing of the changes."""
        result = audit.count(judged_by(own_rows(), lambda _: 0.0))
        assert not any("changes" in finding for finding in result.findings)

    def test_a_love_of_length_shows_in_own_rows_too(self):
        """The longer wins more often, and the judge is righter where the label is the longer."""
        result, _ = found(LOVES["longer"])
        assert result.longer_wins.low > 0.5
        assert result.right_when_longer.low > result.right_when_shorter.high

    @pytest.mark.parametrize(("lean", "slot"), [(1.0, "first"), (-1.0, "second")])
    def test_a_leaning_to_a_slot_is_found(self, lean: float, slot: str):
        """Rows flip, those that do prefer the slot, and so does the same text twice."""
        result, _ = found(lambda _: 0.0, lean)
        assert result.flip_rate.low > 0.3
        assert result.first_slot.value == (slot == "first")
        assert result.same_first.value == (slot == "first")
        assert sum(f"what comes {slot}" in finding for finding in result.findings) == 2
        assert result.position_bias.value == pytest.approx(lean)

    def test_every_figure_names_its_rows(self):
        """The columns of each figure select the rows that it counted, and its page shows them."""
        result, judged = found(LOVES["list"], 0.5)
        assert untraceable(result, judged.rows) == []
        assert b"What sways the judge" in html.render(result, judged, {})


class TestControlled:
    def test_the_set_is_made_of_own_rows_and_is_always_the_same(self):
        """A changed pair keeps the prompt, stands beside a response of the row, and is drawn without a seed."""
        own = own_rows()
        made = controlled(own, 30)
        assert made == controlled(list(reversed(own)), 30)
        by_id = {pair.id: pair for pair in own}
        for pair in made:
            source = by_id[pair.id.partition(":")[2]]
            assert pair.prompt == source.prompt
            assert pair.response_a in {source.response_a, source.response_b}
            assert (pair.response_a == pair.response_b) == (pair.subset == "same")
        assert len({pair.id for pair in made}) == len(made)

    @pytest.mark.parametrize(
        "change", [change for change in CHANGES if change.name != "same"], ids=lambda each: each.name
    )
    def test_a_change_says_nothing_new(self, change: audit.Change):
        """Words are added that stood there before, or marks of Markdown, and nothing is taken away."""
        text = "It rains today. Take an umbrella with you. It is 12 o'clock."
        words = set(text.split()) | {"To", "say", "that", "again:", "##", "Answer", "-"}
        changed = change.change(text)
        assert set(changed.replace("**", "").split()) <= words
        assert set(text.split()) <= set(changed.replace("**", "").split())

    def test_what_cannot_be_changed_is_left_out(self):
        """Empty responses make no pairs, and what is formatted already is not formatted again."""
        pairs = [
            Pair("1", "Q", "", "", group="1"),
            Pair("2", "Q", "- a\n- b", "- a\n- b", group="2"),
            Pair("3", "Q", *[[{"role": "assistant", "content": "One. Two."}]] * 2, group="3"),
        ]
        made = controlled(pairs, 9)
        assert {pair.subset for pair in made if pair.id.endswith(":2")} == {"same", "longer"}
        assert not any(pair.id.endswith(":1") for pair in made)
        [first] = [pair for pair in made if pair.id == "list:3"]
        assert first.line()["response_b"] == [{"role": "assistant", "content": "- One.\n- Two."}]

    def test_a_changed_pair_is_asked_in_both_orders_whatever_its_row_says(self):
        """The changed response is always B, so that a leaning to a slot in one order would pass for a dislike of it."""
        [*made] = controlled([Pair("1", "Q", "One. Two.", "Three.", options={"order": "ab", "profile": "card"})], 1)
        assert {tuple(pair.options) for pair in made} == {("profile",)}
