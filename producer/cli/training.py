"""Training files: preference rows as JSON lines or Parquet, all of a file or none of it."""

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from producer.cli import inputs
from producer.cli.output import write_bytes
from producer.evals.curating import File
from schemas.problems import BAD_OUTPUT_FILE, Problem


def write_training(rows: Sequence[dict[str, Any]], path: Path) -> File:
    """Write rows in the form that the name of the file says. The same rows are the same bytes.

    A column of Parquet has one type; one whose values are of several is written as texts of JSON.

    Raises:
        Problem: the file cannot be written, or needs a library that is not installed.
    """
    if path.suffix == ".parquet":
        data = _parquet(rows, path)
    else:
        data = b"".join(_json(row).encode("utf-8", "replace") + b"\n" for row in rows)
    write_bytes(data, path)
    return File(name=path.name, sha256=hashlib.sha256(data).hexdigest(), rows=len(rows))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _parquet(rows: Sequence[dict[str, Any]], path: Path) -> bytes:
    try:
        import pyarrow  # noqa: ICN001, PLC0415 - an extra, and slow to load
        from pyarrow import parquet  # noqa: PLC0415 - the same
    except ImportError:
        raise Problem(
            BAD_OUTPUT_FILE, f'{path}: a Parquet file needs pyarrow: pip install "nightcourt[evals]".'
        ) from None

    def written(column: Any) -> bytes:
        out = io.BytesIO()
        parquet.write_table(column, out)
        return out.getvalue()

    columns = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        try:
            columns[name] = pyarrow.array(values)
            if pyarrow.types.is_nested(columns[name].type):
                written(pyarrow.table({"": columns[name]}))  # objects without members can be made, and not written
        except (pyarrow.ArrowException, OverflowError):
            columns[name] = pyarrow.array([None if value is None else _json(value) for value in values])
    return written(pyarrow.table(columns))


def described(path: Path, rows: int) -> File:
    """Describe a file that was read, by its bytes as they lie there."""
    with inputs.raw(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return File(name=path.name, sha256=digest, rows=rows)
