"""Files of JSON lines, as tests make and read them."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

PAIR = {"prompt": "Which?", "response_a": "this", "response_b": "that"}


def write(file: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """Write rows as JSON lines. Returns the file."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def read(file: Path) -> list[dict[str, Any]]:
    """Read JSON lines."""
    return [json.loads(line) for line in file.read_text().splitlines()]
