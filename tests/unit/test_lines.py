"""Lines that are no comparison: what is wrong is told by the columns that the line has."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.rows import write

from producer.cli.pairs import read_pairs
from schemas.lines import BadLineError, read_line
from schemas.problems import Problem

USER = {"role": "user", "content": "Which?"}
SAID = {"role": "assistant", "content": "this"}
BLANK = {"role": "user", "content": ""}


def refused(row: dict[str, Any]) -> BadLineError:
    """Why a row is no comparison."""
    with pytest.raises(BadLineError) as told:
        read_line(json.dumps(row).encode())
    return told.value


@pytest.mark.parametrize(
    ("row", "column", "message"),
    [
        ({"prompt": "x", "chosen": "y"}, "rejected", "Field required"),
        ({"prompt": "x", "rejected": "y"}, "chosen", "Field required"),
        ({"chosen": "x y"}, "rejected", "Field required"),
        ({"prompt": "x", "chosen": None, "rejected": "z"}, "chosen", "Input should be text"),
        ({"prompt": "x", "chosen": "y", "rejected": 3}, "rejected", "Input should be text"),
        ({"prompt": "x", "chosen": "y\0", "rejected": "z"}, "chosen", "contains a NUL"),
        ({"prompt": "x", "chosen": "y", "rejected": [SAID, SAID]}, "rejected", "turns must alternate"),
        ({"prompt": "x", "chosen": "y", "rejected": [{**SAID, "content": 3}]}, "rejected[0].content", "valid string"),
        ({"prompt": None, "chosen": 3, "rejected": "z"}, "prompt", "is missing"),
        ({"prompt": "", "chosen": "y", "rejected": "z"}, "prompt", "at least 1 character"),
        ({"prompt": [BLANK], "chosen": "y", "rejected": "z"}, "prompt[0].content", "at least 1 character"),
        ({"chosen": [BLANK, SAID], "rejected": [BLANK, USER]}, "chosen[0].content", "at least 1 character"),
        ({"chosen": [USER, SAID], "rejected": [USER, {**SAID, "content": 3}]}, "rejected[1].content", "valid string"),
        ({"prompt": "x", "response_a": "y", "chosen": "z"}, "response_b", "Field required"),
        ({"prompt": "x", "response_a": "y", "response_b": None}, "response_b", "Input should be text"),
    ],
    ids=str,
)
def test_the_column_at_fault_is_named(row: dict[str, Any], column: str, message: str, tmp_path: Path):
    """In a batch and by `submit`: responses of a pair, chosen and rejected of a preference row, whichever is A."""
    told = refused({**row, "custom_id": "seven"})
    assert told.param == column
    assert str(told).startswith(f"{column}: ")
    assert message in str(told)
    with pytest.raises(Problem, match=message) as said:
        read_pairs(write(tmp_path / "pairs.jsonl", [row]))
    assert f"line 1: {column}: " in said.value.detail


@pytest.mark.parametrize(
    ("named", "name"), [({"custom_id": "n"}, "n"), ({"id": 7}, "7"), ({"custom_id": "n\0"}, None), ({}, None)], ids=str
)
def test_what_lacks_a_column_has_its_name(named: dict[str, Any], name: str | None):
    """A batch that skips bad lines gives a result for each, by the name that the line has."""
    assert refused({"prompt": "x", "chosen": "y", **named}).custom_id == name


def test_a_request_may_have_other_columns():
    """What stands beside its body does not make a preference row of it."""
    row = {"method": "POST", "url": "/v1/comparisons", "body": {"prompt": "x", "response_a": "y"}, "chosen": "z"}
    assert refused(row).param == "response_b"
