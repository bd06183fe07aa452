"""What a report's page shows of each eval: a headline, figures, and tables, all of numbers that name their rows."""

from collections.abc import Callable
from typing import Any

from producer.evals.audit import Audit
from producer.evals.calibrating import Fitted
from producer.evals.curating import Curated
from producer.evals.gold import Gold
from producer.evals.layout import (
    Cell,
    Figure,
    Page,
    Table,
    bias,
    by_subset,
    consistency,
    over,
    percent,
    plain,
    unless_empty,
)
from producer.evals.numbers import Number, Result
from producer.evals.rewardbench import SECTIONS, RewardBench, Section
from producer.evals.tournament import Tournament
from producer.evals.versus import Versus


def page(result: Result) -> Page:
    """Lay out a result.

    Raises:
        KeyError: its kind has no page.
    """
    return _PAGES[result.kind](result)


def _versus(result: Versus) -> Page:
    figures = [
        Figure(f"Win rate of {result.system}", result.win_rate, even=0.5, note="Mean of P(better)."),
        Figure("Won", result.wins),
        Figure("Lost", result.losses),
        Figure("Tied", result.ties),
        *consistency(result),
        bias(result.position_bias),
    ]
    decided = result.win_rate
    error = None if result.standard_error is None else 100 * result.standard_error
    figures += [
        Figure("Standard error of the win rate, in points", over(error, decided), "plain"),
        Figure("Counted by winners, a tie as half", over(result.discrete_win_rate, decided), even=0.5),
        Figure(
            "The same, with a tie wherever orders disagree",
            over(result.agreed_win_rate, result.consistent),
            even=0.5,
        ),
    ]
    adjusted = result.length_adjusted
    if adjusted is not None:
        warning = f"Warning: {adjusted.warning}." if adjusted.warning else ""
        adjusted_rate = Figure("Length-adjusted win rate", adjusted.win_rate, even=0.5, note=warning)
        figures.insert(1, adjusted_rate)
        figures += [
            Figure(f"Mean characters of {result.system}", over(adjusted.length_system, decided), "points"),
            Figure(f"Mean characters of {result.baseline}", over(adjusted.length_baseline, decided), "points"),
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
    tables = unless_empty(by_subset(["subset", "prompts", "win rate", "won", "orders agree"], rows))
    return Page(f"{result.system} against {result.baseline}", result.sentence, figures, tables)


def _cell(name: str, part: Any, number: Number, even: float | None = None) -> Figure:
    return Figure(f"{part.subset}: {name}", number, even=even)


def _gold(result: Gold) -> Page:
    figures = [
        Figure("Accuracy", result.accuracy, even=0.5, note="The verdict of both orders is the label."),
        Figure("Accuracy in order ab alone", result.accuracy_ab, even=0.5),
        Figure("Accuracy in order ba alone", result.accuracy_ba, even=0.5),
        Figure("Right in both orders", result.accuracy_both),
        *consistency(result),
        bias(result.position_bias),
    ]
    figures += [
        Figure(
            "Krippendorff's alpha, with the labels",
            over(result.agreement, result.accuracy),
            "plain",
            0.0,
            "1 is agreement, 0 what chance would give.",
        ),
        Figure(
            "Krippendorff's alpha, of the two orders",
            over(result.agreement_of_orders, result.consistent),
            "plain",
            0.0,
        ),
    ]
    tables = [
        by_subset(
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
        figures.append(Figure("Expected calibration error", over(found.expected_error, found.log_loss)))
        bins: list[list[Cell]] = [
            [
                f"{each.low:.0%} to {each.high:.0%}",
                each.accuracy.n,
                Figure(f"Mean of {each.low:.0%} to {each.high:.0%}", over(each.confidence, each.accuracy)),
                Figure(f"Sure by {each.low:.0%} to {each.high:.0%}: right", each.accuracy),
            ]
            for each in found.bins
        ]
        tables.append(Table("Is it as right as it is sure?", ["how sure", "verdicts", "mean", "right"], bins))
    headline = f"The judge agrees with {percent(result.accuracy)} of {result.accuracy.n} labels."
    return Page("A judge against gold labels", headline, figures, unless_empty(*tables), reliability=found)


def _calibrate(result: Fitted) -> Page:
    better = "lowers" if result.better else "does not lower"
    headline = (
        f"T = {plain(result.temperature.value)} {better} the held-out log-loss: {result.log_loss_before:.4f} at T 1, "
        f"{result.log_loss_after:.4f} at the fitted T."
    )
    fitted = result.temperature
    before, after = over(result.log_loss_before, fitted), over(result.log_loss_after, fitted)
    return Page(
        "Calibration of a judge",
        headline,
        [
            Figure("Temperature", fitted, "plain", 1.0, "1 leaves the model's odds as they are."),
            Figure("Log-loss at T 1", before, "plain", note="A coin's is 0.693."),
            Figure("Log-loss at the fitted T, held out", after, "plain"),
            Figure("Expected calibration error at T 1", over(result.expected_error_before, fitted)),
            Figure("Expected calibration error, held out", over(result.expected_error_after, fitted)),
        ],
        notes=[
            *(["These pairs do not tell how far off it may be: give more of them."] if fitted.low is None else []),
            *([] if result.better else ["Leave T at 1."]),
        ],
    )


def _rewardbench(result: RewardBench) -> Page:
    sections: list[list[Cell]] = [_section(each) for each in [*result.sections, result.overall]]
    subsets: list[list[Cell]] = [
        [
            each.subset,
            each.published_protocol.n,
            _cell("published protocol", each, each.published_protocol, 0.5),
            _cell("both orders", each, each.both_orders, 0.5),
            _cell("orders agree", each, each.consistent),
        ]
        for each in result.subsets
    ]
    published: list[list[Cell]] = [
        [each.model, *each.sections.values(), each.overall, each.source.partition(",")[0]] for each in result.published
    ]
    sources = "; ".join(dict.fromkeys(each.source for each in result.published))
    unknown = ", ".join(f"{name} ({count})" for name, count in result.unknown.items())
    protocols = ["published protocol", "both orders"]
    return Page(
        "RewardBench",
        f"Overall {percent(result.overall.published_protocol)} by the published protocol, "
        f"{percent(result.overall.both_orders)} in both orders.",
        [
            Figure("Overall, published protocol", result.overall.published_protocol, even=0.5),
            Figure("Overall, both orders", result.overall.both_orders, even=0.5),
        ],
        unless_empty(
            Table("Sections", ["section", "rows", *protocols, "other placement"], sections),
            Table("Subsets", ["subset", "rows", *protocols, "orders agree"], subsets),
            Table(
                "Published figures",
                ["model", *SECTIONS, "overall", "source"],
                published,
                f"{result.note} Sources: {sources}.",
            ),
        ),
        [f"Rows of subsets that RewardBench does not have, in no score: {unknown}."] if unknown else [],
    )


def _section(section: Section) -> list[Cell]:
    return [
        section.section,
        section.published_protocol.n,
        Figure(f"{section.section}: published protocol", section.published_protocol, even=0.5),
        Figure(f"{section.section}: both orders", section.both_orders, even=0.5),
        Figure(
            f"{section.section}: other placement",
            over(section.other_placement, section.published_protocol),
            even=0.5,
        ),
    ]


def _tournament(result: Tournament) -> Page:
    standings: list[list[Cell]] = [
        [
            each.system,
            Figure(f"{each.system}: rating", each.rating, "points", 1000.0),
            str(each.rank_low) if each.rank_low == each.rank_high else f"{each.rank_low} to {each.rank_high}",
            each.rating.n,
            Figure(f"{each.system}: won", each.wins, brief=True),
            Figure(f"{each.system}: tied", each.ties, brief=True),
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
        [each.style, Figure(f"More {each.style}", each.points, "points", 0.0)]
        for each in result.styles
        if each.points.value is not None
    ]
    columns = ["system", "rating", "rank", "matches", "won", "tied", "mean length", "at equal style"]
    first = result.standings[0]
    place = "first" if first.rank_high == 1 else "rated highest, though not surely first,"
    return Page(
        "Tournament",
        f"{first.system} is {place} of {len(result.standings)} systems, by {result.decided} matches.",
        [],
        unless_empty(
            Table("Leaderboard", columns, standings, "Mean 1000; 400 points are odds of ten to one."),
            Table("Between neighbours", ["above", "below", "points", "surely"], gaps),
            Table("Meetings", ["A", "B", "matches", "A won", "tied"], meetings, looked_up=True),
            Table("What a style is worth", ["more of", "points"], styles, "For a difference of the usual size."),
        ),
        [
            f"{result.pairs} of {result.matches_full} possible matches, schedule {result.schedule}.",
            *([f"Not rated, for want of a verdict: {', '.join(result.unrated)}."] if result.unrated else []),
            *(
                [f"No more matches after ten or more without any verdict: {', '.join(result.given_up)}."]
                if result.given_up
                else []
            ),
        ],
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
        f"Of {result.pairs} rows, {counts['kept']} were kept and {counts['flipped']} flipped. Rows written, as "
        f"{result.format}: {result.written.rows}.",
        [
            Figure("The judge prefers the labelled response", result.agreement, even=0.5),
            *consistency(result),
            Figure("The labelled response is the longer, before", result.longer_before, even=0.5),
            Figure("The better response is the longer, in what was written", result.longer_after, even=0.5),
            Figure("Margin of what was written, in log-odds", result.margin, "plain", 0.0),
        ],
        unless_empty(
            Table("Every row's fate", ["fate", "rows", "share", "meaning"], fates),
            by_subset(["subset", "rows", "kept", "flipped", "agreement"], subsets),
        ),
        [
            f"Kept from P = {result.rules.min_confidence:g}, "
            + ("never flipped" if flip is None else f"flipped from {flip:g}")
            + (", where both orders agree." if result.rules.consistent else ", whether orders agree or not.")
        ],
    )


def _audit(result: Audit) -> Page:
    changes: list[list[Cell]] = [
        [
            each.change,
            each.preferred.n,
            Figure(f"{each.change}: preferred", each.preferred, even=0.5),
            Figure(f"{each.change}: preferred, orders agreeing", each.consistently, even=0.5),
            "-" if each.biased is None else ("yes" if each.biased else "no"),
            each.meaning,
        ]
        for each in result.controlled
    ]
    columns = ["change", "pairs", "preferred", "where orders agree", "surely biased", "what was changed"]
    return Page(
        "What sways the judge",
        " ".join(result.findings),
        [
            Figure("Flip rate: another winner in the other order", result.flip_rate),
            Figure("Of those: preferred what came first", result.first_slot, even=0.5),
            Figure("The same text twice: preferred what came first", result.same_first, even=0.5),
            bias(result.position_bias),
            Figure("The longer response won", result.longer_wins, even=0.5, note="Longer may also be better."),
            Figure("The more formatted response won", result.formatted_wins, even=0.5, note="It may also be better."),
            Figure("Right where the label is the longer", result.right_when_longer),
            Figure("Right where the label is the shorter", result.right_when_shorter),
        ],
        unless_empty(
            Table(
                "Changes that say nothing new",
                columns,
                changes,
                "Response A is a response of your rows, B the same with one change. A judge that it does not sway "
                "prefers either as often.",
            )
        ),
        [
            *([] if result.flip_rate.n else ["No row was asked in both orders, so nothing is known of flips."]),
            f"{result.own} of your rows, and {result.pairs - result.own} pairs made from them.",
        ],
    )


_PAGES: dict[str, Callable[[Any], Page]] = {
    "versus": _versus,
    "gold": _gold,
    "calibrate": _calibrate,
    "rewardbench": _rewardbench,
    "tournament": _tournament,
    "curate": _curate,
    "audit": _audit,
}
