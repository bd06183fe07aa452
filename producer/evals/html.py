"""A report as one HTML page that needs nothing else: no network, no framework, the pairs behind each number in it.

Text of others enters the page in two ways alone: escaped by Jinja, or as JSON in which no tag can begin; the script
puts it on the screen as text. The page's own policy lets no script but this one run, and nothing be fetched.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache, partial
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from producer.evals import plots
from producer.evals.layout import Figure, counted_in, figures, interval, said
from producer.evals.numbers import Number, Result, select
from producer.evals.pages import page
from producer.evals.rows import Judged, Pair, Row, subsets

PAIRS = 200
"""Pairs that a page holds, the hardest first, beside a few of each number."""
TEXT_BYTES = 2_000_000
"""After as many bytes of text no further pair is taken."""
_EACH = 3
"""Rows of each number that are in the page, of those that count and of the others, whatever is left out."""
_LONG = 20_000
"""Characters of one text that a page holds."""
_SHOWN = (
    "id", "subset", "status", "error", "system_a", "system_b", "label", "winner", "probability_a", "consistent",
    "position_bias", "vote_ab", "vote_ba", "log_odds_ab", "log_odds_ba", "round", "fate",
)  # fmt: skip


def render(result: Result, judged: Judged, pairs: Mapping[str, Pair], *, most: int = PAIRS) -> bytes:
    """Write a result as a page. The same result and texts give the same bytes.

    Args:
        result: of any eval.
        judged: the rows that it was counted from.
        pairs: their texts, by id; a row without one is shown without.
        most: pairs in the page, beside a few of each number.
    """
    laid_out = page(result)
    drawn = figures(laid_out)
    numbers = {id(figure): index for index, figure in enumerate(drawn)}
    shown = _choose(judged.rows, pairs, [figure.number for figure in drawn], most)
    names = set(_SHOWN).union(*({*figure.number.where, *(figure.number.hit or {})} for figure in drawn))
    data = {
        "kind": result.kind,
        "total": len(judged.rows),
        "numbers": [_number(figure) for figure in drawn],
        "rows": [_row(row, pairs.get(row.id), sorted(names)) for row in shown],
    }
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("producer.evals", "page"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    text = environment.get_template("report.html.j2").render(
        page=laid_out,
        result=result,
        Figure=Figure,
        number_of=lambda figure: numbers[id(figure)],
        first_figure=lambda row: next((cell for cell in row if isinstance(cell, Figure)), None),
        said=said,
        counted_in=partial(counted_in, result),
        interval=interval,
        plot=plots.interval,
        scale=plots.scale,
        scales=plots.scales,
        reliability=plots.reliability,
        sort_key=sort_key,
        left_out=len(judged.rows) - len(shown),
        data=Markup(as_script_data(data)),  # noqa: S704 - no tag can begin in it, see there
        style=Markup(_asset("report.css")),  # noqa: S704 - ours
        script=Markup(_asset("report.js")),  # noqa: S704 - ours
        script_hash=_hash(_asset("report.js")),
    )
    return text.encode("utf-8", "replace")


def as_script_data(data: Any) -> str:
    """Write JSON that may stand in a script element: whatever texts hold, no tag and no comment begins or ends."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@cache
def _asset(name: str) -> str:
    return resources.files("producer.evals").joinpath("page", name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _choose(rows: Sequence[Row], pairs: Mapping[str, Pair], numbers: Sequence[Number], most: int) -> list[Row]:
    """Pick the rows that the page holds: a few of each number, then the hardest, until it is full.

    Those of a number are taken while there is room, too: a tournament of many systems has hundreds of numbers.
    """
    ordered = sorted(rows, key=_hardness)
    place = {id(row): index for index, row in enumerate(ordered)}
    picked: dict[int, Row] = {}
    size = 0
    parts = subsets(ordered)
    for number in numbers:
        if size >= TEXT_BYTES:
            break
        name = number.where.get("subset")
        # There are many numbers of one subset each: to look for each among all rows would take minutes.
        among = select(parts[name] if isinstance(name, str) else ordered, number.where)
        hits = select(among, number.hit) if number.hit is not None else among
        counted = {id(row) for row in hits}
        others = [row for row in among if id(row) not in counted]
        for row in [*hits[:_EACH], *others[:_EACH]]:
            if id(row) not in picked and size < TEXT_BYTES:
                picked[id(row)] = row
                size += _size(row, pairs)
    for row in ordered:
        if len(picked) >= most or size >= TEXT_BYTES:
            break
        if id(row) not in picked:
            picked[id(row)] = row
            size += _size(row, pairs)
    return sorted(picked.values(), key=lambda row: place[id(row)])


def _hardness(row: Row) -> tuple[int, float]:
    """Order rows: orders that disagree, by how far apart; wrong verdicts, the surest first; then the least sure."""
    if row.consistent is False:
        return 0, -abs(row.position_bias or 0.0)
    if row.correct is False:
        return 1, -(row.confidence or 0.0)
    if row.decided:
        return 2, row.confidence or 1.0
    return 3, 0.0


def _texts(pair: Pair) -> list[Any]:
    return [pair.prompt, pair.response_a, pair.response_b]


def _size(row: Row, pairs: Mapping[str, Pair]) -> int:
    pair = pairs.get(row.id)
    if pair is None:
        return 0
    return sum(min(len(turn["content"]), _LONG) for text in _texts(pair) for turn in _turns(text))


def _turns(text: Any) -> list[dict[str, str]]:
    """Give a text or a conversation as turns; a plain text has no role."""
    if isinstance(text, str):
        return [{"role": "", "content": text}]
    return [{"role": turn["role"], "content": turn["content"]} for turn in text]


def _cut(text: Any) -> list[dict[str, str]]:
    return [
        turn
        if len(turn["content"]) <= _LONG
        else {**turn, "content": f"{turn['content'][:_LONG]}\n[{len(turn['content']) - _LONG} more characters]"}
        for turn in _turns(text)
    ]


def _row(row: Row, pair: Pair | None, names: Sequence[str]) -> dict[str, Any]:
    columns = {name: getattr(row, name) for name in names}
    return columns | {"texts": None if pair is None else [_cut(text) for text in _texts(pair)]}


def _number(figure: Figure) -> dict[str, Any]:
    number = figure.number
    return {
        "label": figure.label,
        "value": said(figure),
        "n": number.n,
        "where": number.where,
        "hits": number.hits,
        "hit": number.hit,
    }


def sort_key(cell: Any) -> str:
    """Give what a cell is sorted by: a number where it is one, else its text."""
    if isinstance(cell, Figure):
        cell = cell.number.value
    return "" if cell is None else str(cell)
