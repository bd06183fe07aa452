"""`/v1/batches/{id}/report`: what a batch's verdicts say."""

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic_core import to_json

from producer import batches, reports, streams
from producer.api.access import Reader
from producer.api.batches import read_batch
from producer.api.bodies import JsonRoute
from producer.api.problems import DOCUMENTED_AS_OPENAI

router = APIRouter(prefix="/v1/batches", tags=["batches"], route_class=JsonRoute, responses=DOCUMENTED_AS_OPENAI)


@router.get("/{batch_id}/report")
async def report(caller: Reader, batch_id: str, request: Request) -> Response:
    """Say what has been decided so far adds up to: accuracy by labels in the lines, consistency, position bias."""
    key = batches.key_of(batch_id)
    batch = await read_batch(request, caller, key)
    async with streams.large_read(request, caller.tenant):
        counted = await reports.count(request.app.state.database, batch, key)
    return Response(to_json(counted), media_type="application/json")
