"""How results of evals are shown on a terminal: the headline, tables, and whose verdicts they are."""

from collections.abc import Callable
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from producer.cli.output import console, print_json, progress
from producer.evals.audit import Audit
from producer.evals.calibrating import Fitted
from producer.evals.curating import WRITTEN, Curated
from producer.evals.gold import Gold
from producer.evals.numbers import Number, Result
from producer.evals.rewardbench import SECTIONS, RewardBench, Section
from producer.evals.tournament import Round, Tournament
from producer.evals.versus import Versus

_WIDE = 240
_Result = TypeVar("_Result", bound=Result)


def conclude(result: _Result, show: Callable[[_Result], None], *, as_json: bool) -> None:
    """Print a result, as JSON or for a person; either way it says whose verdicts they are."""
    if as_json:
        print_json(result.model_dump(mode="json"))
        return
    show(result)
    _provenance(result)


def _provenance(result: Result) -> None:
    for code, pairs in result.without_verdict.items():
        _say(f"{pairs} of {result.pairs} pairs have no verdict ({code}) and are in no verdict's figure")
    for judge in result.judges:
        calibrated = "calibrated" if judge.calibration else "not calibrated"
        _say(
            f"Judge: {judge.model} ({judge.quantisation}), profile {judge.profile}, engine {judge.engine}, "
            f"T {judge.temperature:g} ({calibrated})"
        )
    if result.caveat:
        console.print(f"[bold yellow]Mind:[/] {escape(result.caveat)}", soft_wrap=True)


def _say(text: str, *, bold: bool = False) -> None:
    console.print(text, markup=False, soft_wrap=True, style="bold" if bold else None)


def _percent(number: Number) -> str:
    if number.value is None:
        return "-"
    interval = "" if number.low is None else f" ({100 * number.low:.1f} to {100 * (number.high or 0.0):.1f})"
    return f"{number.value:.1%}{interval}"


def _share(number: Number) -> str:
    return f"{_percent(number)}, {number.hits} of {number.n}" if number.n else "-"


def _points(number: Number | None) -> str:
    if number is None or number.value is None:
        return "-"
    return f"{number.value:.0f}" + ("" if number.low is None else f" ({number.low:.0f} to {number.high:.0f})")


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right")
    return table


def _show(table: Table) -> None:
    """Print a table: as wide as it is where nobody sees a screen's edge."""
    if console.is_terminal:
        console.print(table)
    else:
        Console(file=console.file, width=_WIDE, highlight=False, emoji=False).print(table)


def _consistency(consistent: Number, first_slot: Number, bias: Number) -> None:
    _say(f"Both orders name the same winner: {_share(consistent)}")
    _say(f"Of those that do not, preferred what came first: {_share(first_slot)}")
    if bias.value is not None:
        _say(f"Position bias: {bias.value:+.2f} log-odds towards what comes first")


def versus(result: Versus) -> None:
    """Show how a system does against a baseline."""
    _say(result.sentence, bold=True)
    _say(f"Win rate of {result.system} against {result.baseline}: {_percent(result.win_rate)}, n {result.win_rate.n}")
    if result.standard_error is not None:
        _say(f"  standard error {100 * result.standard_error:.2f} points; counted by winner {_rate(result)}")
    _say(f"  won {_share(result.wins)}; lost {_share(result.losses)}; tied {result.ties.hits}")
    adjusted = result.length_adjusted
    if adjusted is not None:
        _say(
            f"Length-adjusted win rate: {_percent(adjusted.win_rate)}; mean length {adjusted.length_system:.0f} "
            f"characters, baseline {adjusted.length_baseline:.0f}"
        )
        if adjusted.warning:
            console.print(f"  [yellow]warning[/]: {escape(adjusted.warning)}", soft_wrap=True)
    _consistency(result.consistent, result.first_slot, result.position_bias)
    if len(result.subsets) > 1:
        table = _table("subset", "prompts", "win rate", "orders agree")
        for part in result.subsets:
            table.add_row(escape(part.subset), str(part.win_rate.n), _percent(part.win_rate), _percent(part.consistent))
        _show(table)


def _rate(result: Versus) -> str:
    rates = (("", result.discrete_win_rate), (", with a tie where orders disagree ", result.agreed_win_rate))
    return "".join(f"{words}{rate:.1%}" for words, rate in rates if rate is not None)


def tell_round(seen: Round, left: int) -> None:
    """Tell how sure the ranking is after a round, on standard error."""
    above, below = seen.least_sure
    known = "of unknown reach" if seen.width is None else f"known to {seen.width:.0f} points"
    progress.print(
        f"Round {seen.number}: {seen.matches_so_far} matches; least sure is {above} above {below}, {known}; "
        f"{left} matches may follow",
        markup=False,
        soft_wrap=True,
    )


def tournament(result: Tournament) -> None:
    """Show a leaderboard."""
    table = _table("system", "rating", "rank", "matches", "won", "tied", "mean length", "at equal style")
    for each in result.standings:
        rank = f"{each.rank_low}" if each.rank_low == each.rank_high else f"{each.rank_low} to {each.rank_high}"
        table.add_row(
            escape(each.system),
            _points(each.rating),
            rank,
            str(each.rating.n),
            str(each.wins.hits),
            str(each.ties.hits),
            f"{each.mean_length:.0f}",
            _points(each.style_adjusted),
        )
    _show(table)
    for gap in result.gaps:
        real = "above" if gap.real else "not surely above"
        _say(f"{gap.above} is {real} {gap.below}: {_points(gap.difference)} points")
    if result.styles:
        effects = "; ".join(f"{each.style} {_points(each.points)}" for each in result.styles)
        _say(f"What more of a style is worth, in points for a difference of the usual size: {effects}")
    if result.unrated:
        _say(f"Not rated, for want of a verdict: {', '.join(result.unrated)}")
    _say(f"{result.pairs} of {result.matches_full} possible matches, schedule {result.schedule}")


