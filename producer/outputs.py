"""What came of a batch, as streams in line order: our results, and OpenAI's output and error files, of the same rows.

Postgres writes the JSON; a row is never an object on our side. Of a line's judge it names the id alone: the card would
be half of the line, and is the same in nearly all. Of a file with labels it gives each line's own text in the place of
the label, which only we can find in it.
"""

# ruff: noqa: S608 - statements are put together from constants of this module alone; values are always bound

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable
from typing import Literal
from uuid import UUID

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncEngine

from infra.filed import METADATA, label_of
from schemas.ids import LAST_LINE

Kind = Literal["results", "output", "errors", "asked"]

_RUN = 2000
"""Line numbers that one statement reads where a line is no longer than we make it."""
_PIECE = 50
"""Line numbers that one value holds: Postgres would spend a quarter of its time on moving a text of megabytes about."""
_READ_IN_STRETCHES = text("SELECT set_config('enable_nestloop', 'off', true), set_config('jit', 'off', true)")
"""A span is a stretch of one table or of two, and each is read once. Of tables that were just filled the planner knows
nothing, and would look for the comparison of each outcome by itself, which takes a third longer. A line's metadata can
be put together in no other way: for what it takes this to cost, Postgres before 18 would compile it, which takes fifty
times as long as to run it."""
_AHEAD = 2
"""Statements under way at a time for one reader."""
_MARK = b"\x01"
"""Stands on either side of a judge's id, and nowhere else: no JSON has it as it is."""
_TEXT = b"\x02"
"""Stands on either side of the text that a label is to be found in, and nowhere else."""

# What is the batch's is asked in queries of their own: they run once, and not for every line.
_HEX = "(SELECT replace(CAST(:id AS text), '-', ''))"
_FILE = "(SELECT file_id FROM batches WHERE id = :id)"
_CREATED = "(SELECT to_json(created_at) FROM batches WHERE id = :id)"
_CUSTOM_ID = f"""
    coalesce(to_json(CASE WHEN c.line IS NOT NULL THEN c.custom_id
        ELSE (SELECT custom_id FROM bad_lines WHERE file_id = {_FILE} AND line = o.line) END)::text, 'null')
"""
_JUDGE = f"chr({ord(_MARK)}) || o.judge_id || chr({ord(_MARK)})"
_HAS_METADATA = f"(SELECT has_metadata FROM files WHERE id = {_FILE})"
_HAS_LABELS = f"(SELECT has_labels FROM files WHERE id = {_FILE})"
# Where no line of the file has any, the bodies are not touched.
_METADATA = f"CASE WHEN {_HAS_METADATA} THEN ({METADATA}) END"
# The tally without the brace that closes it: `left` would count its characters.
_OPEN_TALLY = "convert_from(substr(convert_to(o.tally::text, 'UTF8'), 1, octet_length(o.tally::text) - 1), 'UTF8')"


# Text put together, since `json_build_object` on a million rows takes longer than everything else; what is not ours to
# spell (names, messages) goes through `to_json`; a line's metadata is JSON of its own.
def _comparison(label: str) -> str:
    return f"""
        '{{"id":"cmp_' || {_HEX} || '_' || o.line || '","object":"comparison","status":"' || o.status
        || '","created_at":' || {_CREATED} || ',"decided_at":' || to_json(o.decided_at)
        || ',"custom_id":' || {_CUSTOM_ID}
        || ',"metadata":' || coalesce(({_METADATA})::text, '{{}}')
        || '{label},"verdict":' || CASE WHEN o.tally IS NULL THEN 'null' ELSE
               {_OPEN_TALLY} || ',"judge":' || {_JUDGE} || ',"usage":{{"prompt_tokens":' || o.prompt_tokens
               || ',"cached_tokens":' || o.cached_tokens || ',"gpu_seconds":' || o.gpu_seconds
               || ',"reused":' || o.reused || '}}}}' END
        || ',"error":' || CASE WHEN o.tally IS NOT NULL THEN 'null' ELSE
               json_build_object('code', o.error_code, 'message', o.error_message)::text END
        || '}}'
    """


