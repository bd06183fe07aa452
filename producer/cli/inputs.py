"""What a batch may be made of: JSON lines as they are, Parquet files, and two systems' AlpacaEval outputs."""

import io
import json
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from pydantic_core import from_json

from producer.cli.output import temporary_folder
from producer.decompression import decompressor
from schemas.lines import BadLineError, parse, subset_of, unwrap
from schemas.problems import BAD_INPUT_FILE, Problem

EMPTY = "there is nothing in it; give one JSON object a line"
_PARQUET_ROWS = 1000
_PIECE = 64 * 1024
_BLANK = b"\xef\xbb\xbf \t\r\n"
"""What a line may hold that holds nothing; a file may begin with a byte order mark."""


class Known(NamedTuple):
    """What a line of the input says beside its comparison."""

    line: int
    label: str | None
    subset: str | None


def bad(file: Path, why: str) -> Problem:
    """Say what is wrong with a file of the input."""
    return Problem(BAD_INPUT_FILE, f"{file}: {why}.")


@contextmanager
def json_lines(file: Path, baseline: Path | None) -> Iterator[Path]:
    """Give the file as JSON lines: itself, or a temporary one that is gone when the block ends.

    Args:
        file: JSON lines, also gzip or zstd; a Parquet file; with `baseline`, AlpacaEval outputs.
        baseline: AlpacaEval outputs of the system to compare with.

    Raises:
        Problem: a file cannot be read, or does not fit the other.
    """
    if baseline is not None:
        rows = _zipped(file, baseline)
    elif file.suffix == ".parquet":
        rows = _parquet(file)
    else:
        with opened(file):
            pass
        yield file
        return
    with temporary_folder() as folder:
        converted = folder / f"{file.stem}.jsonl"
        with converted.open("wb") as out:
            for row in rows:
                out.write(json.dumps(row, ensure_ascii=False, default=str).encode("utf-8", "replace") + b"\n")
        yield converted


class _Pieces(io.RawIOBase):
    """Bytes that come in pieces, as a file."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        while not self._left:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._left = memoryview(piece)
        taken = min(len(into), len(self._left))
        into[:taken] = self._left[:taken]
        self._left = self._left[taken:]
        return taken


@contextmanager
def opened(file: Path) -> Iterator[io.BufferedReader]:
    """Open a file, decompressing gzip and zstd by their first bytes, as the server does.

    Raises:
        Problem: it cannot be read, or its compression cannot be undone to its end; then reading raises it.
    """
    with raw(file) as found:
        yield io.BufferedReader(_Pieces(_decompressed(file, found)), _PIECE)


def _decompressed(file: Path, found: io.BufferedReader) -> Iterator[bytes]:
    plain = decompressor(found.read(4))
    found.seek(0)
    try:
        while piece := found.read(_PIECE):
            yield from plain.decompress(piece)
    except Problem:
        raise bad(file, "its compression cannot be undone") from None
    if not plain.whole:
        raise bad(file, "its compression ends in the middle; it is not all there")


def check_file(file: Path) -> None:
    """Refuse what is no regular file: what goes through a pipe is gone once it was read, and files are read again.

    Raises:
        Problem: it is none, or is not there.
    """
    if str(file) == "-":
        raise bad(file, "standard input can be read only once, and files are read again; save it in a file first")
    try:
        regular = stat.S_ISREG(file.stat().st_mode)
    except OSError as error:
        raise bad(file, error.strerror or str(error)) from None
    if not regular:
        raise bad(file, "it is no regular file; save what it gives in one first")


@contextmanager
def raw(file: Path) -> Iterator[io.BufferedReader]:
    """Open a file as it lies there.

    Raises:
        Problem: it cannot be read.
    """
    check_file(file)
    try:
        with file.open("rb") as found:
            yield found
    except OSError as error:
        raise bad(file, error.strerror or str(error)) from None


def is_empty(file: Path) -> bool:
    """Tell whether all lines of a file are blank."""
    with suppress(Problem), opened(file) as lines:
        return not any(line.strip(_BLANK) for line in lines)
    return False  # what is wrong with it, the service says


def known(file: Path) -> Iterator[Known]:
    """Read what the lines of a file say beside their comparisons. What is no comparison is passed over."""
    with opened(file) as lines:
        for number, raw in enumerate(lines, start=1):
            with suppress(BadLineError):
                row = parse(raw.removeprefix(b"\xef\xbb\xbf").strip())
                yield Known(number, unwrap(row).label, subset_of(row))


def _parquet(file: Path) -> Iterator[dict[str, Any]]:
    try:
        from pyarrow import ArrowException, parquet  # noqa: PLC0415 - an extra, and slow to load
    except ImportError:
        raise bad(
            file, 'a Parquet file needs pyarrow: pip install "nightcourt[evals]", or give the rows as JSON lines'
        ) from None
    try:
        with parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=_PARQUET_ROWS):
                for row in batch.to_pylist():
                    yield dict(_columns(file, row))
    except ArrowException as error:
        raise bad(file, f"it is no Parquet file that can be read: {str(error).rstrip('.')}") from None
    except OSError as error:
        raise bad(file, error.strerror or str(error)) from None


def _columns(file: Path, row: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in row.items():
        if value is not None:
            try:
                yield name, _plain(value)
            except UnicodeDecodeError:
                raise bad(file, f"column {name} has bytes that are no text in UTF-8; leave it out") from None


def _plain(value: Any) -> Any:
    """Make of a value what JSON lines would have had: Arrow fills structs up, and some writers store bytes."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, dict):
        return {name: _plain(held) for name, held in value.items() if held is not None}
    if isinstance(value, list | tuple):
        return [_plain(held) for held in value]
    return value


