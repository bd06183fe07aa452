"""Taking files in: lines stream into Postgres by COPY, a few thousand at a time, and nothing is ever whole in memory.

Each piece is a transaction of its own, so a slow upload holds none open; a file that did not arrive whole is taken
out again.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from infra.copying import Copying, integer, key, octets, packed, string
from producer.decompression import Decompressor, decompressor
from producer.files import as_file, take_out
from schemas.batch import File
from schemas.ids import LAST_LINE, new_filing_id
from schemas.lines import BadLineError, read_line
from schemas.problems import BAD_COMPRESSION, BODY_TOO_LARGE, UNSUPPORTED_MEDIA_TYPE, Problem

SHARD_LINES = 1024
SHARD_BYTES = 1024 * 1024
"""A shard has as many lines as come first to either: enough that messages and transactions are few, few enough that a
shard is judged within seconds."""

_PIECE_RUNS = 4
_PIECE_BYTES = _PIECE_RUNS * SHARD_BYTES
"""Runs of lines, or bytes where lines are very long, that are stored together. Each time is a transaction of a dozen
statements: half as much, and an upload took a fifth longer; twice as much, and it took no less."""
_LINES_AT_ONCE = 128
"""Lines read before the event loop serves others: a small compressed upload can hold millions of short ones."""
_BYTES_AT_ONCE = 256 * 1024
"""Lines of more bytes together are parsed in a thread, so that the event loop does not stop for them."""
_COPIES = 2
"""Pieces that Postgres stores at a time: it waits for its disk at the end of each."""
_RATIO = 200
"""How many times larger than it was sent a file may become. JSON of real answers stays under a tenth of that."""
_RATIO_FREE = 16 * 1024 * 1024
"""Bytes that any file may become before the ratio counts: a small file of few distinct lines is no attack."""
_MARK = b"\xef\xbb\xbf"
"""The byte order mark, which some editors write at the beginning of UTF-8."""

_PARQUET = b"PAR1"
"""What Parquet begins with. It is no text, and as lines would only be bad ones."""

_NEW_FILE = text("""
    INSERT INTO files (id, tenant, filename, purpose, state) VALUES (:id, :tenant, '', '', 'uploading')
""")
_LINES = Copying("comparisons", "source_id, line, tenant, custom_id, body")
_RUNS = Copying("file_runs", "file_id, first_line, last_line, lines, bytes")
_BAD = Copying("bad_lines", "file_id, line, custom_id, code, message, param")

# A custom_id that stands twice names neither: the first keeps it, the others are bad lines.
_DUPLICATES = text("""
    WITH again AS (
        SELECT line, custom_id, min(line) OVER (PARTITION BY custom_id) AS first
        FROM comparisons WHERE source_id = :id AND custom_id IS NOT NULL
    ), bad AS (
        INSERT INTO bad_lines (file_id, line, custom_id, code, message, param)
        SELECT :id, line, custom_id, 'duplicate_custom_id', 'custom_id: stands already on line ' || first, 'custom_id'
        FROM again WHERE line > first
        RETURNING line
    ), gone AS (
        DELETE FROM comparisons c USING bad WHERE c.source_id = :id AND c.line = bad.line RETURNING c.line
    )
    UPDATE file_runs r SET lines = r.lines - n.lines
    FROM (SELECT r2.first_line, count(*) AS lines FROM file_runs r2
          JOIN gone ON r2.file_id = :id AND gone.line BETWEEN r2.first_line AND r2.last_line
          GROUP BY r2.first_line) n
    WHERE r.file_id = :id AND r.first_line = n.first_line
""")
_PROCESSED = text("""
    UPDATE files SET state = 'processed', bytes = :bytes, filename = :filename, purpose = :purpose,
        has_metadata = :has_metadata, has_labels = :has_labels,
        lines = (SELECT coalesce(sum(lines), 0) FROM file_runs WHERE file_id = :id),
        bad_lines = (SELECT count(*) FROM bad_lines WHERE file_id = :id)
    WHERE id = :id
    RETURNING *
