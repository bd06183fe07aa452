"""Results of evals on a terminal: all that their page says above the pairs, within the width of the screen."""

from collections import Counter
from dataclasses import replace
from html import unescape
from io import StringIO

import pytest
from rich.cells import cell_len
from rich.console import Console
from support.judged import FAILED, JUDGE, chance, planted, sized

from producer.cli import eval_show
from producer.evals import calibrating, gold, html, pages, rewardbench, tournament, versus
from producer.evals.layout import Figure, figures, interval, said
from producer.evals.numbers import Result
from producer.evals.rows import Judged, Row
from producer.evals.schedule import Field, Prompt
from producer.evals.tournament import Plan


def rows(count: int = 60) -> list[Row]:
    """Rows with labels, of subsets that RewardBench has and of one that it has not; the system's are longer."""
    made = []
    for number in range(count):
        d, subset = 6 * (chance(number, "d") - 0.4), ("hep-go", "llmbar-adver-neighbor", "my-own")[number % 3]
        odds = {"log_odds_ab": d, "log_odds_ba": -d, "position_bias": 0.0, "consistent": True}
        winner = "A" if d > 0 else "B"
        made.append(
            Row(
                id=str(number),
                group=str(number),
                label="A" if chance(number, "label") < 0.7 else "B",
                subset=subset,
                winner=winner,
                probability_a=1 / (1 + 2.718281828**-d),
                vote_ab=winner,
                vote_ba=winner,
                style_a=sized(100),
                style_b=sized(110 + number % 7),
                **odds,
            )
        )
    return made


def leaderboard() -> Result:
    """A tournament of systems with long names."""
    strengths = {name: float(number) for number, name in enumerate(("a-critic-of-8-billion", "another-7b", "third"))}
    prompts = [Prompt(group=str(number), prompt="?") for number in range(30)]
    answers = {name: ["-" * (9 + number % (4 + n)) for number in range(30)] for n, name in enumerate(strengths)}
    field = Field(list(strengths), prompts, answers)
    judged = tournament.play(field, Plan(), planted(strengths, 0))
    return tournament.count(judged, field, Plan())


def tied() -> Result:
    """The same tournament, where nobody is surely above another."""
    found = leaderboard()
    return found.model_copy(
        update={"standings": [each.model_copy(update={"rank_low": 1, "rank_high": 3}) for each in found.standings]}
    )


RESULTS = [
    versus.count(Judged(rows(), [JUDGE]), "system", "baseline"),
    gold.count(Judged(rows(), [JUDGE])),
    rewardbench.count(Judged(rows(), [JUDGE])),
    calibrating.fit(Judged(rows(), [JUDGE])),
    leaderboard(),
]


