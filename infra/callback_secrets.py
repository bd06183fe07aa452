"""The secrets that callbacks are signed with: the one place where they are made, stored and read.

A secret is of Standard Webhooks' form, `whsec_` and base64 of 32 random bytes. While one is being rotated the earlier
signs too, for a time, so that a receiver may change over whenever it suits it.
"""

import base64
import os
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, text

_SECRET_BYTES = 32

_OF = "tenant = :tenant AND endpoint_id IS NOT DISTINCT FROM CAST(:endpoint AS uuid)"

_RETIRE = text(f"""
    UPDATE callback_secrets SET expires_at = least(expires_at, now() + make_interval(secs => :grace_seconds))
    WHERE {_OF} AND (expires_at IS NULL OR expires_at > now())
    RETURNING expires_at
""")  # noqa: S608 - a constant of this module
_FORGET = text(f"DELETE FROM callback_secrets WHERE {_OF} AND expires_at <= now()")  # noqa: S608 - the same
_STORE = text("INSERT INTO callback_secrets (tenant, endpoint_id, secret) VALUES (:tenant, :endpoint, :secret)")
_READ = text(f"""
    SELECT secret FROM callback_secrets WHERE {_OF} AND (expires_at IS NULL OR expires_at > now()) ORDER BY id DESC
""")  # noqa: S608 - the same


def rotate(
    connection: Connection, *, tenant: str, endpoint: UUID | None, grace_seconds: float
) -> tuple[str, datetime | None]:
    """Make a new secret, the first or the next.

    Args:
        connection: in a transaction.
        tenant: whose it is.
        endpoint: what it is for; None for what all of the tenant's requests with a `callback_url` share.
        grace_seconds: how long the earlier one goes on signing.

    Returns:
        The secret, which is told to nobody again, and until when an earlier one signs too.
    """
    secret = "whsec_" + base64.b64encode(os.urandom(_SECRET_BYTES)).decode()
    owner = {"tenant": tenant, "endpoint": endpoint}
    retired = connection.execute(_RETIRE, {**owner, "grace_seconds": grace_seconds}).all()
    connection.execute(_FORGET, owner)
    connection.execute(_STORE, {**owner, "secret": secret})
    return secret, max((row.expires_at for row in retired), default=None)


def read(connection: Connection, *, tenant: str, endpoint: UUID | None) -> list[str]:
    """Read the secrets that sign now, the newest first; none where none was ever made."""
    return [row.secret for row in connection.execute(_READ, {"tenant": tenant, "endpoint": endpoint})]
