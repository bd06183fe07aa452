"""Pairs that are filed one by one: any line that a batch takes, and what stands beside its comparison."""

from pathlib import Path
from typing import Any

import pytest
from support.rows import PAIR, write

from producer.cli.pairs import Pair, read_pairs


def pairs(folder: Path, *rows: dict[str, Any], **options: Any) -> list[Pair]:
    """Rows as `submit` reads them from a file."""
    return read_pairs(write(folder / "pairs.jsonl", rows), **options)


@pytest.mark.parametrize("value", [3, 0, 0.5, True, "", ["a"], {"a": 1}])
def test_a_topic_of_any_kind(tmp_path: Path, value: Any):
    """Whatever JSON can say names a group, in text, as it does in a batch."""
    [pair] = pairs(tmp_path, {**PAIR, "topic": value})
    assert pair.subset == str(value)


def test_the_first_word_on_it_counts(tmp_path: Path):
    """As in a batch, and none at all is none."""
    read = pairs(tmp_path, {**PAIR, "topic": "t", "subset": "s"}, {**PAIR, "dataset": "d", "topic": None}, PAIR)
    assert [pair.subset for pair in read] == ["s", "d", None]


def test_every_form_of_a_line(tmp_path: Path):
    """What a batch takes is taken here; options hold where a row says nothing else."""
    preference = {"prompt": "Which?", "chosen": "this", "rejected": "that", "order": "ab", "split": "train"}
    request = {"custom_id": "r", "method": "POST", "url": "/v1/comparisons", "body": PAIR}
    read = pairs(tmp_path, preference, request, {**PAIR, "id": 7}, order="ba")
    assert [pair.request.order for pair in read] == ["ab", "ba", "ba"]
    assert [pair.request.custom_id for pair in read] == [None, "r", "7"]
    better = read[0].request.response_a if read[0].label == "A" else read[0].request.response_b
    assert better == "this"
