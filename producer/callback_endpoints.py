"""Callback endpoints: receivers that are registered, those that requests name, and the secrets of both."""

# ruff: noqa: S608 - statements are put together from constants of this module alone; values are always bound

from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from infra import callback_secrets
from infra.addresses import Allowed, Target, UrlRefusedError, check_url
from infra.callbacks_sql import NEW_ID
from infra.sealing import Seals
from producer import retention
from schemas import ids
from schemas.callback import Endpoint, EndpointRequest, NewEndpoint, Secret
from schemas.ids import new_filing_id
from schemas.problems import (
    ENDPOINT_DISABLED,
    INVALID_REQUEST,
    NO_CALLBACK_SECRET,
    NOT_FOUND,
    TOO_MANY_RECEIVERS,
    FieldError,
    Problem,
)

_ADD = text("""
    INSERT INTO callback_endpoints (id, tenant, url, registered, types, description)
    SELECT :id, :tenant, :url, true, CAST(:types AS text[]), :description
    WHERE (SELECT count(*) FROM callback_endpoints WHERE tenant = :tenant AND registered) < :most
    RETURNING *
""")

_ONE = text("SELECT * FROM callback_endpoints WHERE tenant = :tenant AND id = :id")

_ALL = text("""
    SELECT * FROM callback_endpoints
    WHERE tenant = :tenant AND (registered OR failures > 0 OR open_until > now())
    ORDER BY registered DESC, CASE WHEN registered THEN id END, open_until > now() IS TRUE DESC, failing_since DESC
    LIMIT :most
""")

# Enabling forgets the failures: whoever enables has mended something.
_SWITCH = text("""
    UPDATE callback_endpoints SET
        state = CASE WHEN :enabled THEN 'enabled' ELSE 'disabled' END,
        disabled_reason = CASE WHEN :enabled THEN NULL ELSE 'asked' END,
        failures = CASE WHEN :enabled THEN 0 ELSE failures END,
        failing_since = CASE WHEN :enabled THEN NULL ELSE failing_since END,
        open_until = CASE WHEN :enabled THEN NULL ELSE open_until END
    WHERE tenant = :tenant AND id = :id
    RETURNING *
""")

# Its callbacks first: whoever records an attempt locks the callback before the endpoint, and there may be very many.
_CLEAR = retention.rows("callbacks", "tenant = :tenant AND endpoint_id = :id ORDER BY id", "id")
_REMOVE = text("DELETE FROM callback_endpoints WHERE tenant = :tenant AND id = :id AND registered")

# Whether a request would add a receiver to too many of its tenant's that took nothing yet, or failed at the last. Those
# made long ago are let off: all that was for them has been given up.
_TOO_MANY = text("""
    SELECT NOT EXISTS (SELECT FROM callback_endpoints WHERE tenant = :tenant AND url = :origin AND NOT registered)
       AND :most <= (SELECT count(*) FROM (
           SELECT FROM callback_endpoints
           WHERE tenant = :tenant AND NOT registered AND (succeeded_at IS NULL OR failures > 0)
             AND created_at > now() - make_interval(days => :days) LIMIT :most) AS unproven)
""")

# One endpoint stands for an origin, made when the first request names it: what hangs for one request hangs for all.
# It is locked so that no retention deletes it meanwhile; where one just has, it is made anew.
_REMEMBER = text(f"""
    WITH known AS (
        SELECT id FROM callback_endpoints WHERE tenant = :tenant AND url = :origin AND NOT registered FOR KEY SHARE
    ), made AS (
        INSERT INTO callback_endpoints (id, tenant, url, registered)
        SELECT {NEW_ID}, :tenant, :origin, false WHERE NOT EXISTS (SELECT FROM known)
        ON CONFLICT (tenant, url) WHERE NOT registered DO NOTHING
        RETURNING id
    )
    INSERT INTO callback_requests (filing_id, tenant, endpoint_id, url)
    SELECT :filing_id, :tenant, id, :url FROM (SELECT id FROM known UNION ALL SELECT id FROM made) AS either
""")

