"""`/dashboard/batches` and `/dashboard/comparisons`: batches, one batch with its verdicts, and one comparison."""

import asyncio
from contextlib import nullcontext
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response

from producer import batches, reports, results, streams, waiting
from producer.dashboard import live, render, verdicts
from producer.dashboard.access import Form, Reader, Submitter
from producer.dashboard.verdicts import Ended, Orders, Wanted
from schemas import ids
from schemas.batch import Batch
from schemas.ids import LAST_LINE, SINGLE_LINE, ComparisonKey
from schemas.problems import NOT_FOUND, Problem

router = APIRouter(prefix=render.HOME, include_in_schema=False)

_LIMIT = 20
_EVERY_SECONDS = 1.0
_REASONS_MOST = 100_000
"""Outcomes of a batch beyond which its errors are not counted by reason until it has ended, and then in turn."""
_LONG = 20_000
"""Characters of one text that a page shows."""


@router.get("/batches")
async def page(caller: Reader, request: Request, after: str | None = None) -> Response:
    """List batches, newest first."""
    begin = None if after is None else batches.key_of(after)
    async with request.app.state.database.connect() as connection:
        found = await batches.page(
            connection, tenant=caller.tenant, after=begin, limit=_LIMIT, worker_seconds=request.app.state.worker_seconds
        )
    return render.page(request, "batches", found=found.data, more=found.has_more, first=after is None)


async def look(request: Request, tenant: str, key: UUID) -> dict[str, Any]:
    """Gather how a batch stands."""
    state = request.app.state
    async with state.database.connect() as connection:
        batch = await batches.read(connection, tenant=tenant, batch_id=key, worker_seconds=state.worker_seconds)
    counts = batch.request_counts
    wrong = counts.errored + counts.cancelled + counts.expired
    few = batch.progress.decided <= _REASONS_MOST
    reasons = []
    if wrong and (few or batch.status.final):
        async with (
            nullcontext() if few else streams.large_read(request, tenant),
            state.database.connect() as connection,
        ):
            reasons = await verdicts.reasons(connection, batch_id=key)
    return {"batch": batch, "reasons": reasons}


@router.get("/batches/{batch_id}")
async def one(
    caller: Reader,
    request: Request,
    batch_id: str,
    ended: Ended = "",
    orders: Orders = "",
    unsure: bool = False,
    reason: Annotated[str, Query(max_length=64)] = "",
    named: Annotated[str, Query(max_length=256)] = "",
    after: Annotated[int, Query(ge=0, le=LAST_LINE)] = 0,
) -> Response:
    """Show one batch: how it stands, what went wrong and how often, and its verdicts."""
    key = batches.key_of(batch_id)
    reason, named = (each.replace("\x00", "") for each in (reason, named))  # Postgres has no such character
    wanted = Wanted(ended=ended, orders=orders, unsure=unsure, reason=reason, named=named)
    shown = await look(request, caller.tenant, key)
    async with request.app.state.database.connect() as connection:
        found = await verdicts.page(connection, tenant=caller.tenant, batch_id=key, wanted=wanted, after=after)
    return render.page(request, "batch", **shown, found=found, wanted=wanted, began_after=after)


@router.post("/batches/{batch_id}/{action}")
async def act(
    caller: Submitter, _form: Form, request: Request, batch_id: str, action: Literal["pause", "resume", "cancel"]
) -> Response:
    """Hold a batch, let it go on, or call it off."""
    state, key, paused = request.app.state, batches.key_of(batch_id), action == "pause"
    within = state.worker_seconds
    if action == "cancel":
        await batches.cancel(state.database, tenant=caller.tenant, batch_id=key, worker_seconds=within)
    else:
        await batches.pause(state.database, tenant=caller.tenant, batch_id=key, paused=paused, worker_seconds=within)
    return render.go(f"/batches/{batch_id}")


@router.get("/batches/{batch_id}/events")
async def events(caller: Reader, request: Request, batch_id: str) -> Response:
    """Follow the batch's page until the batch has ended."""
    key = batches.key_of(batch_id)
    await look(request, caller.tenant, key)
    return live.stream(
        request,
        "batch",
        lambda: look(request, caller.tenant, key),
        every=_EVERY_SECONDS,
        ended=lambda shown: shown["batch"].status.final,
    )


@router.get("/batches/{batch_id}/report")
async def report(caller: Reader, request: Request, batch_id: str) -> Response:
    """Show what the batch's verdicts add up to so far."""
    key = batches.key_of(batch_id)
    database = request.app.state.database
    async with database.connect() as connection:
        batch = await batches.read(
            connection, tenant=caller.tenant, batch_id=key, worker_seconds=request.app.state.worker_seconds
        )
    async with streams.large_read(request, caller.tenant):
        counted = await reports.count(database, batch, key)
        return await asyncio.to_thread(_report, request, batch, counted)


def _report(request: Request, batch: Batch, counted: Any) -> Response:
    from producer.evals import layout, pages, plots  # noqa: PLC0415 - an extra, and slow to load

    return render.page(
        request,
        "report",
        batch=batch,
        result=counted,
        laid_out=pages.page(counted),
        said=layout.said,
        interval=layout.interval,
        plot=plots.interval,
        scale=plots.scale,
        scales=plots.scales,
        reliability=plots.reliability,
    )


@router.get("/comparisons/{comparison_id}")
async def comparison(caller: Reader, request: Request, comparison_id: str) -> Response:
    """Show one comparison: what was asked, both ballots, and the verdict; or why it waits."""
    key = ids.parse_comparison_id(comparison_id)
    if key is None:
        raise Problem(NOT_FOUND, "There is no comparison of this id.")
    state = request.app.state
    reason = None
    before = after = None
    async with state.database.connect() as connection:
        found = await results.read(connection, tenant=caller.tenant, key=key)
        asked = await verdicts.texts(connection, tenant=caller.tenant, key=key)
        if not found.status.final:
            reason = await waiting.why_comparison(connection, key, worker_seconds=state.worker_seconds)
        if key.line != SINGLE_LINE:
            before, after = await verdicts.neighbours(connection, key=key)
    if asked is None:  # it went between two statements
        raise Problem(NOT_FOUND, "There is no comparison of this id.")
    filed, label = asked
    return render.page(
        request,
        "comparison",
        found=found,
        filed=filed,
        prompt=turns(filed.prompt),
        sides=[("A", turns(filed.response_a)), ("B", turns(filed.response_b))],
        label=label,
        reason=reason,
        batch=_batch_of(key),
        before=before,
        after=after,
    )


def _batch_of(key: ComparisonKey) -> str | None:
    return None if key.line == SINGLE_LINE else ids.batch_id(key.filing_id)


def turns(text: Any) -> list[dict[str, str]]:
    """Give a text or a conversation as turns of no more than a page holds; a plain text has no role."""
    given = [{"role": "", "content": text}] if isinstance(text, str) else text
    return [
        {
            "role": turn["role"],
            "content": turn["content"][:_LONG],
            "cut": str(max(len(turn["content"]) - _LONG, 0)),
        }
        for turn in given
    ]
