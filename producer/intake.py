"""The one way in: a comparison is stored, and its shard with it, in one transaction, or not at all."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from infra import docket
from infra.addresses import Allowed
from infra.filed import Filed
from producer import callback_endpoints
from schemas.comparison import ComparisonRequest
from schemas.ids import SINGLE_LINE, ComparisonKey, new_filing_id
from schemas.problems import IDEMPOTENCY_KEY_REUSED, Problem
from schemas.states import Lane

# Waits for a request in flight with the same key; sees what that one committed, or takes its place if it failed.
_TAKE_KEY = text("""
    INSERT INTO idempotency_keys (tenant, key, fingerprint, filing_id)
    VALUES (:tenant, :key, :fingerprint, :filing_id)
    ON CONFLICT (tenant, key) DO NOTHING
    RETURNING filing_id
""")

_READ_KEY = text("SELECT fingerprint, filing_id FROM idempotency_keys WHERE tenant = :tenant AND key = :key")


@dataclass(frozen=True, slots=True)
class Receipt:
    """What was filed, and whether it had been filed before under the same key."""

    key: ComparisonKey
    replayed: bool


def fingerprint(request: ComparisonRequest) -> bytes:
    """Hash what a request asks for: SHA-256 over its fields in a fixed order, defaults filled in. 32 bytes."""
    fields = request.model_dump(mode="json")
    if fields["callback_url"] is None:
        del fields["callback_url"]  # keys that are older than this field go on standing for their requests
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).digest()


async def file_comparison(
    database: AsyncEngine,
    request: ComparisonRequest,
    *,
    tenant: str,
    idempotency_key: str | None,
    request_id: str | None,
    allowed: Allowed,
) -> Receipt:
    """File one comparison, in the interactive lane.

    Args:
        database: where to.
        request: the comparison.
        tenant: whose it is.
        idempotency_key: with a key seen before, nothing is filed and the receipt is that of the first time.
        request_id: follows the comparison into the worker's log lines.
        allowed: where callbacks may go beyond the public internet.

    Raises:
        Problem: the key was used before with another body, or callbacks may not go where they are wanted.
        sqlalchemy.exc.SQLAlchemyError: Postgres did not take it; with a key, it is safe to send it again.
    """
    filing_id = new_filing_id()
    async with database.begin() as connection:
        if idempotency_key is not None:
            earlier = await _take_key(connection, tenant, idempotency_key, fingerprint(request), filing_id)
            if earlier is not None:
                return Receipt(key=ComparisonKey(earlier, SINGLE_LINE), replayed=True)
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
            comparisons=[_row(request, request_id)],
            notify=request.callback_url is not None,
        )
    return Receipt(key=ComparisonKey(filing_id, SINGLE_LINE), replayed=False)


async def _take_key(connection: AsyncConnection, tenant: str, key: str, mark: bytes, filing_id: UUID) -> UUID | None:
    """Take an idempotency key for a new filing; where it is taken, say by which."""
    taken = await connection.execute(
        _TAKE_KEY, {"tenant": tenant, "key": key, "fingerprint": mark, "filing_id": filing_id}
    )
    if taken.one_or_none() is not None:
        return None
    earlier = (await connection.execute(_READ_KEY, {"tenant": tenant, "key": key})).one()
    if earlier.fingerprint != mark:
        raise Problem(
            IDEMPOTENCY_KEY_REUSED,
            "The key stands for the request it was first sent with, and that had another body. "
            "Send the same body, or take a new key.",
        )
    return UUID(str(earlier.filing_id))


def _row(request: ComparisonRequest, request_id: str | None) -> Filed:
    body: dict[str, Any] = request.model_dump(mode="json")
    return Filed(
        line=SINGLE_LINE,
        custom_id=request.custom_id,
        prompt=body["prompt"],
        response_a=body["response_a"],
        response_b=body["response_b"],
        orders=request.order,
        profile=request.profile,
        tie_margin=request.tie_margin,
        metadata=request.metadata,
        request_id=request_id,
    )
