"""How results of evals are shown on a terminal: what their page says above the pairs, and whose verdicts they are."""

from dataclasses import replace

from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from producer.cli.output import WIDE, console, print_json, progress, screen
from producer.evals import layout, pages
from producer.evals.layout import Cell, Figure
from producer.evals.numbers import Result
from producer.evals.tournament import Round

_NARROW = 80


def conclude(result: Result, *, as_json: bool) -> None:
    """Print a result, as JSON or for a person; either way it says whose verdicts they are."""
    if as_json:
        print_json(result.model_dump(mode="json"))
        return
    laid_out = pages.page(result)
    _say(laid_out.title, bold=True)
    if laid_out.headline:
        _say(laid_out.headline, bold=True)
    _show_figures([each for each in laid_out.figures if each.number.n])
    laid_out = replace(laid_out, tables=[each for each in laid_out.tables if not each.looked_up])
    for each in laid_out.tables:
        _show_table(each)
    console.print()
    if any(layout.interval(each) for each in layout.figures(laid_out) if not each.brief):
        _say("Intervals, in brackets, are 95 %.")
    for note in laid_out.notes:
        _say(note)
    _provenance(result)


def _show_figures(figures: list[Figure]) -> None:
    table = _table("figure", "value")
    table.show_header = False
    for each in figures:
        number = each.number
        of = f"n {number.n}" if number.hits is None else f"{number.hits} of {number.n}"
        table.add_row(escape(each.label), escape(f"{_said(each)}, {of}. {each.note}".removesuffix(". ")))
    screen(console).print(table)


def _show_table(laid_out: layout.Table) -> None:
    """Print a table; where it is too wide for the screen, intervals stand below their numbers, and names are folded."""
    console.print()
    _say(laid_out.title, bold=True)
    on = screen(console)
    for between in (" ", "\n"):
        table = _table(*laid_out.columns)
        for column, cells in zip(table.columns, zip(*laid_out.rows, strict=True), strict=True):
            if not any(isinstance(cell, str) for cell in cells):
                column.header = str(column.header).replace(" ", between)
                # Where there is too little room for them, numbers too are folded: a cut one would be another.
                column.justify, column.no_wrap = "right", on.width >= _NARROW
        for row in laid_out.rows:
            table.add_row(*(_cell(cell, between) for cell in row))
        if Measurement.get(on, on.options.update(width=WIDE), table).maximum <= on.width:
            break
    on.print(table)
    if laid_out.note:
        _say(laid_out.note)


def _cell(cell: Cell, between: str) -> str:
    if isinstance(cell, Figure):
        return str(cell.number.hits) if cell.brief else _said(cell, between)
    return "-" if cell is None else escape(str(cell))


def _said(figure: Figure, between: str = " ") -> str:
    if figure.number.value is None:
        return "-"
    interval = layout.interval(figure).replace("%", "")
    return layout.said(figure) + (f"{between}({interval})" if interval else "")


def _provenance(result: Result) -> None:
    for code, pairs in result.without_verdict.items():
        _say(f"{pairs} of {result.pairs} pairs have no verdict ({code}) and {layout.counted_in(result, code)}")
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


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold")
    return table


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
