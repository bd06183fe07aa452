"""Sessions of the dashboard: a browser that signed in with a key sends a token of its own from then on.

Kept of a token is its SHA-256. A session is looked up with its key at each request, so it ends with the key; and
nothing in a browser can be used for the API.
"""

import hashlib
import hmac
import secrets
from uuid import UUID

from sqlalchemy import Connection, text

from producer import keys
from producer.access import Caller

SECONDS = 12 * 3600.0
"""How long a session lasts."""
_INVITATION_SECONDS = 600.0

_TIDY = text("DELETE FROM sessions WHERE expires_at < now()")
_BEGIN = text("""
    INSERT INTO sessions (id, key_id, invitation, expires_at)
    VALUES (:id, :key, :invitation, now() + make_interval(secs => :seconds))
""")
_FIND = text("SELECT key_id FROM sessions WHERE id = :id AND expires_at > now() AND NOT invitation")
_TAKE = text("DELETE FROM sessions WHERE id = :id AND invitation AND expires_at > now() RETURNING key_id")
_END = text("DELETE FROM sessions WHERE id = :id")


def _kept(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _begin(connection: Connection, key: UUID, *, invitation: bool, seconds: float) -> str:
    token = secrets.token_urlsafe(32)
    connection.execute(_TIDY)
    connection.execute(_BEGIN, {"id": _kept(token), "key": key, "invitation": invitation, "seconds": seconds})
    return token


def begin(connection: Connection, key: UUID) -> str:
    """Begin a session of a key that was proved good, and give its token.

    Args:
        connection: in a transaction, which the caller commits.
        key: the key's id.
    """
    return _begin(connection, key, invitation=False, seconds=SECONDS)


def invite(connection: Connection, key: UUID) -> str:
    """Make a token that begins a session once, within ten minutes: for an address that is handed to a browser."""
    return _begin(connection, key, invitation=True, seconds=_INVITATION_SECONDS)


def accept(connection: Connection, token: str) -> str | None:
    """Begin the session that a token invites to; None where it was used before, is old, or is none."""
    key = connection.execute(_TAKE, {"id": _kept(token)}).scalar()
    return None if key is None else begin(connection, key)


def find(connection: Connection, token: str) -> Caller | None:
    """Tell whose session a token is of; None where it has ended, or its key has."""
    key = connection.execute(_FIND, {"id": _kept(token)}).scalar()
    return None if key is None else keys.owner(connection, key)


def end(connection: Connection, token: str) -> None:
    """End a session."""
    connection.execute(_END, {"id": _kept(token)})


def form_token(token: str) -> str:
    """Give what the forms of a session's pages carry, so that no other page can send them."""
    return hmac.digest(token.encode(), b"form", "sha256").hex()
