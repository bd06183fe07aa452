"""The log of callbacks, and sending them again."""

# ruff: noqa: S608 - statements are put together from constants of this module alone; values are always bound

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from producer.callback_endpoints import disabled
from schemas import ids
from schemas.callback import Attempt, Callback, CallbackPage, CallbackState, Replayed, event_data
from schemas.problems import NOT_FOUND, Problem

_AT_ONCE = 1000

_COLUMNS = """
    SELECT c.*, e.type, e.subject_id, e.line, p.registered, p.state AS endpoint_state,
           CASE WHEN c.state = 'waiting' AND p.open_until > greatest(c.due_at, now()) THEN p.open_until END
               AS held_until
    FROM callbacks c JOIN callback_events e ON e.id = c.event_id JOIN callback_endpoints p ON p.id = c.endpoint_id
"""

_READ = text(f"{_COLUMNS} WHERE c.tenant = :tenant AND c.id = :id")

_ATTEMPTS = text(
    "SELECT number, at, seconds, status, reason FROM callback_attempts WHERE callback_id = :id ORDER BY id"
)

_CHOSEN = """
    c.tenant = :tenant AND (CAST(:after AS uuid) IS NULL OR c.id < :after)
    AND (CAST(:status AS text) IS NULL OR c.state = :status)
    AND (CAST(:endpoint AS uuid) IS NULL OR c.endpoint_id = :endpoint)
"""
# The page is found before its events are: joined, Postgres takes a page for more than there is, and reads them all.
_PAGE = text(f"""
    WITH page AS MATERIALIZED (SELECT id FROM callbacks c WHERE {_CHOSEN} ORDER BY id DESC LIMIT :limit)
    {_COLUMNS} WHERE c.tenant = :tenant AND c.id = ANY(ARRAY(SELECT id FROM page)) ORDER BY c.id DESC
""")
_PAGE_OF = text(f"""
    {_COLUMNS} WHERE {_CHOSEN} AND e.subject_id = :subject AND e.line = :line ORDER BY c.id DESC LIMIT :limit
""")

_DUE_NOW = """
    state = 'waiting', due_at = now() + make_interval(secs => :shift), attempt = 0, ended_at = NULL, released_at = NULL
"""

# What is on its way already is left alone; what waits goes now.
_REPLAY = text(f"""
    UPDATE callbacks SET {_DUE_NOW}
    WHERE tenant = :tenant AND id = :id AND state IN ('waiting', 'delivered', 'dead')
""")

_REPLAY_DEAD = text(f"""
    WITH dead AS MATERIALIZED (
        SELECT c.id, p.open_until > now() IS TRUE AS held FROM callbacks c JOIN callback_events e ON e.id = c.event_id
        JOIN callback_endpoints p ON p.id = c.endpoint_id
        WHERE c.tenant = :tenant AND c.state = 'dead' AND e.at >= :since AND p.state = 'enabled'
          AND (CAST(:endpoint AS uuid) IS NULL OR c.endpoint_id = :endpoint)
        ORDER BY c.id LIMIT :limit
        FOR UPDATE OF c SKIP LOCKED
    )
    UPDATE callbacks SET {_DUE_NOW} FROM dead WHERE callbacks.id = dead.id RETURNING dead.held
""")


def _no_such() -> Problem:
    return Problem(NOT_FOUND, "There is no callback of this id.")


def key_of(callback_id: str) -> UUID:
    """Read a callback's id.

    Raises:
        Problem: it is none.
    """
    key = ids.parse_prefixed(callback_id, "cbk_")
    if key is None:
        raise _no_such()
    return key


def _callback(row: Row[Any], log: list[Attempt] | None = None) -> Callback:
    return Callback(
        id=ids.callback_id(row.id),
        event_id=ids.event_id(row.event_id),
        type=row.type,
        data=event_data(row.type, row.subject_id, row.line),
        endpoint_id=ids.endpoint_id(row.endpoint_id),
        registered=row.registered,
        url=row.url,
        status=CallbackState(row.state),
        attempts=row.attempt,
        next_attempt_at=row.held_until or row.due_at if row.state == CallbackState.WAITING else None,
        held_until=row.held_until,
        last_status=row.status,
        last_reason=row.reason,
        created_at=row.created_at,
        ended_at=row.ended_at,
        log=log,
    )


async def read(connection: AsyncConnection, *, tenant: str, callback: UUID) -> Callback:
    """Read a callback with all of its attempts.

    Raises:
        Problem: the tenant has no such callback.
    """
    row = (await connection.execute(_READ, {"tenant": tenant, "id": callback})).one_or_none()
    if row is None:
        raise _no_such()
    attempts = await connection.execute(_ATTEMPTS, {"id": callback})
    return _callback(row, [Attempt.model_validate(dict(each._mapping)) for each in attempts])  # noqa: SLF001


async def page(
    connection: AsyncConnection,
    *,
    tenant: str,
    after: UUID | None,
    limit: int,
    status: CallbackState | None,
    endpoint: UUID | None,
    subject: tuple[UUID, int] | None,
) -> CallbackPage:
    """List callbacks, newest first: all, or those of a state, of an endpoint, or about one comparison or batch."""
    parameters = {
        "tenant": tenant,
        "after": after,
        "status": status,
        "endpoint": endpoint,
        "subject": subject[0] if subject else None,
        "line": subject[1] if subject else None,
        "limit": limit + 1,
    }
    rows = (await connection.execute(_PAGE_OF if subject else _PAGE, parameters)).all()
    return CallbackPage.of([_callback(row) for row in rows], limit)


async def replay(database: AsyncEngine, *, tenant: str, callback: UUID, shift: float) -> Callback:
    """Send a callback again, now, under the id it has always had, with the whole schedule before it.

    Raises:
        Problem: the tenant has no such callback, or its endpoint is disabled.
    """
    async with database.begin() as connection:
        row = (await connection.execute(_READ, {"tenant": tenant, "id": callback})).one_or_none()
        if row is None:
            raise _no_such()
        if row.endpoint_state == "disabled":
            raise disabled(ids.endpoint_id(row.endpoint_id))
        await connection.execute(_REPLAY, {"tenant": tenant, "id": callback, "shift": shift})
        return await read(connection, tenant=tenant, callback=callback)


async def replay_dead(
    database: AsyncEngine, *, tenant: str, since: datetime, endpoint: UUID | None, shift: float
) -> Replayed:
    """Send everything dead of events since a moment again, except to disabled endpoints."""
    parameters = {"tenant": tenant, "since": since, "endpoint": endpoint, "shift": shift, "limit": _AT_ONCE}
    total = held = 0
    while True:
        async with database.begin() as connection:
            replayed = (await connection.execute(_REPLAY_DEAD, parameters)).scalars().all()
        total += len(replayed)
        held += sum(replayed)
        if len(replayed) < _AT_ONCE:
            return Replayed(replayed=total, held=held)
