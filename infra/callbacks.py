"""Callbacks: every move that an event and its deliveries can make, each one SQL statement of `callbacks_sql.py`.

    told -> fanned out -> waiting -> release -> released -> claim -> sending -> record -> delivered
                             ^                     |                    |
                             +----- withdraw ------+                    +-- put_back -> waiting
                                                                        +-- record, reclaim -> waiting, or dead
    bury ends what waits for a receiver that is disabled, or that has failed at everything for as long as the schedule.
    replay (producer/callbacks.py) brings what has ended back to waiting, under the same id.

An event is written in the transaction that makes it true. An attempt is counted before anything is sent, and recorded
only by the token that its claim took, so a message that is doubled or late sends nothing, and a worker that was lost
can change nothing. Schedule, jitter and circuit are kept here, in Postgres, and in no message.

Each function runs inside the caller's transaction. `shift` is seconds added to Postgres's clock, for walking the
schedule without waiting for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection

from infra import callbacks_sql

_MINUTE, _HOUR = 60.0, 3600.0

SCHEDULE = (
    *(5.0, 30.0, 2 * _MINUTE, 10 * _MINUTE, 30 * _MINUTE),
    *(_HOUR, 2 * _HOUR, 4 * _HOUR, 8 * _HOUR, 12 * _HOUR, 16 * _HOUR, 24 * _HOUR, 29 * _HOUR),
)
"""Seconds from each failed attempt to the next, each lengthened by up to a tenth: 14 attempts over 96 hours or more."""

GIVE_UP_SECONDS = 96 * _HOUR
"""A callback is dead once it has been due for this long and its endpoint has failed at everything for as long."""
PUT_BACK_SECONDS = 60.0
"""How long a callback waits that could not be signed, as its key is missing, before it is tried again."""
RETRY_AFTER_MOST = 24 * _HOUR
"""The longest pause that a receiver can ask for with `Retry-After`; longer ones are cut to it."""
_SHARES = (1.0, 0.6, 0.25)
"""What part of the room may be taken by all endpoints together, by those never tried, and by those that fail."""
OPEN_AFTER = 5
"""Consecutive failures that open a circuit."""
_CIRCUIT = {"open_after": OPEN_AFTER, "open_first": 10.0, "open_most": _HOUR}
"""When a circuit opens, and for how many seconds: at first, and at most as that doubles."""
_DISABLING = {"disable_after": 12, "disable_seconds": 5 * 24 * _HOUR}
"""An endpoint is disabled after so many failures in a row, if the first of them is so many seconds ago."""
_FAN_OUT_MOST = 2_000
"""About how many callbacks one step makes of fresh events. All callbacks of one event are made in one step."""
_RELEASE_LOCK = 0x6E636F7572740002
"""An advisory lock that lets one dispatcher at a time release callbacks, so that caps and single probes are exact."""


class LeaseLostError(Exception):
    """The callback is no longer this claim's: its lease ran out. Nothing was written."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A callback that a worker has claimed, with all that is to be sent."""

    callback: UUID
    token: int
    tenant: str
    url: str
    attempt: int
    endpoint_id: UUID
    registered: bool
    """Whether the endpoint has secrets of its own."""
    event_id: UUID
    type: str
    subject_id: UUID
    line: int
    at: datetime
    now: datetime
    """When it was claimed, by Postgres's clock."""
    waited: float | None
    """Seconds since what it tells became true, where this is the first try of all."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """How an attempt ended. `retry_after` is the seconds that the receiver asked for."""

    delivered: bool
    reason: str
    status: int | None
    seconds: float
    retry_after: float = 0.0
    gone: bool = False


@dataclass(frozen=True, slots=True)
class Recorded:
    """What an attempt has led to: the callback's state, and why its endpoint is disabled where it now is."""

    state: str
    disabled: str | None


def tell_comparisons(connection: Connection, *, filing_id: UUID, lines: Sequence[int]) -> None:
    """Write the events of outcomes, in the transaction that stored them. Repeating it tells nothing twice."""
    connection.execute(callbacks_sql.TELL_COMPARISONS, {"filing_id": filing_id, "lines": list(lines)})


def tell_batches(connection: Connection, batches: Sequence[UUID]) -> None:
    """Write the events of batches that have ended, where anybody wants to hear of them."""
    connection.execute(callbacks_sql.TELL_BATCHES, {"batches": list(batches)})


def fan_out(connection: Connection, *, limit: int, shift: float = 0.0) -> int:
    """Make a callback of each fresh event for each of its receivers, due at once, each tenant in its turn.

    Where events have many receivers, it takes fewer than `limit`. Returns how many events that were.
    """
    parameters = {"limit": limit, "most": _FAN_OUT_MOST, "shift": shift}
    return int(connection.execute(callbacks_sql.FAN_OUT, parameters).scalar_one())