def _zipped(file: Path, baseline: Path) -> Iterator[dict[str, Any]]:
    """Put two systems' answers side by side, the baseline's as response A, matched by their instructions.

    An instruction that stands several times is matched in the order in which it stands.
    """
    if (name := generator(file)) == generator(baseline):
        raise same_name(file, baseline, name)
    answers = {(instruction, nth): output for instruction, output, nth, _ in outputs(baseline)}
    unmatched = {key: number for number, key in enumerate(answers, start=1)}
    for index, (instruction, output, nth, row) in enumerate(outputs(file)):
        answer = answers.get((instruction, nth))
        if answer is None:
            raise bad(file, f"{_missing(index + 1, nth, baseline)}; both must be of the same set")
        del unmatched[instruction, nth]
        pair = {"custom_id": str(index), "prompt": instruction, "response_a": answer, "response_b": output}
        yield pair | ({"dataset": row["dataset"]} if "dataset" in row else {})
    if unmatched:
        (_, nth), number = next(iter(unmatched.items()))  # in the order of the file
        raise bad(
            baseline,
            f"{_missing(number, nth, file)}; it lacks {len(unmatched)} of {len(answers)} rows, and both must be of the "
            "same set",
        )


def _missing(row: int, nth: int, other: Path) -> str:
    """Say that a row's instruction, which stood so often before it, does not stand once more in the other file."""
    said = f"the instruction of row {row}"
    if nth:
        return f"{said} is in {other} only {'once' if nth == 1 else f'{nth} times'}"
    return f"{said} is not in {other}"


def same_name(file: Path, other: Path, name: str) -> Problem:
    """Say that two systems are of one name, by which no report can tell them apart."""
    return bad(file, f"its system is called {name} as that of {other}; give each a generator of its own")


def outputs(file: Path) -> Iterator[tuple[str, str, int, dict[str, Any]]]:
    """Read AlpacaEval outputs: of each row the instruction, the output, how often it stood before, and all of it.

    Raises:
        Problem: the file cannot be read, or a row is no output.
    """
    seen: Counter[str] = Counter()
    for number, row in enumerate(_rows(file), start=1):
        instruction, output = (row.get(name) if isinstance(row, dict) else None for name in ("instruction", "output"))
        if not isinstance(instruction, str) or not isinstance(output, str):
            raise bad(file, f"row {number} is no AlpacaEval output: an object with the texts instruction and output")
        yield instruction, output, seen[instruction], row
        seen[instruction] += 1
    if not seen:
        raise bad(file, EMPTY)


def _rows(file: Path) -> Iterator[Any]:
    """Read the rows of AlpacaEval outputs: a line each, or one array of all of them, as AlpacaEval writes them."""
    first = True
    with opened(file) as lines:
        for number, line in enumerate(lines, start=1):
            text = line.strip(_BLANK)
            if not text:
                continue
            try:
                if first and text.startswith(b"["):
                    yield from from_json(b"\n" * (number - 1) + text + b"\n" + lines.read())
                    return
                yield from_json(text)
            except ValueError as error:
                # The parser of a line sees it alone, and calls it line 1.
                why = str(error).replace(" at line 1 column ", f" at line {number} column ")
                raise bad(file, f"not JSON: {why}") from None
            first = False


def generator(file: Path) -> str:
    """Name the system whose outputs a file holds."""
    row = next(_rows(file), None)
    named = (row.get("generator") or row.get("model")) if isinstance(row, dict) else None
    return str(named or file.stem)