_REQUEST = f"""'{{"id":"batch_req_' || {_HEX} || '_' || o.line || '","custom_id":'
    || {_CUSTOM_ID}"""

_UNLABELLED = r',"label"\:null'
_LABELLED = f",\"label\":' || chr({ord(_TEXT)}) || coalesce(c.body, '') || chr({ord(_TEXT)}) || '"


def _lines(label: str) -> dict[Kind, tuple[str, str]]:
    """Say what a line is put together from, and which outcomes have one."""
    # A colon before a word would name a parameter: hence the cuts, and the backslash above.
    comparison = _comparison(label)
    return {
        "results": (comparison, "true"),
        "asked": (  # whose label is the body's
            f"""'{{"line":' || o.line || ',"body":' || coalesce(c.body, 'null') || ',"comparison":' || {_comparison("")}
                || '}}'""",
            "true",
        ),
        "output": (
            f"""{_REQUEST} || ',"response":{{"status_code":' || 200 || ',"request_id":"batch_req_' || {_HEX} || '_'
                || o.line || '","body":' || {comparison} || '}},"error":' || 'null}}'""",
            "o.status = 'succeeded'",
        ),
        "errors": (
            f"""{_REQUEST} || ',"line":' || o.line || ',"response":' || 'null,"error":' || json_build_object(
                'code', CASE WHEN o.status = 'expired' THEN 'batch_expired' ELSE o.error_code END,
                'message', o.error_message)::text || '}}'""",
            "o.status <> 'succeeded'",
        ),
    }


_BY_NUMBER = f"""
    SELECT first, first + {_RUN - 1} AS last
    FROM generate_series(1, (SELECT max(line) FROM outcomes WHERE filing_id = :id), {_RUN}) AS first
"""


def by_size(file: str) -> str:
    """Give a query for spans of line numbers as `read_out` takes them, each with a mebibyte of texts or a single line.

    They are the runs that the file's lines came in, each with the lines after it that are no comparison. Of these there
    may be very many, so spans are cut by number as well.

    Args:
        file: SQL for the id of the file.
    """
    return f"""
        SELECT first, lead(first - 1, 1, {LAST_LINE}) OVER (ORDER BY first) AS last
        FROM (
            SELECT 1 AS first UNION SELECT first_line FROM file_runs WHERE file_id = {file}
            UNION SELECT generate_series(1, (SELECT max(line) FROM bad_lines WHERE file_id = {file}), {_RUN})
        ) starts
        ORDER BY first
    """


# With metadata a line is as long as whoever sent it likes, and with the text that has its label in it.
_BY_LENGTH = text(f"""
    SELECT first, last FROM ({_BY_NUMBER}) spans WHERE NOT ({_HAS_METADATA} OR {_HAS_LABELS})
    UNION ALL SELECT first, last FROM ({by_size(_FILE)}) spans WHERE {_HAS_METADATA} OR {_HAS_LABELS} ORDER BY first
""")
_SPANS: dict[Kind, TextClause] = {
    "results": _BY_LENGTH,
    "output": _BY_LENGTH,
    "errors": text(_BY_NUMBER),
    "asked": text(by_size(_FILE)),
}


# A line's text is put together before it is sorted (OFFSET keeps the two apart): else what is sorted would have the
# comparison's body in it, too.
def _run(line: str, which: str) -> TextClause:
    return text(f"""
        SELECT string_agg(line, '' ORDER BY number)
        FROM (
            SELECT o.line AS number, {line} || chr(10) AS line
            FROM outcomes o
            LEFT JOIN comparisons c ON c.source_id = {_FILE} AND c.line = o.line AND c.line BETWEEN :first AND :last
            WHERE o.filing_id = :id AND o.line BETWEEN :first AND :last AND {which}
            OFFSET 0
        ) lines
        GROUP BY number / {_PIECE} ORDER BY number / {_PIECE}
    """)


