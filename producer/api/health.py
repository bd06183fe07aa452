"""Health: `/livez` says that the process answers, `/readyz` what it can and cannot do."""

import asyncio
from typing import Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from infra import roster

router = APIRouter(tags=["health"])

_PATIENCE = 1.5
"""Seconds that a check may take before it counts as failed."""


class Readiness(BaseModel):
    """What stands behind this process. Comparisons are taken as long as the database is there."""

    status: Literal["ready", "degraded", "unavailable"]
    database: str
    redis: str
    workers: int


@router.get("/livez")
async def livez() -> dict[str, str]:
    """Whether this process answers."""
    return {"status": "alive"}


@router.get("/readyz", responses={503: {"model": Readiness, "description": "No database: nothing can be filed"}})
async def readyz(request: Request, response: Response) -> Readiness:
    """Whether comparisons can be filed, and whether anything would judge them now."""
    state = request.app.state
    workers = 0
    database = redis = "ok"
    try:
        async with asyncio.timeout(_PATIENCE), state.database.connect() as connection:
            within = state.settings.heartbeat_seconds * 3
            workers = (await connection.run_sync(lambda c: roster.capacity(c, within=within))).workers
    except (SQLAlchemyError, TimeoutError, OSError):
        database = "cannot be reached: nothing can be filed"
    try:
        async with asyncio.timeout(_PATIENCE):
            await state.redis.ping()
    except (RedisError, TimeoutError, OSError):
        redis = "cannot be reached: comparisons are taken, and judged once it is back"
    if database != "ok":
        response.status_code = 503
        return Readiness(status="unavailable", database=database, redis=redis, workers=workers)
    ready = redis == "ok" and workers > 0
    return Readiness(status="ready" if ready else "degraded", database=database, redis=redis, workers=workers)