def release(connection: Connection, *, room: int, cap: int, limit: int, shift: float = 0.0) -> list[UUID]:
    """Let callbacks go that are due, and say which. Their hints are to be sent next.

    An endpoint has at most `cap` under way at a time; one while it fails or is new; none while its circuit is open,
    which lets one through when its time has come. Each tenant has its turn.

    Args:
        connection: in a transaction. Of several dispatchers one at a time does this; the others get nothing.
        room: how many callbacks may be out at a time, hinted or being sent.
        cap: how many of one endpoint.
        limit: how many to let go now, at most.
        shift: seconds added to the clock.
    """
    if not connection.execute(callbacks_sql.ALONE, {"lock": _RELEASE_LOCK}).scalar_one():
        return []
    parameters = {"room": room, "cap": cap, "limit": limit, "shares": list(_SHARES), "shift": shift}
    return [row.id for row in connection.execute(callbacks_sql.RELEASE, parameters)]


def withdraw(connection: Connection, callbacks: Sequence[UUID]) -> None:
    """Take back a release whose hints could not be sent."""
    connection.execute(callbacks_sql.WITHDRAW, {"callbacks": list(callbacks)})


def hint_again(connection: Connection, *, older_than: float, limit: int) -> list[UUID]:
    """Name released callbacks whose hint must have been lost, since nobody claimed them for `older_than` seconds."""
    result = connection.execute(callbacks_sql.HINT_AGAIN, {"older_than": older_than, "limit": limit})
    return [row.id for row in result]


def claim(connection: Connection, callback: UUID, *, lease_seconds: float) -> Claim | None:
    """Take a released callback: a lease with a fresh token, and one attempt counted before anything is sent.

    Returns:
        The claim; None where there is nothing to claim, because the hint was late, doubled or wrong.
    """
    row = connection.execute(callbacks_sql.CLAIM, {"callback": callback, "lease_seconds": lease_seconds}).one_or_none()
    return Claim(**row._mapping) if row is not None else None  # noqa: SLF001


def record(connection: Connection, claim: Claim, attempt: Attempt, *, shift: float = 0.0) -> Recorded:
    """Write down how an attempt ended, and what that means for the callback and for its endpoint.

    What was not delivered is due again by the schedule, or when the receiver asked for it where that is later. After
    the last attempt, or at once where the receiver is gone, it is dead.

    Raises:
        LeaseLostError: the lease does not hold; nothing was written.
    """
    row = connection.execute(
        callbacks_sql.RECORD,
        {
            "callback": claim.callback,
            "token": claim.token,
            "delivered": attempt.delivered,
            "gone": attempt.gone,
            "status": attempt.status,
            "reason": attempt.reason,
            "seconds": attempt.seconds,
            "retry_after": min(attempt.retry_after, RETRY_AFTER_MOST),
            "schedule": list(SCHEDULE),
            "shift": shift,
            **_CIRCUIT,
            **_DISABLING,
        },
    ).one_or_none()
    if row is None:
        raise LeaseLostError
    return Recorded(state=row.state, disabled=row.disabled)


def put_back(connection: Connection, claim: Claim, *, reason: str, shift: float = 0.0) -> None:
    """Undo a claim, in its own transaction, of what cannot be sent from here: it waits, and no attempt is counted."""
    parameters = {"callback": claim.callback, "token": claim.token, "reason": reason}
    connection.execute(callbacks_sql.PUT_BACK, {**parameters, "seconds": PUT_BACK_SECONDS, "shift": shift})


def reclaim(connection: Connection, *, limit: int, shift: float = 0.0) -> tuple[int, int]:
    """Bring back callbacks whose worker was lost, as the schedule has it after a failed attempt.

    It is no fault of the receiver's, so nothing is held against that. Due at once, a callback would have used up all of
    its attempts within minutes in which workers die one after the other.

    Returns:
        How many, and how many of these had their last attempt by that and are dead.
    """
    parameters = {"schedule": list(SCHEDULE), "limit": limit, "shift": shift}
    row = connection.execute(callbacks_sql.RECLAIM, parameters).one()
    return row.lost, row.dead


def bury(connection: Connection, *, limit: int, shift: float = 0.0) -> int:
    """End callbacks that nobody will try: their endpoint is disabled, or has failed for all of the schedule's time.

    Returns how many. They can be replayed.
    """
    parameters = {"open_after": OPEN_AFTER, "give_up_seconds": GIVE_UP_SECONDS, "limit": limit, "shift": shift}
    return connection.execute(callbacks_sql.BURY, parameters).rowcount
