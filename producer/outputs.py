"""What came of a batch, as streams in line order: our results, and OpenAI's output and error files, of the same rows.

Postgres writes the JSON; a row is never an object on our side.
"""

import re
from collections.abc import AsyncIterator, Callable
from typing import Literal
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

Kind = Literal["results", "output", "errors"]

_PAGE = 5000
"""Lines read by one statement."""

# Text put together, since `json_build_object` on a million rows takes longer than everything else; what is not ours to
# spell (names, messages, metadata) goes through `to_json`.
_COMPARISON = """
    '{{"id":"cmp_' || '{hex}' || '_' || o.line || '","object":"comparison","status":"' || o.status
    || '","created_at":' || to_json(b.created_at) || ',"decided_at":' || to_json(o.decided_at)
    || ',"custom_id":' || coalesce(to_json(c.custom_id)::text, 'null')
    || ',"metadata":' || CASE WHEN position('"metadata"' IN c.body) > 0 THEN coalesce(
           c.body::json -> 'body' ->> 'metadata', c.body::json ->> 'metadata', '{{}}') ELSE '{{}}' END
    || ',"verdict":' || CASE WHEN o.tally IS NULL THEN 'null' ELSE
           left(o.tally::text, -1) || ',"judge":' || j.card::text || ',"usage":{{"prompt_tokens":' || o.prompt_tokens
           || ',"cached_tokens":' || o.cached_tokens || ',"gpu_seconds":' || o.gpu_seconds
           || ',"reused":' || o.reused || '}}}}' END
    || ',"error":' || CASE WHEN o.tally IS NOT NULL THEN 'null' ELSE
           json_build_object('code', o.error_code, 'message', o.error_message)::text END
    || '}}'
"""

_FROM = """
    FROM outcomes o
    JOIN batches b ON b.id = o.filing_id
    LEFT JOIN comparisons c ON c.source_id = b.file_id AND c.line = o.line
    LEFT JOIN judges j ON j.id = o.judge_id
    WHERE o.filing_id = '{hex}'
"""

_REQUEST = """'{{"id":"batch_req_' || '{hex}' || '_' || o.line || '","custom_id":'
    || coalesce(to_json(c.custom_id)::text, 'null')"""

_LINES: dict[Kind, tuple[str, str]] = {
    "results": (_COMPARISON, "true"),
    "output": (
        f"""{_REQUEST} || ',"response":{{{{"status_code":200,"request_id":"batch_req_{{hex}}_' || o.line
            || '","body":' || {_COMPARISON} || '}}}},"error":null}}}}'""",
        "o.status = 'succeeded'",
    ),
    "errors": (
        f"""{_REQUEST} || ',"line":' || o.line || ',"response":null,"error":' || json_build_object(
            'code', CASE WHEN o.status = 'expired' THEN 'batch_expired' ELSE o.error_code END,
            'message', o.error_message)::text || '}}}}'""",
        "o.status <> 'succeeded'",
    ),
}
"""What a line is put together from, and which outcomes have one."""


async def stream(database: AsyncEngine, batch_id: UUID, kind: Kind) -> AsyncIterator[bytes]:
    """Stream what has been decided so far, one JSON object a line, in the order of the file.

    Args:
        database: where to read.
        batch_id: the batch; that the asker may read it was seen to before.
        kind: every outcome as a comparison object, or OpenAI's output or error lines.
    """
    line, which = _LINES[kind]
    select = f"SELECT o.line, {line} {_FROM} AND {which} AND o.line > {{after}} ORDER BY o.line".format
    async for part in copy_out(database, lambda after: select(hex=batch_id.hex, after=after)):
        yield part


_ESCAPED = re.compile(rb"\\([\\tr])")
_PLAIN = {b"\\": b"\\", b"t": b"\t", b"r": b"\r"}


def _unescape(match: re.Match[bytes]) -> bytes:
    """Undo what COPY does to backslashes, tabs and carriage returns; a line has no other character that it escapes."""
    return _PLAIN[match[1]]


async def copy_out(database: AsyncEngine, select: Callable[[int], str]) -> AsyncIterator[bytes]:
    """Read numbered lines of text by COPY, a page at a time.

    Each page is a transaction of its own, so a reader who dawdles holds none open.

    Args:
        database: where to read.
        select: gives the query for the rows (number, text) that come after a number, in their order.
    """
    after = 0
    while True:
        page = bytearray()
        async with database.begin() as connection:
            driver = (await connection.get_raw_connection()).driver_connection
            statement = f"COPY ({select(after)} LIMIT {_PAGE}) TO STDOUT"
            async with driver.cursor() as cursor, cursor.copy(statement) as copy:  # type: ignore[union-attr]
                async for block in copy:
                    page += block
        rows = bytes(page).split(b"\n")[:-1]
        if rows:
            text = b"\n".join(row.partition(b"\t")[2] for row in rows)
            yield _ESCAPED.sub(_unescape, text) + b"\n"
            after = int(rows[-1].partition(b"\t")[0])
        if len(rows) < _PAGE:
            return
