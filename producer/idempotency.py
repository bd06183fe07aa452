"""Idempotency keys: a request that is sent again under its key files nothing twice."""

import hashlib
import json
from uuid import UUID

from pydantic import BaseModel
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from schemas.problems import IDEMPOTENCY_KEY_REUSED, Problem

# Waits for a request in flight with the same key; sees what that one committed, or takes its place if it failed.
_TAKE_KEY = text("""
    INSERT INTO idempotency_keys (tenant, key, fingerprint, filing_id)
    VALUES (:tenant, :key, :fingerprint, :filing_id)
    ON CONFLICT (tenant, key) DO NOTHING
    RETURNING filing_id
""")

# Fields that are younger than the first keys, and what leaves them out of the hash: a key that was taken before an
# upgrade goes on standing for its request.
_LATER = {"callback_url": None, "callback_comparisons": False}

_READ_KEY = text("SELECT fingerprint, filing_id FROM idempotency_keys WHERE tenant = :tenant AND key = :key")


def fingerprint(request: BaseModel) -> bytes:
    """Hash what a request asks for: SHA-256 over its fields in a fixed order, defaults filled in. 32 bytes."""
    fields = request.model_dump(mode="json")
    told = {name: value for name, value in fields.items() if name not in _LATER or value != _LATER[name]}
    canonical = json.dumps(told, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).digest()


async def take(connection: AsyncConnection, tenant: str, key: str, request: BaseModel, filing_id: UUID) -> UUID | None:
    """Take a key for a new filing; where it is taken, say by which.

    Args:
        connection: in the transaction that files: the key stands if and only if the filing does.
        tenant: whose key.
        key: what the producer sent.
        request: what it was sent with.
        filing_id: the new filing's id.

    Returns:
        The filing that the key led to before, of which nothing is to be filed again; None where the key is new.

    Raises:
        Problem: the key was used before with another body.
    """
    mark = fingerprint(request)
    parameters = {"tenant": tenant, "key": key, "fingerprint": mark, "filing_id": filing_id}
    earlier = None
    while earlier is None:  # a key that was deleted with its filing between the two statements can be taken
        if (await connection.execute(_TAKE_KEY, parameters)).one_or_none() is not None:
            return None
        earlier = (await connection.execute(_READ_KEY, {"tenant": tenant, "key": key})).one_or_none()
    if earlier.fingerprint != mark:
        raise Problem(
            IDEMPOTENCY_KEY_REUSED,
            "The key stands for the request it was first sent with, and that had another body. "
            "Send the same body, or take a new key.",
        )
    return UUID(str(earlier.filing_id))