_TEST = text(f"""
    WITH told AS (
        INSERT INTO callback_events (id, tenant, type, subject_id, line, at, fanned_out)
        SELECT {NEW_ID}, tenant, 'callback.test', id, 0, clock_timestamp(), true
        FROM callback_endpoints WHERE tenant = :tenant AND id = :id
        RETURNING id, tenant
    )
    INSERT INTO callbacks (id, tenant, event_id, endpoint_id, url, state, due_at)
    SELECT {NEW_ID}, told.tenant, told.id, e.id, e.url, 'waiting', now() + make_interval(secs => :shift)
    FROM told, callback_endpoints e WHERE e.id = :id
    RETURNING id
""")


_REGISTERED_MOST = 100
"""How many receivers a tenant may have registered: each of its events makes a callback for each."""
_UNPROVEN_MOST, _UNPROVEN_DAYS = 1_000, 5
"""How many receivers a tenant's requests may name within so many days that have yet to take anything."""
_LISTED_MOST = 2 * _REGISTERED_MOST
"""How many are listed. Those that requests named may be more, and each callback tells the id of its receiver."""


def check(url: str, allowed: Allowed, *, field: str) -> Target:
    """Check that callbacks may go to a URL, by its spelling alone; its addresses are judged at each attempt.

    Raises:
        Problem: they may not; the detail says why and what to do.
    """
    try:
        return check_url(url, allowed)
    except UrlRefusedError as error:
        message = str(error)
        raise Problem(
            INVALID_REQUEST, f"{field}: {message}", errors=[FieldError(field=field, message=message)]
        ) from None


def remember(connection: Connection, *, tenant: str, filing_id: UUID, url: str, allowed: Allowed) -> None:
    """Keep where a filing calls back to, in the transaction that files it.

    Raises:
        Problem: callbacks may not go there, or could not be signed; or too many receivers have yet to take anything.
    """
    target = check(url, allowed, field="callback_url")
    if not callback_secrets.exist(connection, tenant=tenant, endpoint=None):
        raise Problem(
            NO_CALLBACK_SECRET,
            "What goes to a callback_url is signed with your default secret, and there is none yet. Make one with "
            "`nightcourt callbacks rotate-secret` or POST /v1/callback-secret, and give it to your receiver.",
        )
    origin = f"{target.scheme}://{target.authority}"
    bounds = {"tenant": tenant, "origin": origin, "most": _UNPROVEN_MOST, "days": _UNPROVEN_DAYS}
    if connection.execute(_TOO_MANY, bounds).scalar_one():
        raise Problem(
            TOO_MANY_RECEIVERS,
            f"In the last {_UNPROVEN_DAYS} days requests named {_UNPROVEN_MOST} receivers (scheme, host and port) that "
            "took no callback yet, or failed at the last. Name one that was named before, register an endpoint with "
            "`nightcourt callbacks add`, or mend what `nightcourt callbacks list` shows.",
        )
    parameters = {"tenant": tenant, "filing_id": filing_id, "url": url, "origin": origin}
    # Where somebody else has just made the endpoint, the first statement saw neither theirs nor made its own.
    while connection.execute(_REMEMBER, parameters).rowcount == 0:
        pass


def no_such() -> Problem:
    """Say that there is no such endpoint, whoever's it may be."""
    return Problem(NOT_FOUND, "There is no callback endpoint of this id.")


def _endpoint(row: Row[Any]) -> Endpoint:
    return Endpoint(
        id=ids.endpoint_id(row.id),
        url=row.url,
        registered=row.registered,
        events=row.types,
        description=row.description,
        status=row.state,
        disabled_reason=row.disabled_reason,
        created_at=row.created_at,
        last_success_at=row.succeeded_at,
        failing_since=row.failing_since,
        failures=row.failures,
        held_until=row.open_until,
    )


async def add(
    database: AsyncEngine, request: EndpointRequest, *, tenant: str, allowed: Allowed, seals: Seals
) -> NewEndpoint:
    """Register a receiver. It hears of what is filed, and of batches that end, from now on.

    Raises:
        Problem: callbacks may not go to its URL; or the tenant has too many already.
    """
    check(request.url, allowed, field="url")
    parameters = {
        "id": new_filing_id(),
        "tenant": tenant,
        "url": request.url,
        "types": [str(each) for each in request.events],
        "description": request.description,
        "most": _REGISTERED_MOST,
    }
    async with database.begin() as connection:
        row = (await connection.execute(_ADD, parameters)).one_or_none()
        if row is None:
            raise Problem(
                TOO_MANY_RECEIVERS,
                f"{_REGISTERED_MOST} callback endpoints are registered, disabled ones included. Remove one that nobody "
                "needs: DELETE /v1/callback-endpoints/{id}.",
            )
        secret, _ = await connection.run_sync(
            callback_secrets.rotate, seals, tenant=tenant, endpoint=row.id, grace_seconds=0
        )
    return NewEndpoint(**_endpoint(row).model_dump(), secret=secret)


