"""What a report's page shows of each eval: a headline, figures, and tables, all of numbers that name their rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from producer.evals.calibrating import Fitted
from producer.evals.curating import Curated
from producer.evals.gold import Calibration, Gold
from producer.evals.numbers import Number, Result
from producer.evals.rewardbench import SECTIONS, RewardBench, Section
from producer.evals.tournament import Tournament
from producer.evals.versus import Versus

Unit = Literal["share", "points", "plain"]


@dataclass(frozen=True, slots=True)
class Figure:
    """A number with its name, and how to draw it."""

    label: str
    number: Number
    unit: Unit = "share"
    even: float | None = None
    """Where nothing would be preferred; drawn as a line."""
    note: str = ""


Cell = str | int | float | Figure | None


@dataclass(frozen=True, slots=True)
class Table:
    """A table that can be sorted by each column."""

    title: str
    columns: list[str]
    rows: list[list[Cell]]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """All that stands above the pairs."""

    title: str
    headline: str
    figures: list[Figure]
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    reliability: Calibration | None = None


def page(result: Result) -> Page:
    """Lay out a result.

    Raises:
        KeyError: its kind has no page.
    """
    return _PAGES[result.kind](result)


def _consistency(result: Any) -> list[Figure]:
    return [
        Figure("Both orders name the same winner", result.consistent),
        Figure(
            "Of those that do not: preferred what came first",
            result.first_slot,
            even=0.5,
            note="At 50 % it leans to neither slot.",
        ),
    ]


def _of(value: float | None, of: Number) -> Number:
    """Give a figure that has no interval, of the rows that another was made of."""
    return Number(value=value, n=of.n, where=of.where)


def _bias(number: Number) -> Figure:
    return Figure("Position bias, in log-odds", number, "plain", 0.0, "Over 0 it leans to what is shown first.")


def _versus(result: Versus) -> Page:
    figures = [
        Figure(f"Win rate of {result.system}", result.win_rate, even=0.5, note="Mean of P(better)."),
        Figure("Won", result.wins),
        Figure("Lost", result.losses),
        Figure("Tied", result.ties),
        *_consistency(result),
        _bias(result.position_bias),
    ]
    decided = result.win_rate
    figures[1:1] = [
        Figure("Standard error of the win rate", _of(result.standard_error, decided), "plain"),
        Figure("Counted by winners, a tie as half", _of(result.discrete_win_rate, decided), even=0.5),
        Figure(
            "The same, with a tie wherever orders disagree", _of(result.agreed_win_rate, result.consistent), even=0.5
        ),
    ]
    adjusted = result.length_adjusted
    if adjusted is not None:
        figures[1:1] = [
            Figure("Length-adjusted win rate", adjusted.win_rate, even=0.5, note=adjusted.warning or ""),
            Figure("Mean characters", _of(adjusted.length_system, decided), "points"),
            Figure(f"Mean characters of {result.baseline}", _of(adjusted.length_baseline, decided), "points"),
        ]
    rows: list[list[Cell]] = [
        [
            part.subset,
            part.win_rate.n,
            _cell("win rate", part, part.win_rate, 0.5),
            _cell("won", part, part.wins),
            _cell("orders agree", part, part.consistent),
        ]
        for part in result.subsets
    ]
    tables = _unless_empty(Table("By subset", ["subset", "prompts", "win rate", "won", "orders agree"], rows))
    return Page(f"{result.system} against {result.baseline}", result.sentence, figures, tables)


def _cell(name: str, part: Any, number: Number, even: float | None = None) -> Figure:
    return Figure(f"{part.subset}: {name}", number, even=even)


def _unless_empty(*tables: Table) -> list[Table]:
    return [table for table in tables if table.rows]


def _gold(result: Gold) -> Page:
    figures = [
        Figure("Accuracy", result.accuracy, even=0.5, note="The verdict of both orders is the label."),
        Figure("Accuracy in order ab alone", result.accuracy_ab, even=0.5),
        Figure("Accuracy in order ba alone", result.accuracy_ba, even=0.5),
        Figure("Right in both orders", result.accuracy_both),
        *_consistency(result),
        _bias(result.position_bias),
    ]
    figures += [
        Figure(
            "Krippendorff's alpha, with the labels",
            _of(result.agreement, result.accuracy),
            "plain",
            0.0,
            "1 is agreement, 0 what chance would give.",
        ),
        Figure(
            "Krippendorff's alpha, of the two orders", _of(result.agreement_of_orders, result.consistent), "plain", 0.0
        ),
    ]
    tables = [
        Table(
            "By subset",
            ["subset", "pairs", "accuracy", "orders agree"],
            [
                [
                    part.subset,
                    part.accuracy.n,
                    _cell("accuracy", part, part.accuracy, 0.5),
                    _cell("orders agree", part, part.consistent),
                ]
                for part in result.subsets
            ],
        )
    ]
    found = result.calibration
    if found is not None:
        figures += [
            Figure("Log-loss", found.log_loss, "plain", note="A coin's is 0.693."),
            Figure("Brier score", found.brier, "plain", note="A coin's is 0.25."),
        ]
        figures.append(Figure("Expected calibration error", _of(found.expected_error, found.log_loss)))
        bins: list[list[Cell]] = [
            [
                f"{each.low:.0%} to {each.high:.0%}",
                each.accuracy.n,
                Figure(f"Mean of {each.low:.0%} to {each.high:.0%}", _of(each.confidence, each.accuracy)),
                Figure(f"Sure by {each.low:.0%} to {each.high:.0%}: right", each.accuracy),
            ]
            for each in found.bins
        ]
        tables.append(Table("Is it as right as it is sure?", ["how sure", "verdicts", "mean", "right"], bins))
    headline = f"The judge agrees with {_percent(result.accuracy)} of {result.accuracy.n} labels."
    return Page("A judge against gold labels", headline, figures, _unless_empty(*tables), reliability=found)


def _calibrate(result: Fitted) -> Page:
    better = "lowers" if result.better else "does not lower"
    headline = (
        f"T = {_plain(result.temperature.value)} {better} the held-out log-loss: {result.log_loss_before:.4f} at T 1, "
        f"{result.log_loss_after:.4f} at the fitted T."
    )
    fitted = result.temperature
    before, after = _of(result.log_loss_before, fitted), _of(result.log_loss_after, fitted)
    return Page(
        "Calibration of a judge",
        headline,
        [
            Figure("Temperature", fitted, "plain", 1.0, "1 leaves the model's odds as they are."),
            Figure("Log-loss at T 1", before, "plain", note="A coin's is 0.693."),
            Figure("Log-loss at the fitted T, held out", after, "plain"),
            Figure("Expected calibration error at T 1", _of(result.expected_error_before, fitted)),
            Figure("Expected calibration error, held out", _of(result.expected_error_after, fitted)),
        ],
    )


def _rewardbench(result: RewardBench) -> Page:
    sections: list[list[Cell]] = [_section(each) for each in [*result.sections, result.overall]]
    subsets: list[list[Cell]] = [
        [
            each.subset,
            each.both_orders.n,
            _cell("published protocol", each, each.published_protocol, 0.5),
            _cell("both orders", each, each.both_orders, 0.5),
            _cell("orders agree", each, each.consistent),
        ]
        for each in result.subsets
    ]
    published: list[list[Cell]] = [
        [each.model, *each.sections.values(), each.overall, each.source] for each in result.published
    ]
    protocols = ["published protocol", "both orders"]
    return Page(
        "RewardBench",
        f"Overall {_percent(result.overall.published_protocol)} by the published protocol, "
        f"{_percent(result.overall.both_orders)} in both orders.",
        [
            Figure("Overall, published protocol", result.overall.published_protocol, even=0.5),
            Figure("Overall, both orders", result.overall.both_orders, even=0.5),
        ],
        _unless_empty(
            Table("Sections", ["section", "rows", *protocols, "other placement"], sections),
            Table("Subsets", ["subset", "rows", *protocols, "orders agree"], subsets),
            Table("Published figures", ["model", *SECTIONS, "overall", "source"], published, result.note),
        ),
    )


def _section(section: Section) -> list[Cell]:
    return [
        section.section,
        section.published_protocol.n,
        Figure(f"{section.section}: published protocol", section.published_protocol, even=0.5),
        Figure(f"{section.section}: both orders", section.both_orders, even=0.5),
        Figure(
            f"{section.section}: other placement", _of(section.other_placement, section.published_protocol), even=0.5
        ),
    ]


def _tournament(result: Tournament) -> Page:
    standings: list[list[Cell]] = [
        [
            each.system,
            Figure(f"{each.system}: rating", each.rating, "points", 1000.0),
            str(each.rank_low) if each.rank_low == each.rank_high else f"{each.rank_low} to {each.rank_high}",
            each.rating.n,
            Figure(f"{each.system}: won", each.wins),
            Figure(f"{each.system}: tied", each.ties),
            round(each.mean_length),
            None
            if each.style_adjusted is None
            else Figure(f"{each.system}: at equal style", each.style_adjusted, "points", 1000.0),
        ]
        for each in result.standings
    ]
    gaps: list[list[Cell]] = [
        [
            each.above,
            each.below,
            Figure(f"{each.above} over {each.below}", each.difference, "points", 0.0),
            _surely(each.real),
        ]
        for each in result.gaps
    ]
    meetings: list[list[Cell]] = [
        [
            each.system_a,
            each.system_b,
            each.wins_a.n,
            Figure(f"{each.system_a} beat {each.system_b}", each.wins_a, even=0.5),
            Figure(f"{each.system_a} and {each.system_b} tied", each.ties),
        ]
        for each in result.meetings
    ]
    styles: list[list[Cell]] = [
        [each.style, Figure(f"More {each.style}", each.points, "points", 0.0)] for each in result.styles
    ]
    columns = ["system", "rating", "rank", "matches", "won", "tied", "mean length", "at equal style"]
    return Page(
        "Tournament",
        f"{result.standings[0].system} is first of {len(result.standings)} systems, by {result.decided} matches.",
        [],
        _unless_empty(
            Table("Leaderboard", columns, standings, "Mean 1000; 400 points are odds of ten to one."),
            Table("Between neighbours", ["above", "below", "points", "surely"], gaps),
            Table("Meetings", ["A", "B", "matches", "A won", "tied"], meetings),
            Table("What a style is worth", ["more of", "points"], styles),
        ),
        [f"{result.pairs} of {result.matches_full} possible matches, schedule {result.schedule}."],
    )


def _surely(real: bool) -> str:
    return "yes" if real else "no"


def _curate(result: Curated) -> Page:
    counts = {each.fate: each.rows.hits or 0 for each in result.fates}
    fates: list[list[Cell]] = [
        [each.fate, each.rows.hits, Figure(f"Fate: {each.fate}", each.rows), each.meaning]
        for each in result.fates
        if each.rows.hits
    ]
    subsets: list[list[Cell]] = [
        [
            part.subset,
            part.kept.n,
            _cell("kept", part, part.kept),
            _cell("flipped", part, part.flipped),
            _cell("agreement", part, part.agreement, 0.5),
        ]
        for part in result.subsets
    ]
    flip = result.rules.flip_confidence
    return Page(
        f"Curating {result.source.name}",
        f"Of {result.pairs} rows {counts['kept']} were kept and {counts['flipped']} flipped; {result.written.rows} "
        f"{result.format} rows were written.",
        [
            Figure("The judge prefers the labelled response", result.agreement, even=0.5),
            *_consistency(result),
            Figure("The labelled response is the longer, before", result.longer_before, even=0.5),
            Figure("The better response is the longer, in what was written", result.longer_after, even=0.5),
            Figure("Margin of what was written, in log-odds", result.margin, "plain", 0.0),
        ],
        _unless_empty(
            Table("Every row's fate", ["fate", "rows", "share", "meaning"], fates),
            Table("By subset", ["subset", "rows", "kept", "flipped", "agreement"], subsets),
        ),
        [
            f"Kept from P = {result.rules.min_confidence:g}, "
            + ("never flipped" if flip is None else f"flipped from {flip:g}")
            + (", where both orders agree." if result.rules.consistent else ", whether orders agree or not.")
        ],
    )


def _percent(number: Number) -> str:
    if number.value is None:
        return "-"
    interval = "" if number.low is None else f" (95 %: {100 * number.low:.1f} to {100 * (number.high or 0.0):.1f})"
    return f"{number.value:.1%}{interval}"


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


_PAGES: dict[str, Callable[[Any], Page]] = {
    "versus": _versus,
    "gold": _gold,
    "calibrate": _calibrate,
    "rewardbench": _rewardbench,
    "tournament": _tournament,
    "curate": _curate,
}


def figures(laid_out: Page) -> Sequence[Figure]:
    """Give every figure of a page, in the order in which they stand."""
    return [
        *laid_out.figures,
        *(cell for table in laid_out.tables for row in table.rows for cell in row if isinstance(cell, Figure)),
    ]
