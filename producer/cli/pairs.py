"""Pair files: JSON lines with a prompt, two responses and, where known, the gold label."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError
from pydantic_core import from_json

from schemas.comparison import ComparisonRequest
from schemas.lines import BadLineError, as_given, subset_of, unwrap
from schemas.problems import BAD_INPUT_FILE, Problem, invalid_request


@dataclass(frozen=True, slots=True)
class Pair:
    """A comparison to file, and what is known of it beforehand."""

    request: ComparisonRequest
    label: Literal["A", "B"] | None
    subset: str | None


def read_pairs(path: Path, **options: Any) -> list[Pair]:
    """Read a pair file: one JSON object, or one a line. `-` is standard input.

    A row has any form that a line of a batch may have; what stands beside its comparison is not sent.

    Args:
        path: the file.
        options: fields of a comparison that hold where a row says nothing else.

    Raises:
        Problem: the file cannot be read, or a line is no pair; the detail names line and field. Nothing is filed.
    """
    try:
        raw = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        raise Problem(BAD_INPUT_FILE, f"{path}: {error.strerror}.") from None
    rows = _rows(path, raw)
    if not rows:
        raise Problem(BAD_INPUT_FILE, f"{path}: there is nothing in it. Give one JSON object a line.")
    return [_pair(path, number, row, options) for number, row in rows]


def _rows(path: Path, raw: bytes) -> list[tuple[int, Any]]:
    raw = raw.removeprefix(b"\xef\xbb\xbf")
    try:
        return [(1, from_json(raw))]  # one object, however it is laid out
    except ValueError:
        pass
    rows = []
    for number, line in enumerate(raw.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append((number, from_json(line)))
        except ValueError as error:
            # The parser saw this line alone, and calls it line 1.
            why = str(error).replace(" at line 1 column ", " at column ")
            raise Problem(BAD_INPUT_FILE, f"{path}, line {number}: {why}.") from None
    return rows


def _pair(path: Path, number: int, row: Any, options: dict[str, Any]) -> Pair:
    if not isinstance(row, dict):
        raise Problem(
            BAD_INPUT_FILE,
            f"{path}, line {number}: a row is a JSON object with prompt, response_a, response_b.",
        )
    try:
        line = unwrap(row)
    except BadLineError as error:
        raise Problem(BAD_INPUT_FILE, f"{path}, line {number}: {error}.") from None
    given = {name: value for name, value in options.items() if value is not None and name not in line.request}
    try:
        request = ComparisonRequest.model_validate({**line.request, **given})
    except ValidationError as error:
        problem = invalid_request(as_given(error.errors(include_url=False, include_input=False), row, line))
        raise Problem(BAD_INPUT_FILE, f"{path}, line {number}: {problem.detail}", errors=problem.errors) from None
    return Pair(request=request, label=line.label, subset=subset_of(row))


def example_file() -> Path:
    """Find the examples that come with the project, in a checkout or in an installed package."""
    here = Path(__file__).resolve().parent
    for candidate in (here.parents[1] / "examples" / "first-docket.jsonl", here / "first-docket.jsonl"):
        if candidate.is_file():
            return candidate
    raise Problem(BAD_INPUT_FILE, "The examples are missing from this installation; install the package again.")
