"""Receivers of callbacks, registered or named by requests: how each is doing, those that fail first."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from schemas import ids

# Whoever follows the page asks every two seconds: of each receiver shown so many callbacks are read, by indexes of its
# own, and no more. A bitmap would first note all there are, which Postgres prefers where most receivers have few; and
# to compile it, for all that it takes this to cost, would take longer than to run it.
_READ_NO_FURTHER = text("SELECT set_config('enable_bitmapscan', 'off', true), set_config('jit', 'off', true)")
_RECEIVERS = text("""
    SELECT e.id, e.url, e.registered, e.description, e.state, e.disabled_reason, e.succeeded_at, e.failures,
           e.failing_since, CASE WHEN e.open_until > now() THEN e.open_until END AS held_until,
           (SELECT count(*) FROM (
               SELECT FROM callbacks c WHERE c.endpoint_id = e.id AND c.state = 'waiting'
               UNION ALL
               SELECT FROM callbacks c WHERE c.endpoint_id = e.id AND c.state IN ('released', 'sending')
               LIMIT :counted
           ) w) AS waiting,
           (SELECT count(*) FROM (
               SELECT FROM callbacks c WHERE c.endpoint_id = e.id AND c.state = 'dead' LIMIT :counted
           ) d) AS dead
    FROM (
        SELECT *, row_number() OVER (
            ORDER BY failures > 0 DESC, state = 'disabled' DESC,
                (SELECT true FROM callbacks c WHERE c.endpoint_id = r.id AND c.state = 'dead' LIMIT 1) IS TRUE DESC,
                registered DESC, id DESC
        ) AS place
        FROM callback_endpoints r WHERE tenant = :tenant
    ) e
    WHERE place <= :most ORDER BY place
""")
_ALL = text("""
    SELECT count(*) AS receivers, count(*) FILTER (WHERE state = 'disabled') AS disabled,
           count(*) FILTER (WHERE state <> 'disabled' AND failures > 0) AS failing,
           (SELECT count(*) FROM (
               SELECT FROM callbacks WHERE tenant = :tenant AND state = 'dead' ORDER BY id LIMIT :counted
           ) d) AS dead
    FROM callback_endpoints WHERE tenant = :tenant
""")
_STATE = text("SELECT state FROM callback_endpoints WHERE tenant = :tenant AND id = :id")
_MOST = 100
COUNTED = 1000
"""Callbacks that are counted; where there are as many, there may be more."""
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


@dataclass(frozen=True, slots=True)
class Standing:
    """How all receivers of a tenant are doing, and those of them that are shown."""

    receivers: int
    disabled: int
    failing: int
    dead: int
    """Callbacks that are; no more than `COUNTED` are counted."""
    shown: list[Receiver]


async def standing(connection: AsyncConnection, *, tenant: str) -> Standing:
    """Tell how a tenant's receivers are doing, and list a hundred: those that fail first, then registered ones.

    Args:
        connection: in a transaction that ends with this, since it plans otherwise from here on.
        tenant: whose.
    """
    await connection.execute(_READ_NO_FURTHER)
    given = {"tenant": tenant, "most": _MOST, "counted": COUNTED}
    every = (await connection.execute(_ALL, given)).one()
    shown = [Receiver(*row) for row in await connection.execute(_RECEIVERS, given)]
    return Standing(**every._mapping, shown=shown)  # noqa: SLF001


async def state(connection: AsyncConnection, *, tenant: str, receiver: UUID) -> str | None:
    """Tell whether a receiver is enabled; None where the tenant has none of this id."""
    found: str | None = (await connection.execute(_STATE, {"tenant": tenant, "id": receiver})).scalar()
    return found
