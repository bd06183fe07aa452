"""What came of a batch, as streams in line order: our results, and OpenAI's output and error files, of the same rows.

Postgres writes the JSON; a row is never an object on our side.
"""

import re
from collections.abc import AsyncIterator
from typing import Literal
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

Kind = Literal["results", "output", "errors"]

_RUN = 5000
"""Line numbers that one statement reads."""

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
    WHERE o.filing_id = '{id}' AND o.line BETWEEN {first} AND {last} AND WHICH
    ORDER BY o.line
"""

_LAST = "SELECT max(line) FROM outcomes WHERE filing_id = :id"

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
    select = f"SELECT {line} {_FROM}".replace("WHICH", which)
    async for part in copy_out(database, batch_id, last=_LAST, select=select):
        yield part


_ESCAPED = re.compile(rb"\\([\\tr])")
_PLAIN = {b"\\": b"\\", b"t": b"\t", b"r": b"\r"}


def _unescape(match: re.Match[bytes]) -> bytes:
    """Undo what COPY does to backslashes, tabs and carriage returns; a line has no other character that it escapes."""
    return _PLAIN[match[1]]


async def copy_out(database: AsyncEngine, key: UUID, *, last: str, select: str) -> AsyncIterator[bytes]:
    """Read lines of text by COPY, a run of line numbers at a time.

    Each run is a transaction of its own, so a reader who dawdles holds none open. Runs are cut by number, not by LIMIT:
    on tables that have just been filled the planner would sort all that is left for each of them.

    Args:
        database: where to read.
        key: what the lines belong to.
        last: a query for the greatest line number, of `:id`.
        select: a query for the texts, in their order, with slots `{id}`, `{hex}`, `{first}` and `{last}`.
    """
    async with database.connect() as connection:
        end = (await connection.execute(text(last), {"id": key})).scalar() or 0
    for first in range(1, end + 1, _RUN):
        statement = select.format(id=key, hex=key.hex, first=first, last=first + _RUN - 1)
        run = bytearray()
        async with database.begin() as connection:
            driver = (await connection.get_raw_connection()).driver_connection
            async with driver.cursor() as cursor, cursor.copy(f"COPY ({statement}) TO STDOUT") as copy:  # type: ignore[union-attr]
                async for block in copy:
                    run += block
        if run:
            yield _ESCAPED.sub(_unescape, bytes(run))
