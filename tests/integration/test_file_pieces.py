"""Files by pieces: what is held in memory at a time is bounded, however long lines are and however they come."""

import asyncio
import json
import time
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import Connection, text
from support.edge import open_edge
from support.keys import a_key, bearer

from infra.database import connect_async
from producer import files, outputs, uploads
from schemas.ids import parse_prefixed
from schemas.problems import Problem

LIMITS = uploads.Limits(file_bytes=1 << 30, line_bytes=4 << 20)
MEBIBYTE = 1 << 20


async def pieces(data: bytes, size: int) -> AsyncIterator[bytes]:
    """Bytes, so many at a time."""
    for start in range(0, len(data), size):
        yield data[start : start + size]


def a_line(number: int, length: int) -> bytes:
    """A pair whose answers have so many bytes together."""
    pair = {"prompt": f"Q{number}", "response_a": "a" * (length // 2), "response_b": "b" * (length // 2)}
    return json.dumps(pair).encode() + b"\n"


def test_a_file_of_long_lines_is_given_back_a_mebibyte_at_a_time(database_url: str):
    """However many lines a reader is ahead of, no piece holds more than a run of them, or one that is longer."""
    lines = [a_line(number, 300_000) for number in range(20)] + [a_line(20, 3 * MEBIBYTE), a_line(21, 10)]

    async def there_and_back() -> list[bytes]:
        database = connect_async(database_url, application="test")
        try:
            stored = await uploads.store(
                database, pieces(b"".join(lines), 65_536), tenant="default", about=lambda: ("f", "batch"), limits=LIMITS
            )
            return [piece async for piece in files.content(database, parse_prefixed(stored.id, "file-"))]
        finally:
            await database.dispose()

    given = asyncio.run(there_and_back())
    assert b"".join(given) == b"".join(lines)
    assert [len(piece) for piece in given if len(piece) > MEBIBYTE] == [len(lines[20])]


def test_lines_that_are_no_comparison_are_read_so_many_at_a_time(database_url: str, connection: Connection):
    """However many stand in a row: two thousand, as of others."""
    lines = a_line(1, 10) + b"none\n" * 5_000 + a_line(5_002, 10)

    async def there() -> str:
        database = connect_async(database_url, application="test")
        try:
            stored = await uploads.store(
                database, pieces(lines, 65_536), tenant="default", about=lambda: ("f", "batch"), limits=LIMITS
            )
        finally:
            await database.dispose()
        return stored.id

    file = parse_prefixed(asyncio.run(there()), "file-")
    spans = connection.execute(text(outputs.by_size(":id")), {"id": file}).all()
    assert max(min(span.last, 5_002) - span.first + 1 for span in spans) == 2_000
    assert (spans[0].first, [span.last + 1 for span in spans[:-1]]) == (1, [span.first for span in spans[1:]])


def test_lines_are_cut_into_full_runs_however_they_come(database_url: str, connection: Connection):
    """A run, which will be a shard, is full but for the last of its file, and as large as its comparisons."""
    lines = [b"none" if number == 1_500 else a_line(number, 10).strip() for number in range(1, 9_001)]

    async def there() -> str:
        database = connect_async(database_url, application="test")
        try:
            whole = pieces(b"\n".join(lines), 65_521)
            stored = await uploads.store(database, whole, tenant="default", about=lambda: ("f", "batch"), limits=LIMITS)
        finally:
            await database.dispose()
        return stored.id

    asked = {"id": parse_prefixed(asyncio.run(there()), "file-")}
    runs = connection.execute(text("SELECT * FROM file_runs WHERE file_id = :id ORDER BY first_line"), asked).all()
    assert [(run.first_line, run.last_line) for run in runs] == [
        (first, min(first + 1_023, 9_000)) for first in range(1, 9_001, 1_024)
    ]
    assert [run.lines for run in runs] == [1_024, 1_023, *[1_024] * 6, 9_000 - 8 * 1_024]
    assert [run.bytes for run in runs] == [
        sum(len(line) for line in lines[run.first_line - 1 : run.last_line] if line != b"none") for run in runs
    ]


def test_a_packet_of_very_short_lines_is_taken_a_few_at_a_time():
    """Compressed, millions come in one piece: all at once, they would have all of the memory and nobody else a turn."""

    async def sizes() -> list[int]:
        return [len(lines) async for lines in uploads._lines(pieces(b"a\n" * 10_000, 20_000), LIMITS)]

    assert sum(asyncio.run(sizes())) == 10_000
    assert max(asyncio.run(sizes())) == 128


def test_a_line_beyond_the_last_number_is_refused(monkeypatch: pytest.MonkeyPatch):
    """A file may have as many lines as there are numbers for, and blank ones after them."""
    monkeypatch.setattr(uploads, "LAST_LINE", 3)

    async def numbers(data: bytes) -> list[int]:
        return [number async for lines in uploads._lines(pieces(data, 2), LIMITS) for number, _ in lines]

    assert asyncio.run(numbers(b"a\n\na\n\n\n")) == [1, 3]
    with pytest.raises(Problem, match="more than the 3 lines"):
        asyncio.run(numbers(b"a\n\n\na"))


def test_a_line_in_small_packets_takes_no_longer_than_lines():
    """A line that comes a few bytes at a time is added to, not read anew from its beginning at each."""
    packet, packets = 64, 32_768

    async def seconds(data: bytes) -> float:
        began = time.thread_time()
        read = [len(line) async for lines in uploads._lines(pieces(data, packet), LIMITS) for _, line in lines]
        assert sum(read) == data.count(b"x")
        return time.thread_time() - began

    def shortest(data: bytes) -> float:
        return min(asyncio.run(seconds(data)) for _ in range(3))  # what else comes between makes it longer alone

    assert shortest(b"x" * packet * packets) < 10 * shortest((b"x" * 1023 + b"\n") * (packet * packets // 1024))


def test_a_report_counts_the_lines_that_are_no_comparison(database_url: str):
    """Bad lines stand in no run of good ones: those before the first and after the last are counted all the same."""
    lines = [b"none\n", a_line(1, 10), b"none\n", a_line(3, 10), b"none\n"]
    headers = bearer(a_key(database_url))
    with open_edge(database_url) as http:
        file = http.post(
            "/v1/files", files={"file": ("f", b"".join(lines))}, data={"purpose": "batch"}, headers=headers
        ).json()
        asked = {"input_file_id": file["id"], "endpoint": "/v1/comparisons", "completion_window": "24h"}
        batch = http.post("/v1/batches", json={**asked, "on_bad_line": "skip"}, headers=headers).json()
        report = http.get(f"/v1/batches/{batch['id']}/report", headers=headers).json()
    assert (report["pairs"], report["without_verdict"]) == (3, {"bad_line": 3})


@pytest.mark.parametrize(
    "names",
    [
        ["a", "a"],
        ["a", "b", "a"],
        ["b", "a", "c", "b", "b"],
        ["line-9", "line-10", "line-9"],
        ["line-10", "line-9", "line-10"],
        [None, "a", None, "b", "a"],
        ["e", "é", "e\u0301", "é"],
        [f"{number}" for number in range(5_000)],
        [*(f"{number}" for number in range(5_000)), "0"],
        [*(f"{number}" for number in range(5_000)), "4999"],
    ],
    ids=lambda names: f"{len(names)} names to {names[-1]!a}",
)
def test_a_name_stands_once(database_url: str, connection: Connection, names: list[str | None]):
    """Whatever order they come in, the first line keeps its name and the others are bad ones; of none two are alike."""
    lines = [{"prompt": "Q", "response_a": "a", "response_b": "b", "custom_id": name} for name in names]
    headers = bearer(a_key(database_url))
    with open_edge(database_url) as http:
        data = "".join(json.dumps(line) + "\n" for line in lines)
        sent = http.post("/v1/files", files={"file": ("f", data)}, data={"purpose": "batch"}, headers=headers).json()
    again = [number for number, name in enumerate(names, 1) if name is not None and name in names[: number - 1]]
    assert (sent["lines"], sent["bad_lines"]) == (len(names) - len(again), len(again))
    assert list(connection.execute(text("SELECT line FROM bad_lines ORDER BY line")).scalars()) == again
