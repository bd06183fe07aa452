"""Uploaded files: listing them, reading them back, and deleting them. `uploads.py` takes them in."""

from collections.abc import AsyncIterator
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from producer import retention
from producer.outputs import by_size, read_out
from schemas import ids
from schemas.batch import File, FilePage
from schemas.problems import INVALID_REQUEST, Problem

ListOrder = Literal["asc", "desc"]
"""By when their uploads began: oldest first, or newest first."""

_READ = text("SELECT * FROM files WHERE tenant = :tenant AND id = :id AND state = 'processed'")
_PAGE = """
    SELECT * FROM files WHERE tenant = :tenant AND state = 'processed'
      AND (CAST(:after AS uuid) IS NULL OR id {beyond} :after) ORDER BY id {order} LIMIT :limit
"""
_PAGES: dict[ListOrder, TextClause] = {
    "desc": text(_PAGE.format(beyond="<", order="DESC")),
    "asc": text(_PAGE.format(beyond=">", order="ASC")),
}
_SPANS = text(by_size(":id"))
_BODIES = text("""
    SELECT string_agg(body || chr(10), '' ORDER BY line) FROM comparisons
    WHERE source_id = :id AND line BETWEEN :first AND :last
""")


def as_file(row: Any) -> File:
    """Give a row of `files` the form it has on the wire."""
    return File(
        id=ids.file_id(row.id),
        bytes=row.bytes,
        created_at=int(row.created_at.timestamp()),
        filename=row.filename,
        purpose=row.purpose,
        status="processed" if row.state == "processed" else "uploaded",
        lines=row.lines,
        bad_lines=row.bad_lines,
    )


async def read(connection: AsyncConnection, *, tenant: str, file_id: UUID) -> Any | None:
    """Read a file's row; None where the tenant has no such file."""
    return (await connection.execute(_READ, {"tenant": tenant, "id": file_id})).one_or_none()


async def page(
    database: AsyncEngine, *, tenant: str, after: UUID | None, limit: int, order: ListOrder = "desc"
) -> FilePage:
    """List a tenant's files that are taken in, in an order, from the one that follows `after` in it."""
    async with database.connect() as connection:
        rows = (await connection.execute(_PAGES[order], {"tenant": tenant, "after": after, "limit": limit + 1})).all()
    return FilePage.of([as_file(row) for row in rows], limit)


async def content(database: AsyncEngine, file_id: UUID) -> AsyncIterator[bytes]:
    """Give back a file's lines, as they came, in their order."""
    async for part in read_out(database, file_id, spans=_SPANS, run=_BODIES):
        yield part


async def delete(database: AsyncEngine, file_id: UUID) -> None:
    """Delete a file that no batch was made of.

    Raises:
        Problem: a batch was made of it.
    """
    async with database.begin() as connection:
        await connection.execute(retention.LOCK_FILE, {"id": file_id})
        if (await connection.execute(retention.CLOSE_FILE, {"id": file_id})).rowcount == 0:
            raise Problem(INVALID_REQUEST, "A batch was made of this file, and its verdicts refer to the lines.")
    await take_out(database, file_id)


async def take_out(database: AsyncEngine, file_id: UUID) -> None:
    """Remove a file and all its lines."""
    for statement in retention.OF_FILE:
        await retention.in_steps_async(database, statement, {"id": file_id})
