"""Keys: made, listed, revoked, rotated, and found again by whoever sends one.

Kept of a key are its id and the SHA-256 of its secret. A lookup costs the same whether the id is known or not, so
that nobody learns ids by the clock.
"""

import hashlib
import hmac
import secrets
from collections.abc import Collection
from dataclasses import asdict
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, text

from producer.access import Caller
from schemas import ids
from schemas.ids import new_filing_id
from schemas.keys import Key, KeyLimits, NewKey, Scope, SpelledKey, Successor, parse_key, spell_key
from schemas.problems import KEY_ENDED, NOT_FOUND, TENANT_PURGED, Problem

_NOBODY = secrets.token_bytes(32)
"""What a secret is compared with where there is no such key."""

_COLUMNS = """
    id, tenant, name, scopes, created_at, expires_at, revoked_at, replaces,
    requests_per_second, queued_comparisons, tokens_per_day, concurrent_batches, max_body_bytes,
    CASE WHEN revoked_at <= now() THEN 'revoked' WHEN expires_at <= now() THEN 'expired' ELSE 'active' END AS status
"""
FIRST_TENANT = "default"
"""The tenant of a first key, and of keys of which nobody says whose they are to be."""

_ADD = text(f"""
    INSERT INTO keys (id, tenant, name, hash, scopes, expires_at, replaces,
                      requests_per_second, queued_comparisons, tokens_per_day, concurrent_batches, max_body_bytes)
    VALUES (:id, :tenant, :name, :hash, :scopes, now() + make_interval(secs => :expires_seconds), :replaces,
            :requests_per_second, :queued_comparisons, :tokens_per_day, :concurrent_batches, :max_body_bytes)
    RETURNING {_COLUMNS}
""")  # noqa: S608 - of constants of this module, as below
_BURIED = text("SELECT EXISTS (SELECT FROM tombstones WHERE tenant = :tenant)")
_ALL = text(f"""
    SELECT {_COLUMNS} FROM keys WHERE CAST(:tenant AS text) IS NULL OR tenant = :tenant ORDER BY id
""")  # noqa: S608
_LOCKED = text(f"SELECT {_COLUMNS} FROM keys WHERE id = :id FOR UPDATE")  # noqa: S608
# A key that was rotated before expires when its overlap is over. How long it was to live is told by its newest
# successor, which was made to live as long, and so on.
_LIFETIME = text("""
    WITH RECURSIVE line AS (
        SELECT id, created_at, expires_at, 0 AS place FROM keys WHERE id = :id
        UNION ALL
        SELECT newest.*, line.place + 1 FROM line CROSS JOIN LATERAL (
            SELECT id, created_at, expires_at FROM keys WHERE replaces = line.id ORDER BY id DESC LIMIT 1
        ) newest
    )
    SELECT extract(epoch FROM expires_at - created_at)::float8 FROM line ORDER BY place DESC LIMIT 1
""")
_SUCCESSOR = text("""
    SELECT id FROM keys WHERE replaces = :id AND revoked_at IS NULL AND coalesce(expires_at > now(), true) LIMIT 1
""")
_REVOKE = text(f"""
    UPDATE keys SET revoked_at = coalesce(revoked_at, now()) WHERE id = :id RETURNING {_COLUMNS}
""")  # noqa: S608
_LET_GO = text("""
    UPDATE keys SET expires_at = least(expires_at, now() + make_interval(secs => :seconds)) WHERE id = :id
    RETURNING expires_at
""")
# The API's own role may read no more of a key than this.
_WHOSE = text("""
    SELECT tenant, scopes, requests_per_second, queued_comparisons, tokens_per_day, concurrent_batches, max_body_bytes
    FROM keys WHERE id = :id
""")
_WHOSE_IF_GOOD = text(f"{_WHOSE.text} AND revoked_at IS NULL AND coalesce(expires_at > now(), true)")
# One row, whether there is such a key or not.
_FIND = text("""
    SELECT coalesce(k.hash, :nobody) AS hash,
           k.id IS NOT NULL AND k.revoked_at IS NULL AND coalesce(k.expires_at > now(), true) AS good
    FROM (SELECT CAST(:id AS uuid) AS id) AS asked LEFT JOIN keys k USING (id)
""")


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def _limits(row: Row[Any]) -> KeyLimits:
    return KeyLimits(**{name: getattr(row, name) for name in KeyLimits.__dataclass_fields__})


def _as_key(row: Row[Any]) -> dict[str, Any]:
    return {
        "id": ids.key_id(row.id),
        "tenant": row.tenant,
        "name": row.name,
        "scopes": row.scopes,
        "status": row.status,
        "created_at": row.created_at,
        "expires_at": row.expires_at,
        "revoked_at": row.revoked_at,
        "replaces": None if row.replaces is None else ids.key_id(row.replaces),
        "limits": _limits(row),
    }


def new_key() -> SpelledKey:
    """Make up a key: an id that sorts by time, and 256 random bits."""
    return SpelledKey(new_filing_id(), secrets.token_urlsafe(32))


def buried(connection: Connection, *, tenant: str) -> bool:
    """Tell whether a tenant was purged: nothing is filed for it, and no key made, any more."""
    return bool(connection.execute(_BURIED, {"tenant": tenant}).scalar_one())