def rewardbench(result: RewardBench) -> None:
    """Show a judge's RewardBench next to the published figures."""
    table = _table("section", "published protocol", "other placement", "both orders", "rows")
    for section in [*result.sections, result.overall]:
        table.add_row(*_section(section))
    _show(table)
    peers = _table("published", *SECTIONS, "Overall", "source")
    for each in result.published:
        peers.add_row(
            each.model,
            *(f"{score:.1f}" for score in each.sections.values()),
            f"{each.overall:.1f}",
            each.source.partition(",")[0],
        )
    _show(peers)
    _say(result.note)
    if result.unknown:
        rows = ", ".join(f"{name} ({count})" for name, count in result.unknown.items())
        _say(f"Rows of subsets that RewardBench does not have, in no score: {rows}")


def _section(section: Section) -> list[str]:
    other = section.other_placement
    return [
        section.section,
        _percent(section.published_protocol),
        "-" if other is None else f"{other:.1%}",
        _percent(section.both_orders),
        str(section.published_protocol.n),
    ]


def gold(result: Gold) -> None:
    """Show how a judge does against labels."""
    _say(f"Accuracy: {_share(result.accuracy)}", bold=True)
    _say(f"  order ab {_percent(result.accuracy_ab)}; order ba {_percent(result.accuracy_ba)}")
    _say(f"  right in both orders: {_share(result.accuracy_both)}")
    _consistency(result.consistent, result.first_slot, result.position_bias)
    _say(
        f"Krippendorff's alpha: with the labels {_plain(result.agreement)}, of the two orders "
        f"{_plain(result.agreement_of_orders)}"
    )
    if result.calibration is not None:
        found = result.calibration
        _say(
            f"Calibration: log-loss {_plain(found.log_loss.value)}, Brier {_plain(found.brier.value)}, expected error "
            f"{found.expected_error:.1%}"
        )
        table = _table("how sure", "verdicts", "mean", "right")
        for each in found.bins:
            span = f"{each.low:.0%} to {each.high:.0%}"
            table.add_row(span, str(each.accuracy.n), f"{each.confidence:.1%}", _percent(each.accuracy))
        _show(table)
    if len(result.subsets) > 1:
        table = _table("subset", "pairs", "accuracy", "orders agree")
        for part in result.subsets:
            table.add_row(escape(part.subset), str(part.accuracy.n), _percent(part.accuracy), _percent(part.consistent))
        _show(table)


def calibrate(result: Fitted) -> None:
    """Show a temperature and what it is worth."""
    found = result.temperature
    known = "" if found.low is None else f" ({found.low:.3f} to {found.high:.3f})"
    _say(f"Temperature: {found.value:.3f}{known}, {found.n} pairs", bold=True)
    if not known:
        _say("These pairs do not tell how far off it may be: give more of them")
    _say(f"Held-out log-loss: {result.log_loss_before:.4f} at T 1, {result.log_loss_after:.4f} at the fitted T")
    _say(f"Expected calibration error: {result.expected_error_before:.1%}, then {result.expected_error_after:.1%}")
    if not result.better:
        console.print("[yellow]It does not lower the held-out log-loss: leave T at 1.[/]")


def curate(result: Curated) -> None:
    """Show what became of preference rows."""
    written = sum(each.rows.hits or 0 for each in result.fates if each.fate in WRITTEN)
    _say(f"{written} of {result.pairs} rows written, as {result.written.rows} {result.format} rows", bold=True)
    table = _table("fate", "rows", "share", "meaning")
    table.columns[-1].justify = "left"
    for each in result.fates:
        if each.rows.hits:
            table.add_row(each.fate, str(each.rows.hits), f"{each.rows.value:.1%}", each.meaning)
    _show(table)
    _say(f"The judge prefers the labelled response: {_share(result.agreement)}")
    _say(f"Both orders name the same winner: {_share(result.consistent)}")
    _say(f"The better is the longer: {_percent(result.longer_before)} before, {_percent(result.longer_after)} after")


def audit(result: Audit) -> None:
    """Show what sways a judge."""
    for finding in result.findings:
        _say(finding, bold=True)
    _say(f"Flip rate of {result.own} rows: {_share(result.flip_rate)}")
    first, same = _percent(result.first_slot), _share(result.same_first)
    _say(f"  preferred what came first: of those {first}; of the same text twice {same}")
    _say(f"The longer won: {_share(result.longer_wins)}; the more formatted won: {_share(result.formatted_wins)}")
    if result.right_when_longer.n or result.right_when_shorter.n:
        _say(
            f"Right where the label is the longer: {_share(result.right_when_longer)}; "
            f"the shorter: {_share(result.right_when_shorter)}"
        )
    table = _table("change", "pairs", "preferred", "where orders agree", "what was changed")
    table.columns[-1].justify = "left"
    for each in result.controlled:
        preferred, agreeing = _percent(each.preferred), _percent(each.consistently)
        table.add_row(each.change, str(each.preferred.n), preferred, agreeing, each.meaning)
    _show(table)