def shown(result: Result, width: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """What stands on a screen."""
    screen = Console(file=StringIO(), width=width, force_terminal=True, color_system=None, highlight=False)
    monkeypatch.setattr(eval_show, "console", screen)
    eval_show.conclude(result, as_json=False)
    return screen.file.getvalue()


def of_table(figure: Figure) -> str:
    """A value and its interval in a table, without the share that a brief one leaves out."""
    return str(figure.number.hits) if figure.brief else said(figure)


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("result", RESULTS, ids=lambda result: result.kind)
def test_a_terminal_shows_all_of_the_page_above_the_pairs(result: Result, width: int, monkeypatch: pytest.MonkeyPatch):
    """Each value, interval and note is on the screen, but for tables to look things up in; no number is broken."""
    laid_out = pages.page(result)
    laid_out = replace(laid_out, tables=[each for each in laid_out.tables if not each.looked_up])
    text = shown(result, width, monkeypatch)
    words = " ".join(text.split())
    for figure in (each for each in figures(laid_out) if each.number.n):
        assert of_table(figure) in words, figure.label
        assert figure.brief or f"({interval(figure).replace('%', '')})".removeprefix("()") in words, figure.label
    for said_aloud in (laid_out.title, laid_out.headline, *laid_out.notes, JUDGE.caveat):
        assert said_aloud in text
    assert "…" not in text
    prose = {laid_out.headline, *laid_out.notes, *(table.note for table in laid_out.tables)}
    lines = [line for line in text.splitlines() if line not in prose and not line.startswith(("Judge:", "Mind:"))]
    assert all(cell_len(line) <= width for line in lines)


@pytest.mark.parametrize("width", [40, 50, 60, 70])
@pytest.mark.parametrize("result", RESULTS, ids=lambda result: result.kind)
def test_where_there_is_too_little_room_no_digit_is_lost(result: Result, width: int, monkeypatch: pytest.MonkeyPatch):
    """Half of a window is narrow: numbers are folded there, since a number that was cut would be another."""
    wide = Counter(filter(str.isdigit, shown(result, 240, monkeypatch)))
    assert Counter(filter(str.isdigit, shown(result, width, monkeypatch))) == wide


def test_who_is_first_is_said_of_one_who_surely_is() -> None:
    """A page begins with what it found, and its numbers must not take that back."""
    assert "is rated highest, though not surely first, of 3" in pages.page(tied()).headline
    assert "is first of 3" in pages.page(leaderboard()).headline


class TestNotes:
    def test_rows_that_rewardbench_does_not_have_are_told(self):
        """They are in no score, so a reader is told which they are, on the page as on a terminal."""
        [_, _, found, _, _] = RESULTS
        assert pages.page(found).notes == ["Rows of subsets that RewardBench does not have, in no score: my-own (20)."]

    def test_a_temperature_says_when_it_is_not_to_be_used(self):
        """One that is no better than 1 is to be left alone, and one without an interval wants more pairs."""
        found = calibrating.fit(Judged(rows(), [JUDGE]))
        sure, unsure = (found.temperature.model_copy(update={"low": low}) for low in (1.0, None))
        told = [
            pages.page(found.model_copy(update={"temperature": temperature, "better": better})).notes
            for temperature, better in ((sure, True), (sure, False), (unsure, True))
        ]
        more = "These pairs do not tell how far off it may be: give more of them."
        assert told == [[], ["Leave T at 1."], [more]]

    def test_a_length_adjusted_rate_that_is_an_extrapolation_is_a_warning(self):
        """The system's answers are longer on every prompt here."""
        [found, *_] = RESULTS
        [figure] = [each for each in pages.page(found).figures if each.label == "Length-adjusted win rate"]
        assert figure.note.startswith("Warning: the system's answer is longer")


@pytest.mark.parametrize(
    ("count", "words"),
    [(gold.count, "are in no verdict's figure"), (rewardbench.count, "are in no figure but those of one placement")],
    ids=["gold", "rewardbench"],
)
def test_where_pairs_without_a_verdict_are_counted_is_said_as_it_is(count, words, monkeypatch: pytest.MonkeyPatch):
    """RewardBench's published protocol scores its failures; both the terminal and the page say so, of it alone."""
    judged = Judged([*rows(), replace(FAILED, subset="hep-go")], [JUDGE])
    result = count(judged)
    assert f"(unparseable) and {words}" in shown(result, 80, monkeypatch)
    page = unescape(html.render(result, judged, {}).decode())
    assert f"(unparseable) and {words}" in page


def test_which_intervals_they_are_is_said_where_there_are_any(monkeypatch: pytest.MonkeyPatch):
    """What stands in brackets beside a figure could be a standard error, or any other interval."""
    said_aloud = "Intervals, in brackets, are 95 %."
    [one, other, third, temperature, last] = RESULTS
    assert all(said_aloud in shown(result, 80, monkeypatch) for result in (one, other, third, last))
    assert temperature.temperature.low is None
    assert not any(said_aloud in shown(result, 80, monkeypatch) for result in (temperature, gold.count(Judged([], []))))


def test_what_nothing_was_counted_of_is_left_out(monkeypatch: pytest.MonkeyPatch):
    """A figure of no rows says nothing: where nothing is labelled, there is no accuracy."""
    bare = [replace(row, label=None) for row in rows()]
    assert "Accuracy" not in shown(gold.count(Judged(bare, [JUDGE])), 80, monkeypatch)
