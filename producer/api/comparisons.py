"""`/v1/comparisons`: file one, read it, list them, call one off."""

import re
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response

from infra import metrics
from producer import results, waiting
from producer.access import Caller
from producer.api.access import Reader, Submitter
from producer.api.bodies import JsonRoute
from producer.api.problems import DOCUMENTED
from producer.api.requests import IdempotencyKey, known_key
from producer.intake import file_comparison
from schemas.comparison import Comparison, ComparisonPage, ComparisonRequest
from schemas.ids import ComparisonKey, parse_comparison_id
from schemas.problems import INVALID_HEADER, NOT_FOUND, Problem
from schemas.states import Lane

router = APIRouter(prefix="/v1/comparisons", tags=["comparisons"], route_class=JsonRoute, responses=DOCUMENTED)

_WAIT = re.compile(r"(?:^|,)\s*wait\s*=\s*([^,;\s]*)", re.IGNORECASE)

Prefer = Annotated[
    str | None,
    Header(description="`wait=SECONDS` (RFC 7240) holds the answer until the comparison is decided or the time is up"),
]


def _key(comparison_id: str) -> ComparisonKey:
    key = parse_comparison_id(comparison_id)
    if key is None:
        raise Problem(NOT_FOUND, "A comparison's id looks like cmp_ and 32 hexadecimal digits; this is none.")
    return key


def _wait_seconds(prefer: str | None, longest: float) -> float:
    match = _WAIT.search(prefer or "")
    if match is None:
        return 0.0
    if not re.fullmatch(r"\d{1,9}(?:\.\d{1,9})?", match[1]):
        raise Problem(INVALID_HEADER, "Prefer: wait takes a number of seconds, for instance `Prefer: wait=30`.")
    return min(float(match[1]), longest)


async def _read(request: Request, caller: Caller, key: ComparisonKey) -> Comparison:
    async with request.app.state.database.connect() as connection:
        return await results.read(connection, tenant=caller.tenant, key=key)


async def _held(request: Request, response: Response, key: ComparisonKey, seconds: float) -> bool:
    """Hold the answer until the comparison is decided. It is the caller's: how long this takes tells of it."""
    if seconds <= 0 or not await request.app.state.waiter.wait(key, seconds):
        return False
    response.headers["Preference-Applied"] = f"wait={seconds:g}"
    return True


@router.post("", status_code=202, responses={200: {"model": Comparison, "description": "Decided in time"}})
async def file(
    caller: Submitter,
    body: ComparisonRequest,
    request: Request,
    response: Response,
    idempotency_key: IdempotencyKey = None,
    prefer: Prefer = None,
) -> Comparison:
    """File a comparison. Answers 202 once it is stored; 200 if it was decided while waiting."""
    state = request.app.state
    seconds = _wait_seconds(prefer, state.settings.max_wait_seconds)
    receipt = await file_comparison(
        state.database,
        body,
        tenant=caller.tenant,
        idempotency_key=known_key(idempotency_key),
        request_id=request.state.request_id,
        allowed=state.allowed,
        traceparent=state.traces.current(),
        admit=partial(state.limiter.comparison, caller=caller),
    )
    if receipt.replayed:
        response.headers["Idempotent-Replayed"] = "true"
    else:
        state.meters.add(metrics.FILED, lane=Lane.INTERACTIVE)
    await _held(request, response, receipt.key, seconds)
    comparison = await _read(request, caller, receipt.key)
    response.headers["Location"] = f"/v1/comparisons/{comparison.id}"
    response.status_code = 200 if comparison.status.final else 202
    return comparison


@router.get("")
async def page(
    caller: Reader,
    request: Request,
    after: Annotated[str | None, Query(description="The id that the page before ended with")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> ComparisonPage:
    """List comparisons that were filed singly, newest first."""
    async with request.app.state.database.connect() as connection:
        return await results.page(
            connection, tenant=caller.tenant, after=None if after is None else _key(after), limit=limit
        )


@router.get("/{comparison_id}")
async def read(
    caller: Reader, comparison_id: str, request: Request, response: Response, prefer: Prefer = None
) -> Comparison:
    """Read a comparison, at once or when it is decided; until then `waiting_for` says why it is not."""
    key = _key(comparison_id)
    state = request.app.state
    seconds = _wait_seconds(prefer, state.settings.max_wait_seconds)
    comparison = await _read(request, caller, key)
    if not comparison.status.final and await _held(request, response, key, seconds):
        comparison = await _read(request, caller, key)
    if comparison.status.final:
        return comparison
    async with state.database.connect() as connection:
        reason = await waiting.why_comparison(connection, key, worker_seconds=state.worker_seconds)
    return comparison.model_copy(update={"waiting_for": reason})


@router.post("/{comparison_id}/cancel")
async def cancel(caller: Submitter, comparison_id: str, request: Request) -> Comparison:
    """Call a comparison off, if it has not ended yet."""
    return await results.cancel(request.app.state.database, tenant=caller.tenant, key=_key(comparison_id))
