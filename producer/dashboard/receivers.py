"""Receivers of callbacks, registered or named by requests: how each is doing, those that fail first."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from schemas import ids

# Each part of the condition has an index of its own; a list of its states would have all that was delivered read too.
_RECEIVERS = text("""
    SELECT e.id, e.url, e.registered, e.description, e.state, e.disabled_reason, e.succeeded_at, e.failures,
           e.failing_since, CASE WHEN e.open_until > now() THEN e.open_until END AS held_until,
           coalesce(n.waiting, 0) AS waiting, coalesce(n.dead, 0) AS dead
    FROM callback_endpoints e LEFT JOIN (
        SELECT endpoint_id, count(*) FILTER (WHERE state <> 'dead') AS waiting,
               count(*) FILTER (WHERE state = 'dead') AS dead
        FROM callbacks
        WHERE tenant = :tenant AND (state = 'waiting' OR state IN ('released', 'sending') OR state = 'dead')
        GROUP BY endpoint_id
    ) n ON n.endpoint_id = e.id
    WHERE e.tenant = :tenant
    ORDER BY e.failures > 0 DESC, e.state = 'disabled' DESC, coalesce(n.dead, 0) > 0 DESC, e.id DESC LIMIT :most
""")
_STATE = text("SELECT state FROM callback_endpoints WHERE tenant = :tenant AND id = :id")
_MOST = 100
_REASONS = {
    "asked": "by you",
    "gone": "it answered 410 Gone",
    "failing": "it failed for days",
}


@dataclass(frozen=True, slots=True)
class Receiver:
    """A receiver, and what there is for it."""

    key: UUID
    url: str
    registered: bool
    """False for one that requests named as their `callback_url`; its `url` is their origin then."""
    description: str | None
    state: str
    disabled_reason: str | None
    succeeded_at: datetime | None
    failures: int
    failing_since: datetime | None
    held_until: datetime | None
    waiting: int
    dead: int

    @property
    def id(self) -> str:
        """Its id."""
        return ids.endpoint_id(self.key)

    @property
    def status(self) -> str:
        """How it is doing, in a word."""
        if self.state == "disabled":
            return "disabled"
        return "failing" if self.failures else "enabled"

    @property
    def why_disabled(self) -> str:
        """Who or what disabled it."""
        return _REASONS.get(self.disabled_reason or "", "")


async def everything(connection: AsyncConnection, *, tenant: str) -> list[Receiver]:
    """List a tenant's receivers: those that fail first, then the newest; a hundred at most."""
    rows = await connection.execute(_RECEIVERS, {"tenant": tenant, "most": _MOST})
    return [Receiver(row.id, *row[1:]) for row in rows]


async def state(connection: AsyncConnection, *, tenant: str, receiver: UUID) -> str | None:
    """Tell whether a receiver is enabled; None where the tenant has none of this id."""
    found: str | None = (await connection.execute(_STATE, {"tenant": tenant, "id": receiver})).scalar()
    return found
