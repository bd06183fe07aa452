"""Callbacks on the wire: what an event says, and endpoints, attempts and the log as producers see them."""

import json
from datetime import UTC, datetime
from enum import StrEnum
from typing import Literal
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, Field

from schemas import ids
from schemas.bodies import Body, MetadataValue
from schemas.comparison import CallbackUrl
from schemas.ids import SINGLE_LINE, ComparisonKey
from schemas.pages import Listed, Page


class EventType(StrEnum):
    """What an event says. Each is of one ending: a batch whose errored lines are retried ends, and tells, again."""

    COMPARISON_SUCCEEDED = "comparison.succeeded"
    COMPARISON_ERRORED = "comparison.errored"
    COMPARISON_CANCELLED = "comparison.cancelled"
    COMPARISON_EXPIRED = "comparison.expired"
    BATCH_COMPLETED = "batch.completed"
    BATCH_FAILED = "batch.failed"
    BATCH_CANCELLED = "batch.cancelled"
    BATCH_EXPIRED = "batch.expired"
    CALLBACK_TEST = "callback.test"
    """Asked for by somebody who wants to see whether callbacks arrive."""


class CallbackState(StrEnum):
    """Where a callback stands. Every move between these is one SQL statement in `infra/callbacks_sql.py`."""

    WAITING = "waiting"
    """For its next attempt, which becomes due at `due_at`."""
    RELEASED = "released"
    """A hint was sent through Redis; no worker has claimed it yet."""
    SENDING = "sending"
    """A worker holds a lease with a fencing token."""
    DELIVERED = "delivered"
    """The receiver answered 2xx."""
    DEAD = "dead"
    """Nobody tries any more; it can be replayed."""


class AttemptReason(StrEnum):
    """How an attempt ended, or why there was none. The codes never change."""

    DELIVERED = "delivered"
    BAD_STATUS = "bad_status"
    """The receiver answered, and not with 2xx."""
    REDIRECT = "redirect"
    """The receiver answered 3xx. Redirects are never followed."""
    THROTTLED = "throttled"
    """The receiver answered 429."""
    GONE = "gone"
    """The receiver answered 410: it wants no more of this."""
    TIMEOUT = "timeout"
    """The deadline passed before an answer began."""
    CONNECT_FAILED = "connect_failed"
    """Nothing listens there, or there is no way there."""
    TLS_FAILED = "tls_failed"
    """The certificate is not valid for this host, or there is no TLS that both sides speak."""
    DNS_FAILED = "dns_failed"
    """The host's name has no address, or none was found in time."""
    REFUSED = "refused"
    """The URL or one of its addresses is none that callbacks may go to. Nothing was connected to."""
    TOO_SLOW = "too_slow"
    """The deadline passed in the middle of the answer's headers."""
    TOO_LARGE = "too_large"
    """The answer's headers are longer than is read."""
    BROKEN = "broken"
    """The connection broke, or what came is not HTTP."""
    WORKER_LOST = "worker_lost"
    """The worker was gone before it could report; the receiver may have heard."""
    SECRET_NOT_OPENED = "secret_not_opened"  # noqa: S105 - a reason
    """There was nothing to sign with: the key that the secret is sealed by is not here. Nothing was tried."""
    ENDPOINT_DISABLED = "endpoint_disabled"
    CIRCUIT_OPEN = "circuit_open"
    """Its turn never came while the receiver failed at everything else."""


class EventData(BaseModel):
    """What an event is about. Read the rest with its id."""

    id: str
    object: Literal["comparison", "batch", "callback_endpoint"]
    batch_id: str | None = None


class CallbackEvent(BaseModel):
    """An event, as a receiver gets it: the same id and the same bytes at every attempt."""

    id: str = Field(description="The header `webhook-id`: keep it, and do nothing twice")
    object: Literal["event"] = "event"
    type: str = Field(description="One of `EventType`, or one of a later version")
    timestamp: datetime = Field(description="When it became true")
    created_at: int = Field(description="The same in Unix seconds")
    data: EventData


def event_data(type_: str, subject: UUID, line: int) -> dict[str, str]:
    """Say what an event is about.

    Args:
        type_: what became of it.
        subject: the filing, or the endpoint of a test.
        line: which line of the filing; a batch as a whole is its line 0, which is none of its comparisons.
    """
    kind = type_.partition(".")[0]
    if kind == "batch":
        return {"id": ids.batch_id(subject), "object": "batch"}
    if kind == "callback":
        return {"id": ids.endpoint_id(subject), "object": "callback_endpoint"}
    data = {"id": ids.comparison_id(ComparisonKey(subject, line)), "object": "comparison"}
    return data if line == SINGLE_LINE else {**data, "batch_id": ids.batch_id(subject)}


