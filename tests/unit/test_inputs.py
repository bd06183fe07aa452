"""Files that commands read themselves: whole, or not at all, however they are compressed."""

import gzip
import json
import random
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest
import zstandard
from support.rows import write

from producer.cli.eval_inputs import read_field
from producer.cli.inputs import is_empty, json_lines, opened, outputs
from schemas.problems import Problem

LETTERS = random.Random(7).choices("abcdefghij", k=40 * 3000)
LINES = "".join(
    json.dumps({"prompt": str(n), "response_a": "".join(LETTERS[40 * n : 40 * n + 40]), "response_b": "b"}) + "\n"
    for n in range(3000)
).encode()
"""What takes a few blocks of either compression, so that it may end or be damaged behind some lines."""
COMPRESS = {"gzip": gzip.compress, "zstd": zstandard.ZstdCompressor(write_checksum=True).compress}


def decompressed(file: Path) -> bytes:
    """All of a file, read by lines."""
    with opened(file) as lines:
        return b"".join(lines)


def damaged(data: bytes) -> bytes:
    """The same with some bytes changed, where a block says how it is coded."""
    return data[:20] + bytes(each ^ 0x5A for each in data[20:60]) + data[60:]


@pytest.mark.parametrize(
    "form",
    [
        lambda data: data,
        *COMPRESS.values(),
        lambda data: gzip.compress(data[:999]) + gzip.compress(data[999:]),
        lambda data: zstandard.compress(data[:999]) + zstandard.compress(data[999:]),
    ],
    ids=["plain", *COMPRESS, "gzip in members", "zstd in frames"],
)
@pytest.mark.parametrize("data", [LINES, b"", b"{}"], ids=["lines", "nothing", "two bytes"])
def test_what_is_whole_comes_out_as_it_was(tmp_path: Path, form: Callable[[bytes], bytes], data: bytes):
    """Plain or compressed, in one part or in several, to the last byte."""
    (file := tmp_path / "pairs").write_bytes(form(data))
    assert decompressed(file) == data
    assert is_empty(file) == (not data)


@pytest.mark.parametrize("kind", COMPRESS)
@pytest.mark.parametrize(
    ("hurt", "says"),
    [
        (lambda data: data[: 2 * len(data) // 3], "its compression ends in the middle"),
        (lambda data: data[:-1], "its compression ends in the middle"),
        (damaged, "its compression cannot be undone"),
        (lambda data: data + b"rubbish", "its compression cannot be undone"),
    ],
    ids=["cut", "cut by a byte", "damaged", "with rubbish behind it"],
)
def test_what_is_not_whole_is_told(tmp_path: Path, kind: str, hurt: Callable[[bytes], bytes], says: str):
    """The lines before the fault are never taken for all of them."""
    (file := tmp_path / "pairs").write_bytes(hurt(COMPRESS[kind](LINES)))
    with pytest.raises(Problem, match=says) as raised:
        decompressed(file)
    assert str(file) in raised.value.detail


class TestParquet:
    def rows(self, folder: Path, rows: list[dict]) -> list[dict]:
        """What JSON lines a file of these rows is taken for."""
        pa = pytest.importorskip("pyarrow", reason="needs pyarrow: install the extra 'evals'")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pa.Table.from_pylist(rows), file := folder / "pairs.parquet")
        with json_lines(file, None) as lines:
            return [json.loads(line) for line in lines.read_text().splitlines()]

    def test_text_that_is_stored_as_bytes(self, tmp_path: Path):
        """Not every writer marks text as such; in turns it is text too."""
        row = {"prompt": [{"role": b"user", "content": "Ein Café?".encode()}], "chosen": "à".encode(), "rejected": b"b"}
        [read] = self.rows(tmp_path, [row])
        assert read == {"prompt": [{"role": "user", "content": "Ein Café?"}], "chosen": "à", "rejected": "b"}

    def test_bytes_that_are_no_text(self, tmp_path: Path):
        """The column is named, and nothing is judged that nobody wrote."""
        with pytest.raises(Problem, match="column picture has bytes that are no text in UTF-8"):
            self.rows(tmp_path, [{"prompt": "p", "picture": b"\x89PNG"}])

    def test_fields_that_a_row_leaves_out(self, tmp_path: Path):
        """A column's structs have the fields of all its rows there, and are read as they were written."""
        rows = [
            {"prompt": [{"role": "user", "content": "p"}], "metadata": {"of": "one"}, "label": "A"},
            {"prompt": [{"role": "user", "content": "p", "name": "n"}], "metadata": {"at": "two"}},
        ]
        assert self.rows(tmp_path, rows) == rows

    def test_what_json_has_no_word_for(self, tmp_path: Path):
        """Dates and decimals are written out."""
        [read] = self.rows(tmp_path, [{"at": date(2026, 1, 31), "cost": Decimal("0.10")}])
        assert read == {"at": "2026-01-31", "cost": "0.10"}


def test_an_instruction_that_is_answered_often_is_one_prompt(tmp_path: Path):
    """A tournament draws its answers together, as intervals are made of whole prompts."""
    files = [tmp_path / f"{name}.jsonl" for name in "ab"]
    for file in files:
        rows = [{"instruction": each, "output": "x", "generator": file.stem} for each in ("one", "other", "one")]
        write(file, rows)
    groups = {}
    field = read_field(files, seed=0)
    for nth in range(3):
        pair = field.pair((0, 1), nth)
        groups.setdefault(pair.group, []).append(pair.prompt)
    assert sorted(groups.values()) == [["one", "one"], ["other"]]


def test_two_systems_of_one_name(tmp_path: Path):
    """No summary could tell which of them was preferred."""
    row = {"instruction": "Do it", "output": "done", "generator": "m"}
    files = [tmp_path / "ours.jsonl", tmp_path / "theirs.jsonl"]
    for file in files:
        file.write_text(json.dumps(row))
    with pytest.raises(Problem, match=f"its system is called m as that of {files[1]}"), json_lines(*files):
        pass


@pytest.mark.parametrize(
    "text",
    ['{"instruction": "1", "output": ""}\n\n{"instruction" "2"}\n', '\n[{"instruction": "1", "output": ""},\n 2 3]'],
    ids=["lines", "an array"],
)
def test_a_row_that_is_not_json(tmp_path: Path, text: str):
    """It is found by its line, in either form."""
    (file := tmp_path / "ours.json").write_text(text)
    with pytest.raises(Problem, match=r"not JSON: .* at line 3 column"):
        list(outputs(file))


def test_a_file_that_is_not_there(tmp_path: Path):
    """It is named, with what is the matter with it."""
    with pytest.raises(Problem, match="none: No such file or directory"):
        decompressed(tmp_path / "none")
