"""The secrets that callbacks are signed with: the one place where they are made, stored and read.

A secret is of Standard Webhooks' form, `whsec_` and base64 of 32 random bytes. While one is being rotated the earlier
signs too, for a time, so that a receiver may change over whenever it suits it. What is stored is sealed
(`infra/sealing.py`), for its own row.
"""

import base64
import os
from collections import Counter
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, text

from infra.sealing import NotOpenedError, Seals

_SECRET_BYTES = 32

_OF = "tenant = :tenant AND endpoint_id IS NOT DISTINCT FROM CAST(:endpoint AS uuid)"
_HELD = f"{_OF} AND (expires_at IS NULL OR expires_at > now())"

_RETIRE = text(f"""
    UPDATE callback_secrets SET expires_at = least(expires_at, now() + make_interval(secs => :grace_seconds))
    WHERE {_HELD}
    RETURNING expires_at
""")  # noqa: S608 - a constant of this module
_FORGET = text(f"DELETE FROM callback_secrets WHERE {_OF} AND expires_at <= now()")  # noqa: S608 - the same
_TAKE_ROW = text(
    "INSERT INTO callback_secrets (tenant, endpoint_id, secret) VALUES (:tenant, :endpoint, '') RETURNING id"
)
_STORE = text("UPDATE callback_secrets SET secret = :secret WHERE id = :id")
_READ = text(f"SELECT id, secret FROM callback_secrets WHERE {_HELD} ORDER BY id DESC")  # noqa: S608 - the same
_EXISTS = text(f"SELECT EXISTS (SELECT FROM callback_secrets WHERE {_HELD})")  # noqa: S608 - the same
_DELETE = text("DELETE FROM callback_secrets WHERE id = :id")
_EVERYONES = text("SELECT id, secret FROM callback_secrets ORDER BY id FOR UPDATE")


def rotate(
    connection: Connection, seals: Seals, *, tenant: str, endpoint: UUID | None, grace_seconds: float
) -> tuple[str, datetime | None]:
    """Make a new secret, the first or the next. An earlier one that no key opens any more ends at once.

    Args:
        connection: in a transaction.
        seals: what it is sealed by.
        tenant: whose it is.
        endpoint: what it is for; None for what all of the tenant's requests with a `callback_url` share.
        grace_seconds: how long the earlier one goes on signing.

    Returns:
        The secret, which is told to nobody again, and until when an earlier one signs too.
    """
    secret = "whsec_" + base64.b64encode(os.urandom(_SECRET_BYTES)).decode()
    owner = {"tenant": tenant, "endpoint": endpoint}
    for each in connection.execute(_READ, owner).all():
        try:
            seals.open(each.secret, _place(each.id))
        except NotOpenedError:  # it can sign nothing, and would keep the new one from signing
            connection.execute(_DELETE, {"id": each.id})
    retired = connection.execute(_RETIRE, {**owner, "grace_seconds": grace_seconds}).all()
    connection.execute(_FORGET, owner)
    row = connection.execute(_TAKE_ROW, owner).scalar_one()
    connection.execute(_STORE, {"id": row, "secret": seals.seal(secret, _place(row))})
    return secret, max((row.expires_at for row in retired), default=None)


def read(connection: Connection, seals: Seals, *, tenant: str, endpoint: UUID | None) -> list[str]:
    """Read the secrets that sign now, the newest first; none where none was ever made.

    Raises:
        NotOpenedError: one cannot be opened.
    """
    rows = connection.execute(_READ, {"tenant": tenant, "endpoint": endpoint})
    return [seals.open(row.secret, _place(row.id)) for row in rows]


def exist(connection: Connection, *, tenant: str, endpoint: UUID | None) -> bool:
    """Whether there is a secret that signs now."""
    return bool(connection.execute(_EXISTS, {"tenant": tenant, "endpoint": endpoint}).scalar_one())


def seal_all(connection: Connection, seals: Seals) -> Counter[str]:
    """Seal by the first key whatever is sealed by another, or was stored before anything was sealed.

    What no key opens stays as it is, for whoever finds the key, or rotates the secret.

    Args:
        connection: in a transaction of the owner's.
        seals: with every key that something is sealed by.

    Returns:
        Why some do not open, and how many each time.
    """
    closed: Counter[str] = Counter()
    for row in connection.execute(_EVERYONES).all():
        if seals.is_current(row.secret):
            continue
        try:
            secret = row.secret if row.secret.startswith("whsec_") else seals.open(row.secret, _place(row.id))
        except NotOpenedError as error:
            closed[str(error)] += 1
            continue
        connection.execute(_STORE, {"id": row.id, "secret": seals.seal(secret, _place(row.id))})
    return closed


def _place(row: int) -> str:
    return f"callback_secrets:{row}"
