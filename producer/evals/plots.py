"""Intervals and reliability as inline SVG: sizes here, colours in the page's style."""

from collections.abc import Iterable

from markupsafe import Markup

from producer.evals.gold import Calibration
from producer.evals.layout import Figure, Table

Scale = tuple[float, float]

_WIDTH, _HEIGHT, _EDGE = 180, 18, 5
_SIDE = 240


def scale(figures: Iterable[object]) -> Scale:
    """Find the span that a set of figures is drawn over: 0 to 1 for shares, else as wide as they reach."""
    drawn = [figure for figure in figures if isinstance(figure, Figure)]
    if all(figure.unit == "share" for figure in drawn):
        return 0.0, 1.0
    reach = [
        value
        for figure in drawn
        for value in (figure.number.value, figure.number.low, figure.number.high, figure.even)
        if value is not None
    ]
    low, high = min(reach, default=0.0), max(reach, default=1.0)
    room = (high - low) * 0.05 or 1.0
    return low - room, high + room


def scales(table: Table) -> list[Scale]:
    """Find the scale of each of a table's columns, once for all of its cells."""
    return [scale(column) for column in zip(*table.rows, strict=True)]


def interval(figure: Figure, over: Scale) -> Markup:
    """Draw a figure: a dot for the value, a bar for the interval, a line where nothing would be preferred.

    What has neither an interval nor a scale of its own is not drawn.
    """
    number = figure.number
    if number.value is None or (number.low is None and figure.unit != "share"):
        return Markup()
    middle = _HEIGHT / 2
    parts = [f'<line class="axis" x1="{_EDGE}" x2="{_WIDTH - _EDGE}" y1="{middle}" y2="{middle}"/>']
    if figure.even is not None:
        even = _x(figure.even, over)
        parts.append(f'<line class="even" x1="{even:.1f}" x2="{even:.1f}" y1="1" y2="{_HEIGHT - 1}"/>')
    if number.low is not None and number.high is not None:
        left, right = _x(number.low, over), _x(number.high, over)
        parts.append(
            f'<rect class="span" x="{left:.1f}" y="{middle - 3}" width="{max(right - left, 1):.1f}" height="6" rx="3"/>'
        )
    parts.append(f'<circle class="dot" cx="{_x(number.value, over):.1f}" cy="{middle}" r="4"/>')
    return _svg(parts, _WIDTH, _HEIGHT, "")


def _x(value: float, over: Scale) -> float:
    low, high = over
    along = min(max((value - low) / (high - low), 0.0), 1.0)
    return _EDGE + along * (_WIDTH - 2 * _EDGE)


def reliability(found: Calibration) -> Markup:
    """Draw how often verdicts were right against how sure they were; a judge that means what it says is on the line."""
    edge, inner = 34, _SIDE - 44

    def at(sure: float, right: float) -> tuple[float, float]:
        return edge + (sure - 0.5) * 2 * inner, 10 + (1.0 - right) * inner

    left, bottom = at(0.5, 0.0)
    end, top = at(1.0, 1.0)
    start_y = at(0.5, 0.5)[1]
    parts = [
        f'<rect class="frame" x="{left}" y="{top}" width="{inner}" height="{inner}"/>',
        f'<line class="even" x1="{left}" y1="{start_y}" x2="{end}" y2="{top}"/>',
    ]
    most = max(each.accuracy.n for each in found.bins)
    for each in found.bins:
        low, high = each.accuracy.low or 0.0, each.accuracy.high or 0.0
        x, y = at(each.confidence, each.accuracy.value or 0.0)
        parts.append(
            f'<line class="span" x1="{x:.1f}" x2="{x:.1f}" y1="{at(0.5, low)[1]:.1f}" y2="{at(0.5, high)[1]:.1f}"/>'
            f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="{2 + 4 * (each.accuracy.n / most) ** 0.5:.1f}"/>'
        )
    parts += [
        f'<text x="{left - 4}" y="{top + 4}" text-anchor="end">1</text>',
        f'<text x="{left - 4}" y="{bottom}" text-anchor="end">0</text>',
        f'<text x="{left}" y="{bottom + 14}">0.5</text>',
        f'<text x="{end}" y="{bottom + 14}" text-anchor="end">1</text>',
        f'<text x="{(left + end) / 2}" y="{bottom + 14}" text-anchor="middle">how sure</text>',
        f'<text transform="translate({left - 16} {(top + bottom) / 2}) rotate(-90)" text-anchor="middle">right</text>',
    ]
    return _svg(parts, _SIDE, _SIDE - 10, "How often verdicts were right against how sure they were")


def _svg(parts: Iterable[str], width: int, height: int, label: str) -> Markup:
    about = f'role="img" aria-label="{label}"' if label else 'aria-hidden="true"'
    svg = f'<svg class="plot" width="{width}" height="{height}" viewBox="0 0 {width} {height}" {about}>'
    return Markup(svg + "".join(parts) + "</svg>")  # noqa: S704 - numbers and words of ours alone
