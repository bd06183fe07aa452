"""`/dashboard/waiting`: why the batch, the comparison or the callback of an id is not done yet."""

from dataclasses import dataclass

from fastapi import APIRouter, Request, Response
from sqlalchemy.ext.asyncio import AsyncConnection

from producer import batches, callbacks, results, waiting
from producer.dashboard import render, words
from producer.dashboard.access import Reader
from schemas import ids
from schemas.callback import AttemptReason, Callback, CallbackState
from schemas.problems import NOT_FOUND, Problem

router = APIRouter(prefix=render.HOME, include_in_schema=False)

_LONGEST = 64


@dataclass(frozen=True, slots=True)
class Answer:
    """What is to be said of an id: where it stands, in a word and in a sentence, and where more is to be read."""

    status: str
    sentence: str
    path: str


@router.get("/waiting")
async def why(caller: Reader, request: Request, id: str = "") -> Response:  # noqa: A002 - the name in the address
    """Say why what has an id waits."""
    asked = id.strip()[:_LONGEST]
    answer = wrong = None
    if asked:
        state = request.app.state
        try:
            async with state.database.connect() as connection:
                answer = await _answer(connection, caller.tenant, asked, state.worker_seconds)
        except Problem as problem:
            if problem.kind is not NOT_FOUND:
                raise
            wrong = problem.detail
    return render.page(request, "waiting", http_status=404 if wrong else 200, asked=asked, answer=answer, wrong=wrong)


async def _answer(connection: AsyncConnection, tenant: str, asked: str, worker_seconds: float) -> Answer:
    if (batch_key := ids.parse_prefixed(asked, "batch_")) is not None:
        batch = await batches.read(connection, tenant=tenant, batch_id=batch_key, worker_seconds=worker_seconds)
        if batch.status.final:
            sentence = "It has ended; nothing of it waits."
        else:
            reason = batch.progress.waiting_for
            sentence = f"It waits: {reason}." if reason else "It is being judged."
        return Answer(batch.status, sentence, f"/batches/{batch.id}")
    if (comparison_key := ids.parse_comparison_id(asked)) is not None:
        found = await results.read(connection, tenant=tenant, key=comparison_key)
        if found.status.final:
            sentence = "It has ended; it waits for nothing."
        else:
            reason = await waiting.why_comparison(connection, comparison_key, worker_seconds=worker_seconds)
            sentence = f"It waits: {reason}." if reason else "A worker has it."
        return Answer(found.status, sentence, f"/comparisons/{found.id}")
    if (callback_key := ids.parse_prefixed(asked, "cbk_")) is not None:
        callback = await callbacks.read(connection, tenant=tenant, callback=callback_key)
        return Answer(callback.status, _of_callback(callback), f"/callbacks/{callback.id}")
    raise Problem(
        NOT_FOUND, "That is no id. Those of comparisons begin with cmp_, of batches batch_, of callbacks cbk_."
    )


def _of_callback(callback: Callback) -> str:
    if callback.status is CallbackState.DELIVERED:
        return "It was delivered."
    if callback.status is CallbackState.DEAD:
        return "Nobody tries any more. It can be sent again."
    if callback.status is not CallbackState.WAITING:
        return "It is on its way."
    return _of_waiting(callback)


def _of_waiting(callback: Callback) -> str:
    if callback.last_reason == AttemptReason.SECRET_NOT_OPENED:
        return "It waits until its secret opens: the callback process lacks the key."
    if callback.held_until is not None:
        until = words.clock(callback.held_until)
        now = f"To try now: nightcourt callbacks enable {callback.endpoint_id}"
        return f"Nothing is tried at its receiver until {until}: it failed, or asked for time. {now}"
    if not callback.attempts:
        return "It waits to be sent again." if callback.log else "It waits for its first attempt."
    reason = (callback.last_reason or "it failed").replace("_", " ")
    return f"It waits for its next attempt: the last of {callback.attempts} ended with {reason}."
