"""`/v1/batches`: OpenAI's batches, with pausing, resuming, retrying, progress events and results at any time beside."""

from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse

from infra import metrics
from producer import batches, outputs
from producer.access import Caller
from producer.api.access import Reader, Submitter, authenticate
from producer.api.bodies import JsonRoute
from producer.api.problems import DOCUMENTED_AS_OPENAI
from producer.api.requests import IdempotencyKey, known_key
from producer.streams import EventStream, rest
from producer.uploads import SHARD_LINES
from schemas.batch import Batch, BatchPage, BatchRequest, BatchStatus
from schemas.problems import Problem
from schemas.states import Lane

router = APIRouter(prefix="/v1/batches", tags=["batches"], route_class=JsonRoute, responses=DOCUMENTED_AS_OPENAI)

_EVENT_SECONDS = 1.0
_SILENCE_SECONDS = 15.0
"""After this long without news a comment is sent, so that nothing between us and the reader gives up."""


@router.post("")
async def create(
    caller: Submitter, body: BatchRequest, request: Request, response: Response, idempotency_key: IdempotencyKey = None
) -> Batch:
    """Make a batch of an uploaded file. It runs as soon as its window is open and there is room."""
    state = request.app.state
    async with state.limiter.turn(caller):
        batch, replayed = await batches.create(
            state.database,
            body,
            tenant=caller.tenant,
            idempotency_key=known_key(idempotency_key),
            allowed=state.allowed,
            traceparent=state.traces.current(),
            clock_shift=state.settings.clock_shift_seconds,
            admit=partial(state.limiter.batch, caller=caller),
            worker_seconds=state.worker_seconds,
        )
    if replayed:
        response.headers["Idempotent-Replayed"] = "true"
    elif batch.status is not BatchStatus.FAILED:
        state.meters.add(metrics.FILED, batch.request_counts.total, lane=Lane.BULK)
    return batch


@router.get("")
async def page(
    caller: Reader, request: Request, after: str | None = None, limit: Annotated[int, Query(ge=1, le=100)] = 20
) -> BatchPage:
    """List batches, newest first."""
    async with request.app.state.database.connect() as connection:
        return await batches.page(
            connection,
            tenant=caller.tenant,
            after=None if after is None else batches.key_of(after),
            limit=limit,
            worker_seconds=request.app.state.worker_seconds,
        )


async def read_batch(request: Request, caller: Caller, key: UUID) -> Batch:
    """Read a batch.

    Raises:
        Problem: the tenant has no such batch.
    """
    async with request.app.state.database.connect() as connection:
        return await batches.read(
            connection, tenant=caller.tenant, batch_id=key, worker_seconds=request.app.state.worker_seconds
        )


@router.get("/{batch_id}")
async def read(caller: Reader, batch_id: str, request: Request) -> Batch:
    """Read a batch as it stands: counts, rate, time left, and why it waits if it does."""
    return await read_batch(request, caller, batches.key_of(batch_id))


@router.post("/{batch_id}/cancel")
async def cancel(caller: Submitter, batch_id: str, request: Request) -> Batch:
    """Call a batch off. What was decided stays and can be read."""
    state = request.app.state
    return await batches.cancel(
        state.database, tenant=caller.tenant, batch_id=batches.key_of(batch_id), worker_seconds=state.worker_seconds
    )


@router.post("/{batch_id}/pause")
async def pause(caller: Submitter, batch_id: str, request: Request) -> Batch:
    """Hold a batch. What is out comes back; nothing decided is lost."""
    return await _paused(request, caller, batch_id, paused=True)


@router.post("/{batch_id}/resume")
async def resume(caller: Submitter, batch_id: str, request: Request) -> Batch:
    """Let a paused batch go on."""
    return await _paused(request, caller, batch_id, paused=False)


async def _paused(request: Request, caller: Caller, batch_id: str, *, paused: bool) -> Batch:
    state, key = request.app.state, batches.key_of(batch_id)
    return await batches.pause(
        state.database, tenant=caller.tenant, batch_id=key, paused=paused, worker_seconds=state.worker_seconds
    )


@router.post("/{batch_id}/retry")
async def retry(caller: Submitter, batch_id: str, request: Request) -> Batch:
    """Judge the errored lines of an ended batch again, and those alone."""
    state = request.app.state
    async with state.limiter.turn(caller):
        return await batches.retry(
            state.database,
            tenant=caller.tenant,
            batch_id=batches.key_of(batch_id),
            shard_lines=SHARD_LINES,
            traceparent=state.traces.current(),
            admit=partial(state.limiter.batch, caller=caller, again=True),
            worker_seconds=state.worker_seconds,
        )


@router.get("/{batch_id}/results", response_class=StreamingResponse)
async def results(caller: Reader, batch_id: str, request: Request) -> StreamingResponse:
    """Stream what has been decided so far: a comparison object a line, in the order of the file."""
    key = batches.key_of(batch_id)
    await read_batch(request, caller, key)
    lines = outputs.stream(request.app.state.database, key, "results")
    return StreamingResponse(lines, media_type="application/jsonl")


@router.get("/{batch_id}/events", response_class=StreamingResponse)
async def events(caller: Reader, batch_id: str, request: Request) -> EventStream:
    """Follow a batch as server-sent events: the batch object whenever it has changed, until it has ended."""
    key = batches.key_of(batch_id)
    await read_batch(request, caller, key)
    return EventStream(request, caller, _follow(request, caller, key))


async def _follow(request: Request, caller: Caller, key: UUID) -> AsyncIterator[str]:
    told = ""
    silent = 0.0
    while not request.app.state.ending.is_set():
        # The key may have ended since the last look, and with it whoever reads.
        try:
            await authenticate(request)
        except Problem:
            return
        batch = await read_batch(request, caller, key)
        news = batch.model_dump_json()
        if news != told:
            told, silent = news, 0.0
            yield f"event: batch\ndata: {news}\n\n"
        elif silent >= _SILENCE_SECONDS:
            silent = 0.0
            yield ": still here\n\n"
        if batch.status.final:
            return
        await rest(request, _EVENT_SECONDS)
        silent += _EVENT_SECONDS