def event_body(event: UUID, type_: str, at: datetime, subject: UUID, line: int) -> bytes:
    """Write an event's body. It is made anew at each attempt: from what never changes, to the same bytes."""
    at = at.astimezone(UTC)
    body = {
        "id": ids.event_id(event),
        "object": "event",
        "type": type_,
        "timestamp": at.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "created_at": int(at.timestamp()),
        "data": event_data(type_, subject, line),
    }
    return json.dumps(body, separators=(",", ":")).encode()


class EndpointRequest(Body):
    """Where callbacks shall go from now on."""

    url: CallbackUrl = Field(
        description="https, on a public host; or where NIGHTCOURT_CALLBACK_ALLOW of the service lets callbacks go"
    )
    events: list[EventType] = Field(default_factory=list, max_length=32, description="Which; all where none is named")
    description: MetadataValue | None = None


class Endpoint(BaseModel):
    """A receiver, and how it has been doing."""

    id: str
    object: Literal["callback_endpoint"] = "callback_endpoint"
    url: str = Field(description="Scheme, host and port alone where it was not registered")
    registered: bool = Field(
        description="False where requests named it as their callback_url: it stands for all of them there"
    )
    events: list[str]
    description: str | None
    status: Literal["enabled", "disabled"]
    disabled_reason: Literal["asked", "gone", "failing"] | None = Field(
        description="'asked' by you, 'gone' since it answered 410, 'failing' after days of nothing but failure"
    )
    created_at: datetime
    last_success_at: datetime | None
    failing_since: datetime | None
    failures: int = Field(description="Failed attempts since the last that succeeded")
    held_until: datetime | None = Field(
        description="After several failures, or where it asked for time, nothing is tried before this; enabling ends it"
    )


class Secret(BaseModel):
    """A new secret, shown this once."""

    object: Literal["callback_secret"] = "callback_secret"
    endpoint_id: str | None = Field(description="Null for the one that signs what goes to a request's callback_url")
    secret: str
    previous_valid_until: datetime | None = Field(description="Until then the earlier secret signs too")


class NewEndpoint(Endpoint):
    """An endpoint that was just registered, with its secret, shown this once."""

    secret: str


class EndpointPage(BaseModel):
    """The endpoints that are registered, oldest first; then those named by requests that fail or are held."""

    object: Literal["list"] = "list"
    data: list[Endpoint]


class Attempt(BaseModel):
    """One attempt to deliver a callback."""

    number: int = Field(description="Since the callback was made, or last replayed")
    at: datetime
    seconds: float
    status: int | None = Field(description="The HTTP status of the answer, where there was one")
    reason: str


class Callback(Listed):
    """An event on its way to one receiver."""

    object: Literal["callback"] = "callback"
    event_id: str
    type: str
    data: EventData
    endpoint_id: str = Field(description="Of its receiver, whether registered or named by requests")
    registered: bool = Field(description="Whether its receiver is; false where it goes to a request's callback_url")
    url: str
    status: CallbackState
    attempts: int
    next_attempt_at: datetime | None
    held_until: datetime | None = Field(
        description="Where it would be its turn, and nothing is tried at its receiver, which failed or asked for time"
    )
    last_status: int | None
    last_reason: str | None
    created_at: datetime
    ended_at: datetime | None
    log: list[Attempt] | None = Field(default=None, description="Every attempt, where one callback is read")


class CallbackPage(Page[Callback]):
    """A page of callbacks, newest first. Ask for the next with `after=last_id`."""


class ReplayRequest(Body):
    """What to send again: everything dead of events since a moment."""

    since: AwareDatetime = Field(description="ISO 8601 with its zone")
    endpoint_id: str | None = Field(default=None, description="Of one endpoint alone")


class Rotation(Body):
    """How to go from one secret to the next."""

    grace_seconds: float = Field(
        default=24 * 3600.0, ge=0, le=7 * 24 * 3600.0, description="How long the earlier secret signs too"
    )


class Replayed(BaseModel):
    """How many callbacks go out again."""

    replayed: int
    held: int = Field(description="Of those, how many wait for receivers at which nothing is tried for the time being")
