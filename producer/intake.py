"""The one way in: a comparison is stored, and its shard with it, in one transaction, or not at all."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from infra import docket
from infra.addresses import Allowed
from infra.filed import from_request
from producer import callback_endpoints, idempotency
from schemas.comparison import ComparisonRequest
from schemas.ids import SINGLE_LINE, ComparisonKey, new_filing_id
from schemas.states import Lane


@dataclass(frozen=True, slots=True)
class Receipt:
    """What was filed, and whether it had been filed before under the same key."""

    key: ComparisonKey
    replayed: bool


async def file_comparison(
    database: AsyncEngine,
    request: ComparisonRequest,
    *,
    tenant: str,
    idempotency_key: str | None,
    request_id: str | None,
    allowed: Allowed,
    admit: Callable[[AsyncConnection], Awaitable[None]],
    traceparent: str | None = None,
) -> Receipt:
    """File one comparison, in the interactive lane.

    Args:
        database: where to.
        request: the comparison.
        tenant: whose it is.
        idempotency_key: with a key seen before, nothing is filed and the receipt is that of the first time.
        request_id: follows the comparison into the worker's log lines.
        allowed: where callbacks may go beyond the public internet.
        admit: asked for room before anything is stored; raises a problem where there is none.
        traceparent: where its trace begins.

    Raises:
        Problem: the key was used before with another body, there is no room, or callbacks may not go where they are
            wanted.
        sqlalchemy.exc.SQLAlchemyError: Postgres did not take it; with a key, it is safe to send it again.
    """
    filing_id = new_filing_id()
    async with database.begin() as connection:
        if idempotency_key is not None:
            earlier = await idempotency.take(connection, tenant, idempotency_key, request, filing_id)
            if earlier is not None:
                return Receipt(key=ComparisonKey(earlier, SINGLE_LINE), replayed=True)
        await admit(connection)
        if request.callback_url is not None:
            await connection.run_sync(
                callback_endpoints.remember,
                tenant=tenant,
                filing_id=filing_id,
                url=request.callback_url,
                allowed=allowed,
            )
        await connection.run_sync(
            docket.file,
            tenant=tenant,
            filing_id=filing_id,
            lane=Lane.INTERACTIVE,
            comparisons=[
                from_request(
                    request.model_dump(mode="json"),
                    line=SINGLE_LINE,
                    custom_id=request.custom_id,
                    request_id=request_id,
                )
            ],
            notify=request.callback_url is not None,
            traceparent=traceparent,
        )
    return Receipt(key=ComparisonKey(filing_id, SINGLE_LINE), replayed=False)