async def read(connection: AsyncConnection, *, tenant: str, endpoint: UUID) -> Endpoint:
    """Read an endpoint, registered or named by requests.

    Raises:
        Problem: the tenant has no such endpoint.
    """
    row = (await connection.execute(_ONE, {"tenant": tenant, "id": endpoint})).one_or_none()
    if row is None:
        raise no_such()
    return _endpoint(row)


async def _read_registered(connection: AsyncConnection, *, tenant: str, endpoint: UUID) -> Endpoint:
    found = await read(connection, tenant=tenant, endpoint=endpoint)
    if not found.registered:
        raise Problem(
            NOT_FOUND, f"No callback endpoint {found.id} is registered: requests named {found.url}. It can be enabled."
        )
    return found


async def everything(connection: AsyncConnection, *, tenant: str) -> list[Endpoint]:
    """List a tenant's registered endpoints, oldest first, and of those that requests named what fails or is held."""
    found = await connection.execute(_ALL, {"tenant": tenant, "most": _LISTED_MOST})
    return [_endpoint(row) for row in found]


async def switch(database: AsyncEngine, *, tenant: str, endpoint: UUID, enabled: bool) -> Endpoint:
    """Disable an endpoint, so that nothing is sent there; or enable it, which forgets how often it failed.

    Events go on being kept for a disabled endpoint, dead, and can be replayed once it is enabled. One that requests
    named is never disabled; enabling it ends its hold.

    Raises:
        Problem: the tenant has no such endpoint, or none that may be disabled.
    """
    async with database.begin() as connection:
        if not enabled:
            await _read_registered(connection, tenant=tenant, endpoint=endpoint)
        parameters = {"tenant": tenant, "id": endpoint, "enabled": enabled}
        row = (await connection.execute(_SWITCH, parameters)).one_or_none()
    if row is None:
        raise no_such()
    return _endpoint(row)


async def remove(database: AsyncEngine, *, tenant: str, endpoint: UUID) -> None:
    """Remove an endpoint with all of its callbacks, those on their way included. It is disabled until that is done.

    Raises:
        Problem: the tenant has no such endpoint.
    """
    await switch(database, tenant=tenant, endpoint=endpoint, enabled=False)
    await retention.in_steps_async(database, _CLEAR, {"tenant": tenant, "id": endpoint})
    async with database.begin() as connection:
        await connection.execute(_REMOVE, {"tenant": tenant, "id": endpoint})


async def rotate(
    database: AsyncEngine, *, tenant: str, endpoint: UUID | None, grace_seconds: float, seals: Seals
) -> Secret:
    """Make a new secret, of an endpoint or the tenant's default, and let the earlier one sign for a time yet.

    Raises:
        Problem: the tenant has no such endpoint.
    """
    async with database.begin() as connection:
        if endpoint is not None:
            await _read_registered(connection, tenant=tenant, endpoint=endpoint)
        secret, until = await connection.run_sync(
            callback_secrets.rotate, seals, tenant=tenant, endpoint=endpoint, grace_seconds=grace_seconds
        )
    return Secret(
        endpoint_id=None if endpoint is None else ids.endpoint_id(endpoint),
        secret=secret,
        previous_valid_until=until if grace_seconds else None,
    )


async def test(database: AsyncEngine, *, tenant: str, endpoint: UUID, shift: float) -> UUID:
    """Send an endpoint a `callback.test` event. Returns the callback's key.

    Raises:
        Problem: the tenant has no such endpoint, or it is disabled.
    """
    async with database.begin() as connection:
        found = await _read_registered(connection, tenant=tenant, endpoint=endpoint)
        if found.status == "disabled":
            raise disabled(found.id)
        parameters = {"tenant": tenant, "id": endpoint, "shift": shift}
        return UUID(str((await connection.execute(_TEST, parameters)).scalar_one()))


def disabled(endpoint_id: str) -> Problem:
    """Say that nothing is sent to an endpoint that is disabled."""
    return Problem(
        ENDPOINT_DISABLED, f"Nothing is sent to {endpoint_id} while it is disabled. Enable it, then send again."
    )
