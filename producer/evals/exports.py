"""Rows in the forms that other tools read: CSV, AlpacaEval's annotations, evalica's comparisons."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from producer.evals.rows import COLUMNS, Judged, Pair, Row, answer

_SIDES = {"A": "left", "B": "right", "tie": "tie"}
CSV_COLUMNS = tuple(name for name in COLUMNS if name not in {"style_a", "style_b", "systems"})
"""What a cell can hold: `systems` is the two columns `system_a` and `system_b`."""


def as_csv(rows: Sequence[Row]) -> Iterator[bytes]:
    """Write a header and a line for each row, with all columns that numbers select by."""
    yield _line(CSV_COLUMNS)
    for row in rows:
        yield _line([getattr(row, name) for name in CSV_COLUMNS])


def as_json_lines(rows: Sequence[Row]) -> Iterator[bytes]:
    """Write an object a line, with all columns."""
    for row in rows:
        yield json.dumps(row.as_dict(), ensure_ascii=False).encode("utf-8", "replace")


def as_evalica(rows: Sequence[Row]) -> Iterator[bytes]:
    """Write `left,right,winner` as `evalica -i` reads it; what has no verdict is left out."""
    yield _line(("left", "right", "winner"))
    for row in rows:
        if row.winner is not None:
            yield _line((row.system_a, row.system_b, _SIDES[row.winner]))


def as_annotations(judged: Judged, pairs: Mapping[str, Pair]) -> Iterator[bytes]:
    """Write AlpacaEval's annotations: `preference` is 1 where output_1 is better for sure and 2 where output_2 is.

    Output 1 is response A, the baseline's. A pair without a verdict has the preference null, as there.

    Args:
        judged: the rows.
        pairs: their texts, by id.
    """
    annotator = judged.judges[0].model if judged.judges else None
    annotations = [_annotation(row, pairs[row.id], annotator, judged.caveat()) for row in judged.rows]
    yield from json.dumps(annotations, ensure_ascii=False, indent=1).encode("utf-8", "replace").split(b"\n")


def _annotation(row: Row, pair: Pair, annotator: str | None, caveat: str | None) -> dict[str, Any]:
    turns = pair.prompt if isinstance(pair.prompt, list) else [{"content": pair.prompt}]
    return {
        "instruction": "\n\n".join(turn["content"] for turn in turns),
        "output_1": answer(pair.response_a),
        "generator_1": row.system_a,
        "output_2": answer(pair.response_b),
        "generator_2": row.system_b,
        "dataset": row.subset,
        "annotator": annotator,
        "preference": None if row.preference_b is None else 1.0 + row.preference_b,
        "caveat": caveat,
    }


def _line(cells: Sequence[object]) -> bytes:
    out = io.StringIO()
    csv.writer(out, lineterminator="").writerow(cells)
    return out.getvalue().encode("utf-8", "replace")
