"""`/dashboard/callbacks`: who is called back, how it went, and one callback with every attempt."""

from datetime import UTC, datetime
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response

from producer import callback_endpoints, callbacks
from producer.dashboard import live, receivers, render
from producer.dashboard.access import Admin, Form, Reader
from schemas import ids
from schemas.callback import CallbackState

router = APIRouter(prefix=render.HOME, include_in_schema=False)

_LIMIT = 25
_EVERY_SECONDS = 2.0


def endpoint_key(endpoint_id: str) -> UUID:
    """Read a receiver's id.

    Raises:
        Problem: it is none.
    """
    key = ids.parse_prefixed(endpoint_id, "cep_")
    if key is None:
        raise callback_endpoints.no_such()
    return key


@router.get("/callbacks")
async def page(
    caller: Reader,
    request: Request,
    status: CallbackState | Literal[""] = "",
    endpoint: str = "",
    after: str | None = None,
    replayed: Annotated[int | None, Query(ge=0)] = None,
) -> Response:
    """Show receivers, those that fail first, and the log of callbacks."""
    only = endpoint_key(endpoint) if endpoint else None
    begin = None if after is None else callbacks.key_of(after)
    async with request.app.state.database.connect() as connection:
        log = await callbacks.page(
            connection,
            tenant=caller.tenant,
            after=begin,
            limit=_LIMIT,
            status=CallbackState(status) if status else None,
            endpoint=only,
            subject=None,
        )
        standing = await receivers.standing(connection, tenant=caller.tenant)
    return render.page(
        request,
        "callbacks",
        standing=standing,
        counted=receivers.COUNTED,
        log=log,
        status=status,
        endpoint=endpoint,
        first=after is None,
        replayed=replayed,
    )


@router.get("/callbacks/events")
async def events(caller: Reader, request: Request) -> Response:
    """Follow the receivers."""

    async def look() -> dict[str, object]:
        async with request.app.state.database.connect() as connection:
            standing = await receivers.standing(connection, tenant=caller.tenant)
        return {"standing": standing, "counted": receivers.COUNTED}

    return live.stream(request, "callbacks", look, every=_EVERY_SECONDS)


@router.post("/callbacks/replay")
async def replay_dead(caller: Admin, form: Form, request: Request) -> Response:
    """Send everything again that is dead of one receiver."""
    state = request.app.state
    key = endpoint_key(form.get("endpoint", ""))
    async with state.database.connect() as connection:
        standing = await receivers.state(connection, tenant=caller.tenant, receiver=key)
    if standing is None:
        raise callback_endpoints.no_such()
    if standing == "disabled":
        raise callback_endpoints.disabled(form["endpoint"])
    since, shift = datetime.fromtimestamp(0, UTC), state.settings.clock_shift_seconds
    sent = await callbacks.replay_dead(state.database, tenant=caller.tenant, since=since, endpoint=key, shift=shift)
    return render.go(f"/callbacks?replayed={sent.replayed}")


@router.post("/callbacks/{callback_id}/replay")
async def replay(caller: Admin, _form: Form, request: Request, callback_id: str) -> Response:
    """Send a callback again, now, under the id that it has always had."""
    state = request.app.state
    shift = state.settings.clock_shift_seconds
    await callbacks.replay(state.database, tenant=caller.tenant, callback=callbacks.key_of(callback_id), shift=shift)
    return render.go(f"/callbacks/{callback_id}")


@router.get("/callbacks/{callback_id}")
async def one(caller: Reader, request: Request, callback_id: str) -> Response:
    """Show one callback with every attempt."""
    async with request.app.state.database.connect() as connection:
        found = await callbacks.read(connection, tenant=caller.tenant, callback=callbacks.key_of(callback_id))
    return render.page(request, "callback", found=found)