""")


@dataclass(slots=True)
class _Run:
    """Lines of a file that will be a shard, from one number to another; and how many of them are comparisons."""

    first: int
    last: int = 0
    lines: int = 0
    size: int = 0
    """Bytes of all of them."""
    good: int = 0
    bytes: int = 0
    """Bytes of those that are comparisons."""

    def has_room(self, size: int) -> bool:
        """Whether a line of so many bytes still belongs to it."""
        return self.lines < SHARD_LINES and self.size + size <= SHARD_BYTES


@dataclass(slots=True)
class _Said:
    """What a file's comparisons have been found to say so far."""

    metadata: bool = False
    """Whether any of them has some."""
    labels: bool = False
    """Whether of any of them it is said which response is the better."""
    last_name: tuple[int, str] = (0, "")
    """Its length, and the name."""
    names_grow: bool = True
    """Whether each is longer than the one before, or as long and later in order. Then none stands twice, as where lines
    are numbered, and none need be looked for, which takes Postgres a microsecond a line."""


class _Piece:
    """Lines on their way into the tables: understood, cut into runs, and packed as `infra.copying` has it."""

    def __init__(self, file_id: UUID, tenant: str, said: _Said) -> None:
        self._file, self._tenant, self._said = key(file_id), string(tenant), said
        self._good, self._bad = bytearray(), bytearray()
        self._runs: list[_Run] = []

    def add(self, numbered: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
        """Understand lines, given with their numbers and without line breaks. Returns those that it has no room for."""
        file, tenant, good, said = self._file, self._tenant, self._good, self._said
        run = self._runs[-1] if self._runs else None
        for at, (number, raw) in enumerate(numbered):
            size = len(raw)
            if run is None or not run.has_room(size):
                if len(self._runs) == _PIECE_RUNS or len(good) >= _PIECE_BYTES:
                    return numbered[at:]
                run = _Run(number)
                self._runs.append(run)
            run.last = number
            run.lines += 1
            run.size += size
            try:
                line = read_line(raw)
            except BadLineError as error:
                told = (string(error.custom_id), string(error.code), string(str(error)), string(error.param))
                self._bad += packed(file, integer(number), *told)
                continue
            name = line.custom_id
            if said.names_grow and name is not None:
                rank = len(name), name
                said.names_grow = rank > said.last_name
                said.last_name = rank
            good += packed(file, integer(number), tenant, string(name), octets(raw))
            run.good += 1
            run.bytes += size
            if "metadata" in line.request:
                said.metadata = True
            if line.label is not None:
                said.labels = True
        return []

    async def store(self, database: AsyncEngine) -> None:
        """Copy all of it in, in one transaction."""
        runs = bytearray()
        for run in self._runs:
            if run.good:
                runs += packed(self._file, *map(integer, (run.first, run.last, run.good, run.bytes)))
        async with database.begin() as connection:
            for copying, rows in ((_LINES, self._good), (_RUNS, runs), (_BAD, self._bad)):
                if rows:
                    await copying.store_async(connection, rows)


async def _decompressed(chunks: AsyncIterator[bytes], tally: dict[str, int], limits: "Limits") -> AsyncIterator[bytes]:
    """Decompress a stream of bytes, and count the bytes that arrive and those that come of them."""
    plain: Decompressor | None = None
    async for chunk in _beginning_with(4, chunks):
        if plain is None:
            if chunk.startswith(_PARQUET):
                raise Problem(
                    UNSUPPORTED_MEDIA_TYPE,
                    "The file is Parquet, and only JSON lines are taken here. `nightcourt batch run FILE.parquet` "
                    "reads it and sends its rows as JSON lines; or write them yourself, an object for each row.",
                )
            plain = decompressor(chunk)
        tally["received"] += len(chunk)
        for piece in plain.decompress(chunk):
            tally["bytes"] += len(piece)
            _check(tally, limits)
            yield piece
    if plain is not None and not plain.whole:
        raise Problem(BAD_COMPRESSION, "The file's compression ends in the middle; it did not arrive whole.")


async def _lines(pieces: AsyncIterator[bytes], limits: "Limits") -> AsyncIterator[list[tuple[int, bytes]]]:
    """Cut a stream of bytes into numbered lines, a few at a time. Only a line feed ends one."""
    rest = bytearray()
    number = 0
    async for piece in pieces:
        # What has no end yet is only added to: it may come a byte at a time.
        ended, feed, begun = piece.rpartition(b"\n")
        if feed:
            rest += ended
            whole = bytes(rest).split(b"\n")
            rest.clear()
            for at in range(0, len(whole), _LINES_AT_ONCE):
                some = whole[at : at + _LINES_AT_ONCE]
                yield _numbered(some, number + 1, limits)
                number += len(some)
        rest += begun
        if len(rest) > limits.line_bytes:
            raise _too_long(number + 1, limits)
    yield _numbered([bytes(rest)], number + 1, limits)


def _numbered(lines: list[bytes], first: int, limits: "Limits") -> list[tuple[int, bytes]]:
    """Number lines. Blank ones count and are passed over."""
    numbered = []
    for number, line in enumerate(lines, first):
        if len(line) > limits.line_bytes:
            raise _too_long(number, limits)
        if stripped := (line.removeprefix(_MARK) if number == 1 else line).strip():
            if number > LAST_LINE:
                raise Problem(BODY_TOO_LARGE, f"The file has more than the {LAST_LINE} lines that a file may have.")
            numbered.append((number, stripped))
    return numbered


def _too_long(number: int, limits: "Limits") -> Problem:
    return Problem(BODY_TOO_LARGE, f"Line {number} is longer than the {limits.line_bytes} bytes that a line may have.")


async def _beginning_with(least: int, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Hold the first chunks back until there are `least` bytes to tell by what they are."""
    held: bytes | None = b""
    async for chunk in chunks:
        if held is None:
            yield chunk
            continue
        held += chunk
        if len(held) >= least:
            yield held
            held = None
    if held:
        yield held


def _check(tally: dict[str, int], limits: "Limits") -> None:
    if tally["bytes"] > limits.file_bytes:
        raise Problem(BODY_TOO_LARGE, f"The file is larger than the {limits.file_bytes} bytes that a file may have.")
    if tally["bytes"] > _RATIO_FREE and tally["bytes"] > _RATIO * tally["received"]:
        raise Problem(
            BODY_TOO_LARGE, f"The file decompresses to more than {_RATIO} times its size; send it uncompressed."
        )


@dataclass(frozen=True, slots=True)
class Limits:
    """How large a file may be, counted after decompression."""

    file_bytes: int
    line_bytes: int


async def store(
    database: AsyncEngine,
    chunks: AsyncIterator[bytes],
    *,
    tenant: str,
    about: Callable[[], tuple[str, str]],
    limits: Limits,
) -> File:
    """Take in a file as it arrives. Lines that are no comparison are noted with their reasons; the others are kept.

    Args:
        database: where to.
        chunks: the file's bytes.
        tenant: whose it is.
        about: gives name and purpose once all bytes are there, since a form may say them after the file.
        limits: how large it may be.

    Raises:
        Problem: the file is too large, or not what it begins as. Nothing of it is kept.
    """
    file_id = new_filing_id()
    async with database.begin() as connection:
        await connection.execute(_NEW_FILE, {"id": file_id, "tenant": tenant})
    tally = {"received": 0, "bytes": 0}
    said = _Said()
    copying: deque[asyncio.Task[None]] = deque()

    async def put(piece: _Piece) -> None:
        # Postgres stores pieces while the next one arrives and is understood.
        if len(copying) == _COPIES:
            await copying[0]
            copying.popleft()
        copying.append(asyncio.create_task(piece.store(database)))

    try:
        piece = _Piece(file_id, tenant, said)
        async for numbered in _lines(_decompressed(chunks, tally, limits), limits):
            left = numbered
            while left := await _add(piece, left):
                await put(piece)
                piece = _Piece(file_id, tenant, said)
            await asyncio.sleep(0)  # others may have their turn between a few lines of a large upload
        await put(piece)
        for task in copying:
            await task
        filename, purpose = about()
        described = {
            "id": file_id,
            "bytes": tally["bytes"],
            "filename": filename,
            "purpose": purpose,
            "has_metadata": said.metadata,
            "has_labels": said.labels,
        }
        async with database.begin() as connection:
            if not said.names_grow:
                await connection.execute(_DUPLICATES, {"id": file_id})
            row = (await connection.execute(_PROCESSED, described)).one()
    except BaseException:
        if copying:
            await asyncio.wait(copying)
        await asyncio.shield(take_out(database, file_id))
        raise
    return as_file(row)


async def _add(piece: _Piece, numbered: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """Understand lines; long ones in a thread, so that nobody waits for them."""
    if sum(len(raw) for _, raw in numbered) > _BYTES_AT_ONCE:
        return await asyncio.to_thread(piece.add, numbered)
    return piece.add(numbered)
