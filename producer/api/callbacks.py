"""`/v1/callback-endpoints`, `/v1/callback-secret`, `/v1/callbacks`: who is called back, how it went, once more."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Request

from producer import callback_endpoints, callbacks
from producer.api.access import Admin, Reader
from producer.api.bodies import JsonRoute
from producer.api.problems import DOCUMENTED
from schemas import ids
from schemas.callback import (
    Callback,
    CallbackPage,
    CallbackState,
    Endpoint,
    EndpointPage,
    EndpointRequest,
    NewEndpoint,
    Replayed,
    ReplayRequest,
    Rotation,
    Secret,
)
from schemas.problems import NOT_FOUND, Problem, invalid_field

router = APIRouter(prefix="/v1", tags=["callbacks"], route_class=JsonRoute, responses=DOCUMENTED)


def _endpoint(endpoint_id: str) -> UUID:
    key = ids.parse_prefixed(endpoint_id, "cep_")
    if key is None:
        raise Problem(NOT_FOUND, "The id of a callback endpoint looks like cep_ and 32 hexadecimal digits.")
    return key


def _subject(object_id: str) -> tuple[UUID, int]:
    """Tell which events are about a comparison or a batch: a batch as a whole is its line 0."""
    batch = ids.parse_prefixed(object_id, "batch_")
    if batch is not None:
        return batch, 0
    comparison = ids.parse_comparison_id(object_id)
    if comparison is None:
        raise invalid_field("object_id", "takes the id of a comparison or of a batch")
    return comparison


@router.post("/callback-endpoints", status_code=201)
async def add(caller: Admin, body: EndpointRequest, request: Request) -> NewEndpoint:
    """Register a receiver. Its secret is shown this once."""
    state = request.app.state
    return await callback_endpoints.add(
        state.database, body, tenant=caller.tenant, allowed=state.allowed, seals=state.seals
    )


@router.get("/callback-endpoints")
async def endpoints(caller: Reader, request: Request) -> EndpointPage:
    """List the endpoints that are registered, and those named by requests that fail or are held: 200 at most."""
    async with request.app.state.database.connect() as connection:
        return EndpointPage(data=await callback_endpoints.everything(connection, tenant=caller.tenant))


@router.get("/callback-endpoints/{endpoint_id}")
async def endpoint(caller: Reader, endpoint_id: str, request: Request) -> Endpoint:
    """Read one endpoint."""
    async with request.app.state.database.connect() as connection:
        return await callback_endpoints.read(connection, tenant=caller.tenant, endpoint=_endpoint(endpoint_id))


@router.delete("/callback-endpoints/{endpoint_id}", status_code=204)
async def remove(caller: Admin, endpoint_id: str, request: Request) -> None:
    """Remove an endpoint with its callbacks."""
    await callback_endpoints.remove(request.app.state.database, tenant=caller.tenant, endpoint=_endpoint(endpoint_id))


@router.post("/callback-endpoints/{endpoint_id}/disable")
async def disable(caller: Admin, endpoint_id: str, request: Request) -> Endpoint:
    """Send nothing there until it is enabled. Its events are kept, to be replayed."""
    return await callback_endpoints.switch(
        request.app.state.database, tenant=caller.tenant, endpoint=_endpoint(endpoint_id), enabled=False
    )


@router.post("/callback-endpoints/{endpoint_id}/enable")
async def enable(caller: Admin, endpoint_id: str, request: Request) -> Endpoint:
    """Send there again, registered or not, and end its hold. What died is replayed by `POST /v1/callbacks/replay`."""
    return await callback_endpoints.switch(
        request.app.state.database, tenant=caller.tenant, endpoint=_endpoint(endpoint_id), enabled=True
    )


@router.post("/callback-endpoints/{endpoint_id}/rotate-secret")
async def rotate(caller: Admin, endpoint_id: str, request: Request, body: Rotation) -> Secret:
    """Make the endpoint's next secret, shown this once; for a time both sign."""
    return await callback_endpoints.rotate(
        request.app.state.database,
        tenant=caller.tenant,
        endpoint=_endpoint(endpoint_id),
        grace_seconds=body.grace_seconds,
        seals=request.app.state.seals,
    )


@router.post("/callback-endpoints/{endpoint_id}/test", status_code=202)
async def test(caller: Admin, endpoint_id: str, request: Request) -> Callback:
    """Send the endpoint a `callback.test` event. Read the callback to see how it went."""
    state = request.app.state
    shift = state.settings.clock_shift_seconds
    key = await callback_endpoints.test(
        state.database, tenant=caller.tenant, endpoint=_endpoint(endpoint_id), shift=shift
    )
    async with state.database.connect() as connection:
        return await callbacks.read(connection, tenant=caller.tenant, callback=key)


@router.post("/callback-secret")
async def rotate_default(caller: Admin, request: Request, body: Rotation) -> Secret:
    """Make the first or the next secret for what goes to requests' `callback_url`, shown this once."""
    return await callback_endpoints.rotate(
        request.app.state.database,
        tenant=caller.tenant,
        endpoint=None,
        grace_seconds=body.grace_seconds,
        seals=request.app.state.seals,
    )


@router.get("/callbacks")
async def page(
    caller: Reader,
    request: Request,
    after: Annotated[str | None, Query(description="The id that the page before ended with")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    status: CallbackState | None = None,
    endpoint_id: str | None = None,
    object_id: Annotated[str | None, Query(description="Of a comparison or a batch")] = None,
) -> CallbackPage:
    """List callbacks, newest first."""
    async with request.app.state.database.connect() as connection:
        return await callbacks.page(
            connection,
            tenant=caller.tenant,
            after=None if after is None else callbacks.key_of(after),
            limit=limit,
            status=status,
            endpoint=None if endpoint_id is None else _endpoint(endpoint_id),
            subject=None if object_id is None else _subject(object_id),
        )


@router.post("/callbacks/replay")
async def replay_dead(caller: Admin, body: ReplayRequest, request: Request) -> Replayed:
    """Send everything dead of events since a moment again, except to disabled endpoints."""
    state = request.app.state
    endpoint = None if body.endpoint_id is None else _endpoint(body.endpoint_id)
    if endpoint is not None:
        async with state.database.connect() as connection:
            found = await callback_endpoints.read(connection, tenant=caller.tenant, endpoint=endpoint)
        if found.status == "disabled":
            raise callback_endpoints.disabled(found.id)
    return await callbacks.replay_dead(
        state.database,
        tenant=caller.tenant,
        since=body.since,
        endpoint=endpoint,
        shift=state.settings.clock_shift_seconds,
    )


@router.get("/callbacks/{callback_id}")
async def read(caller: Reader, callback_id: str, request: Request) -> Callback:
    """Read a callback with every attempt: when, how long, what came of it."""
    async with request.app.state.database.connect() as connection:
        return await callbacks.read(connection, tenant=caller.tenant, callback=callbacks.key_of(callback_id))


@router.post("/callbacks/{callback_id}/replay", status_code=202)
async def replay(caller: Admin, callback_id: str, request: Request) -> Callback:
    """Send a callback again, now, under the same id."""
    state = request.app.state
    return await callbacks.replay(
        state.database,
        tenant=caller.tenant,
        callback=callbacks.key_of(callback_id),
        shift=state.settings.clock_shift_seconds,
    )
