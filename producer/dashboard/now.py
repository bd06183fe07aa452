"""`/dashboard/`: what the service is doing now."""

from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request, Response

from producer import batches, results
from producer.dashboard import crew, live, render
from producer.dashboard.access import Reader
from schemas.batch import Batch

router = APIRouter(prefix=render.HOME, include_in_schema=False)

_LATEST = 8
_BATCHES = 20
"""Batches that are shown. All that are under way are added up."""
_MOST = 1000
_EVERY_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Pace:
    """How the batches under way are getting on together."""

    total: int
    decided: int
    a_second: float | None
    seconds_left: float | None
    """At that rate; None where there is none."""

    @classmethod
    def of(cls, live: list[Batch]) -> "Pace":
        """Add up."""
        total = sum(batch.request_counts.total for batch in live)
        decided = sum(batch.progress.decided for batch in live)
        rate = sum(batch.progress.lines_per_second or 0.0 for batch in live)
        return cls(total, decided, rate or None, (total - decided) / rate if rate else None)


async def look(request: Request, tenant: str) -> dict[str, Any]:
    """Gather what the page shows."""
    state = request.app.state
    within = state.worker_seconds
    async with state.database.connect() as connection:
        lanes = await connection.run_sync(crew.lanes)
        members = await connection.run_sync(lambda c: crew.members(c, tenant=tenant, within=within))
        found = await batches.page(connection, tenant=tenant, after=None, limit=_MOST, live=True, worker_seconds=within)
        live = found.data
        shown = sorted(live, key=lambda batch: batch.progress.waiting_for is not None)[:_BATCHES]
        latest = (await results.page(connection, tenant=tenant, after=None, limit=_LATEST)).data
    return {
        "lanes": lanes,
        "members": members,
        "within": within,
        "live": live,
        "shown": shown,
        "pace": Pace.of(live),
        "latest": latest,
        "latest_judges": list(
            {str(each.verdict.judge): each.verdict.judge for each in latest if each.verdict}.values()
        ),
    }


@router.get("/")
async def now(caller: Reader, request: Request) -> Response:
    """Show lanes, workers, the batches under way, and what was filed singly of late."""
    return render.page(request, "now", **await look(request, caller.tenant))


@router.get("/events")
async def events(caller: Reader, request: Request) -> Response:
    """Follow the page."""
    return live.stream(request, "now", lambda: look(request, caller.tenant), every=_EVERY_SECONDS)