_RUNS = {kind: _run(*line) for kind, line in _lines(_UNLABELLED).items()}
# Who reads the others has the line itself beside, or no verdict to hold against a label.
_LABELLED_RUNS: dict[Kind, TextClause] = {
    kind: _run(*line) for kind, line in _lines(_LABELLED).items() if kind in {"results", "output"}
}

_LABELS = {"A": b'"A"', "B": b'"B"', None: b"null"}
_ANY_LABELS = text(f"SELECT {_HAS_LABELS}")
_CARDS = text("SELECT id, card::text AS card FROM judges WHERE id = ANY(:judges)")


async def stream(database: AsyncEngine, batch_id: UUID, kind: Kind) -> AsyncIterator[bytes]:
    """Stream what has been decided so far, one JSON object a line, in the order of the file.

    Args:
        database: where to read.
        batch_id: the batch; that the asker may read it was seen to before.
        kind: every outcome as a comparison object; the same beside the line that it came of; or OpenAI's output or
            error lines.
    """
    cards: dict[bytes, bytes] = {}
    labelled = kind in _LABELLED_RUNS and await _has_labels(database, batch_id)
    run = _LABELLED_RUNS[kind] if labelled else _RUNS[kind]
    async for read in read_out(database, batch_id, spans=_SPANS[kind], run=run):
        # In a thread, so that the event loop does not stop while a mebibyte of lines is parsed.
        part = await asyncio.to_thread(_with_labels, read) if labelled else read
        pieces = part.split(_MARK)
        judges = pieces[1::2]
        if unknown := set(judges) - cards.keys():
            cards |= await _cards(database, unknown)
        pieces[1::2] = [cards[judge] for judge in judges]
        yield b"".join(pieces)


async def _has_labels(database: AsyncEngine, batch_id: UUID) -> bool:
    """Tell whether a line of a batch's file may say which response is the better."""
    async with database.connect() as connection:
        return bool((await connection.execute(_ANY_LABELS, {"id": batch_id})).scalar())


def _with_labels(part: bytes) -> bytes:
    """Put each line's label where its text stands."""
    pieces = part.split(_TEXT)
    pieces[1::2] = [_LABELS[label_of(body.decode()) if body else None] for body in pieces[1::2]]
    return b"".join(pieces)


async def _cards(database: AsyncEngine, judges: Iterable[bytes]) -> dict[bytes, bytes]:
    """Read the cards of some judges, as JSON, by their ids."""
    async with database.connect() as connection:
        rows = await connection.execute(_CARDS, {"judges": [judge.decode() for judge in judges]})
        return {row.id.encode(): row.card.encode() for row in rows}


async def read_out(database: AsyncEngine, key: UUID, *, spans: TextClause, run: TextClause) -> AsyncIterator[bytes]:
    """Read lines of text, a span of line numbers at a time, put together by Postgres as one value or a few.

    Each span is a transaction of its own, so a reader who dawdles holds none open. Spans are cut by number, not by
    LIMIT: on tables that have just been filled the planner would sort all that is left for each of them.

    Args:
        database: where to read.
        key: what the lines belong to.
        spans: a query for `first` and `last` of each span of `:id`, in order; what one holds is in memory as a whole.
        run: a query for the text of lines `:first` to `:last` of `:id`.
    """

    async def read(first: int, last: int) -> bytes:
        span = {"id": key, "first": first, "last": last}
        async with database.connect() as connection:
            await connection.execute(_READ_IN_STRETCHES)
            return "".join([part for part in (await connection.execute(run, span)).scalars() if part]).encode()

    async with database.connect() as connection:
        left = deque((row.first, row.last) for row in await connection.execute(spans, {"id": key}))
    ahead: deque[asyncio.Task[bytes]] = deque()

    def read_ahead() -> None:
        while left and len(ahead) < _AHEAD:
            ahead.append(asyncio.create_task(read(*left.popleft())))

    # Two spans are read while the one before them is on its way to the reader: never more, however large it all is.
    read_ahead()
    try:
        while ahead:
            part = await ahead.popleft()
            read_ahead()
            if part:
                yield part
    finally:
        for task in ahead:
            task.cancel()