def create(
    connection: Connection,
    *,
    tenant: str,
    scopes: Collection[Scope],
    name: str | None = None,
    expires_seconds: float | None = None,
    limits: KeyLimits | None = None,
    replaces: UUID | None = None,
) -> NewKey:
    """Make a key. Its secret is in what this returns, and nowhere else.

    Args:
        connection: in a transaction, which the caller commits.
        tenant: whose key it is.
        scopes: what it may be used for; at least one.
        name: a note, to know it by.
        expires_seconds: how long it lives; for good when None.
        limits: its own limits; the defaults of the settings when None.
        replaces: the key that it takes the place of.

    Raises:
        Problem: the tenant was purged.
    """
    if buried(connection, tenant=tenant):
        raise Problem(TENANT_PURGED, f"The tenant {tenant} was purged; give another name.")
    spelled = new_key()
    values = {
        "id": spelled.id,
        "tenant": tenant,
        "name": name,
        "hash": _hash(spelled.secret),
        "scopes": [scope.value for scope in Scope if scope in scopes],
        "expires_seconds": expires_seconds,
        "replaces": replaces,
        **asdict(limits or KeyLimits()),
    }
    return NewKey(**_as_key(connection.execute(_ADD, values).one()), key=spell_key(spelled))


def listing(connection: Connection, *, tenant: str | None = None) -> list[Key]:
    """List the keys of a tenant, or of all, oldest first, those that have ended included."""
    return [Key(**_as_key(row)) for row in connection.execute(_ALL, {"tenant": tenant})]


def revoke(connection: Connection, key: UUID) -> Key:
    """End a key now. One that was revoked before stays so since then.

    Raises:
        Problem: there is no such key.
    """
    row = connection.execute(_REVOKE, {"id": key}).one_or_none()
    if row is None:
        raise _no_such(key)
    return Key(**_as_key(row))


def rotate(
    connection: Connection, key: UUID, *, overlap_seconds: float, expires_seconds: float | None = None
) -> Successor:
    """Make a key's successor, with its tenant, name, scopes and limits, and let the key live for a time yet.

    Args:
        connection: in a transaction, which the caller commits.
        key: the id of the key.
        overlap_seconds: how long both live; 0 ends the old one at once.
        expires_seconds: how long the successor lives; as long as its predecessor was to live when None, or as the last
            successor was where there was one.

    Raises:
        Problem: there is no such key, it has ended, or it has a successor already.
    """
    row = connection.execute(_LOCKED, {"id": key}).one_or_none()
    if row is None:
        raise _no_such(key)
    if row.status != "active":
        raise Problem(KEY_ENDED, f"{ids.key_id(key)} is {row.status}. Make a new one with `nightcourt keys create`.")
    successor = connection.execute(_SUCCESSOR, {"id": key}).scalar()
    if successor is not None:
        raise Problem(
            KEY_ENDED,
            f"{ids.key_id(key)} was rotated before, and {ids.key_id(successor)} takes its place. Rotate that one; or "
            "revoke it, if its secret is lost, and rotate this one again.",
        )
    if expires_seconds is None:
        expires_seconds = connection.execute(_LIFETIME, {"id": key}).scalar_one()
    made = create(
        connection,
        tenant=row.tenant,
        name=row.name,
        scopes=row.scopes,
        expires_seconds=expires_seconds,
        limits=_limits(row),
        replaces=key,
    )
    until = connection.execute(_LET_GO, {"id": key, "seconds": overlap_seconds}).scalar_one()
    return Successor(**made.model_dump(), previous_valid_until=until)


def find(connection: Connection, sent: str) -> Caller | None:
    """Tell whose key was sent; None where it is no key, is not known, is not the right one or has ended."""
    spelled = parse_key(sent)
    if spelled is None:
        return None
    kept = connection.execute(_FIND, {"id": spelled.id, "nobody": _NOBODY}).one()
    if not proves(spelled.secret, kept.hash, good=kept.good):
        return None
    row = connection.execute(_WHOSE, {"id": spelled.id}).one_or_none()
    return None if row is None else _caller(row, spelled.id)  # where it was deleted since


def owner(connection: Connection, key: UUID) -> Caller | None:
    """Tell whose key this is, for whoever proved it before; None where it has ended."""
    row = connection.execute(_WHOSE_IF_GOOD, {"id": key}).one_or_none()
    return None if row is None else _caller(row, key)


def _caller(row: Row[Any], key: UUID) -> Caller:
    return Caller(
        tenant=row.tenant,
        key_id=ids.key_id(key),
        scopes=frozenset(Scope(each) for each in row.scopes),
        limits=_limits(row),
    )


def proves(secret: str, kept: bytes, *, good: bool) -> bool:
    """Whether a secret is that of a good key, after the same work whatever it is.

    Args:
        secret: what was sent.
        kept: the SHA-256 of the right secret; anything where there is no such key.
        good: whether there is such a key, and it has not ended.
    """
    return hmac.compare_digest(_hash(secret), kept) & good


def _no_such(key: UUID) -> Problem:
    return Problem(NOT_FOUND, f"There is no key {ids.key_id(key)}; `nightcourt keys list` lists them.")
