"""Health: `/livez` says that the process answers, `/readyz` what it can and cannot do, `/metrics` how it fares."""

import asyncio
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel
from redis.exceptions import RedisError, ResponseError
from sqlalchemy.exc import SQLAlchemyError

from infra import docket, roster
from infra.database import is_migrated, takes_writes
from infra.meters import CONTENT_TYPE
from infra.roles import PROBE_KEY

router = APIRouter(tags=["health"])

_PATIENCE = 1.5
"""Seconds that a check may take before it counts as failed."""
_STUCK = 30.0
"""Seconds after which an interactive comparison that is due and not handed out is a sign of something wrong."""


class Readiness(BaseModel):
    """What stands behind this process. Comparisons are taken as long as the database is there."""

    status: Literal["ready", "degraded", "unavailable"]
    database: str
    redis: str
    workers: int
    wrong: list[str]
    """What keeps it from being ready, each in a sentence that says what to do."""


@router.get("/livez")
async def livez() -> dict[str, str]:
    """Whether this process answers."""
    return {"status": "alive"}


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request) -> Response:
    """What this process has counted, for Prometheus. Nothing in it was sent by anybody."""
    return Response(request.app.state.meters.text(), headers={"Content-Type": CONTENT_TYPE})


@router.get(
    "/readyz",
    responses={
        503: {"model": Readiness, "description": "No database, or not the tables of this release: nothing can be filed"}
    },
)
async def readyz(request: Request, response: Response) -> Readiness:
    """Whether comparisons can be filed, and whether anything would judge them now."""
    state = request.app.state
    # Anybody may ask, any number at a time: one look answers all who come during it, on one connection of the pool's.
    if state.looking is None or state.looking.done():
        state.looking = asyncio.create_task(_look(state))
    found: Readiness = await asyncio.shield(state.looking)
    if found.status == "unavailable":
        response.status_code = 503
    return found


async def _look(state: Any) -> Readiness:
    within = state.worker_seconds
    workers = 0
    usable = False  # whether anything can be served
    writes = True
    database = "ok"
    wrong: list[str] = []
    try:
        async with asyncio.timeout(_PATIENCE), state.database.connect() as connection:
            if migrated := await connection.run_sync(is_migrated):
                writes = await connection.run_sync(takes_writes)
                workers = (await connection.run_sync(lambda c: roster.capacity(c, within=within))).workers
                waits = await connection.run_sync(docket.oldest_due)
    except (SQLAlchemyError, TimeoutError, OSError):
        database = "cannot be reached: nothing can be filed"
        wrong.append("Postgres cannot be reached, so nothing can be filed: start it, or see NIGHTCOURT_DATABASE_URL")
    else:
        usable = migrated
        if not migrated:
            database = "has not the tables of this release: nothing can be filed"
            wrong.append(
                "Postgres has not the tables of this release, so nothing can be filed: run `nightcourt migrate`"
            )
        elif not writes:
            wrong.append(
                "Postgres takes no writes, so nothing can be filed or judged: see whether its disk is full, or "
                "somebody set default_transaction_read_only"
            )
        elif not workers:
            wrong.append(f"no worker was heard of for {within:g} s, so nothing is judged: start one, or see its log")
        elif waits > max(_STUCK, within):
            wrong.append(
                f"an interactive comparison has been due for {waits:.0f} s and nobody hands it out: see that the "
                "dispatcher runs and reaches Redis"
            )
    redis = await _look_at_redis(state, wrong)
    if not usable:
        return Readiness(status="unavailable", database=database, redis=redis, workers=workers, wrong=wrong)
    status: Literal["ready", "degraded"] = "degraded" if wrong else "ready"
    return Readiness(status=status, database=database, redis=redis, workers=workers, wrong=wrong)


async def _look_at_redis(state: Any, wrong: list[str]) -> str:
    try:
        async with asyncio.timeout(_PATIENCE):
            await state.redis.set(PROBE_KEY, "", ex=60)
    except ResponseError as error:
        wrong.append(
            f"Redis takes no writes ({type(error).__name__}), so what is filed waits: see whether it became a replica, "
            "or is full"
        )
        return "takes no writes: comparisons are taken, and judged once it does"
    except (RedisError, TimeoutError, OSError):
        wrong.append("Redis cannot be reached, so what is filed waits: start it, or see NIGHTCOURT_REDIS_URL")
        return "cannot be reached: comparisons are taken, and judged once it is back"
    return "ok"
