"""Prepare a callback, send it, record what came of it. No transaction is open while it is being sent."""

import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Protocol
from uuid import UUID

import structlog
from sqlalchemy import Connection
from sqlalchemy import Engine as Database
from standardwebhooks import Webhook

from infra import callback_secrets, callbacks, docket, metrics
from infra.callbacks import Attempt, Claim, LeaseLostError
from infra.database import persist
from infra.meters import Meters
from infra.sealing import NotOpenedError, Seals
from infra.traces import Attributes, Traces
from schemas import ids
from schemas.callback import AttemptReason, CallbackState, event_body
from worker.egress import Reply

log = structlog.get_logger()

_OK, _REDIRECTS, _REFUSALS, _GONE, _TOO_MANY = 200, 300, 400, 410, 429
_LEASE_MARGIN = 15.0
"""Seconds that a lease outlives the deadline of sending: enough to record, and soon a worker is known to be lost."""


class Send(Protocol):
    """Sends one request and never raises: `worker.egress.send`, its settings filled in."""

    def __call__(self, url: str, *, body: bytes, headers: dict[str, str], deadline_seconds: float) -> Reply:
        """Send it, in at most so many seconds."""


@dataclass(frozen=True, slots=True)
class Courier:
    """What callbacks are delivered with: built once by `worker/callbacks_app.py` and handed down."""

    database: Database
    send: Send
    deadline_seconds: float
    seals: Seals
    clock_shift_seconds: float = 0.0
    draining: threading.Event = field(default_factory=threading.Event)
    """Set when the process is to end: claim nothing more."""
    meters: Meters = field(default_factory=partial(Meters, "callbacks"))
    traces: Traces = field(default_factory=Traces)


def deliver(courier: Courier, callback: UUID) -> None:
    """Claim a callback, send it once, and record how that ended. A hint that is late or doubled sends nothing."""
    if courier.draining.is_set():
        return  # it will be hinted again, to a worker that stays
    with courier.database.begin() as connection:
        claim = callbacks.claim(connection, callback, lease_seconds=courier.deadline_seconds + _LEASE_MARGIN)
        if claim is None:
            log.debug("hint_without_work", callback=callback.hex)
            return
        secrets = _secrets(connection, courier.seals, claim)
        if not secrets:  # its tenant is being deleted, or its key is missing; nothing is ever sent unsigned
            callbacks.put_back(
                connection, claim, reason=AttemptReason.SECRET_NOT_OPENED, shift=courier.clock_shift_seconds
            )
            courier.meters.add(metrics.CALLBACKS_PUT_BACK)
            return
        traceparent = _traceparent(connection, claim) if courier.traces.on else None
    body = event_body(claim.event_id, claim.type, claim.at, claim.subject_id, claim.line)
    headers = sign(ids.event_id(claim.event_id), body, secrets, claim.now)
    if claim.waited is not None:
        courier.meters.observe(metrics.FIRST_TRY_SECONDS, claim.waited)
    about: Attributes = {"nightcourt.callback": ids.callback_id(callback), "nightcourt.attempt": claim.attempt}
    apart = claim.line != ids.SINGLE_LINE  # a line of a batch
    with courier.traces.follow("callback attempt", traceparent, about, kind="client", apart=apart) as span:
        reply = courier.send(claim.url, body=body, headers=headers, deadline_seconds=courier.deadline_seconds)
        attempt = judge(reply)
        span.note({"nightcourt.result": attempt.reason})
        if attempt.status is not None:
            span.note({"http.response.status_code": attempt.status})
        if not attempt.delivered:
            span.fail(attempt.reason)
    _record(courier, claim, attempt)


def _traceparent(connection: Connection, claim: Claim) -> str | None:
    """Tell where the trace began of what a callback tells of: of a line, or of a batch, which has no line."""
    is_batch = claim.type.startswith("batch.")
    return docket.traceparent_of(connection, claim.subject_id, ids.LAST_LINE if is_batch else claim.line)


def _secrets(connection: Connection, seals: Seals, claim: Claim) -> list[str]:
    owner = claim.endpoint_id if claim.registered else None
    about = {"callback": ids.callback_id(claim.callback), "endpoint": ids.endpoint_id(claim.endpoint_id)}
    try:
        secrets = callback_secrets.read(connection, seals, tenant=claim.tenant, endpoint=owner)
    except NotOpenedError as error:
        log.error("callback_secret_not_opened", **about, why=str(error))  # noqa: TRY400 - no trace: it would say nothing more
        return []
    if not secrets:
        log.warning("callback_without_secret", **about)
    return secrets


def sign(message_id: str, body: bytes, secrets: list[str], now: datetime) -> dict[str, str]:
    """Make the headers of Standard Webhooks 1.0: the id, the time of this attempt, a signature by each secret.

    Args:
        message_id: the same at every attempt.
        body: the exact bytes to be sent.
        secrets: in Standard Webhooks' form, at least one.
        now: aware.
    """
    utc = now.astimezone(UTC)  # the library takes the hours of any zone for UTC's
    signatures = [Webhook(secret).sign(message_id, utc, body.decode()) for secret in secrets]
    return {
        "content-type": "application/json",
        "user-agent": "nightcourt-callbacks",
        "webhook-id": message_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": " ".join(signatures),
    }


def judge(reply: Reply) -> Attempt:
    """Tell what a reply means: 2xx is delivered, 410 the end, all else another attempt, not before `Retry-After`."""
    status = reply.status
    if status is None:
        reason, delivered = str(reply.reason), False
    else:
        delivered = _OK <= status < _REDIRECTS
        reason = _reason(status, delivered=delivered)
    return Attempt(
        delivered=delivered,
        reason=reason,
        status=status,
        seconds=reply.seconds,
        retry_after=0.0 if delivered else reply.retry_after or 0.0,
        gone=status == _GONE,
    )


def _reason(status: int, *, delivered: bool) -> AttemptReason:
    if delivered:
        return AttemptReason.DELIVERED
    if status == _GONE:
        return AttemptReason.GONE
    if status == _TOO_MANY:
        return AttemptReason.THROTTLED
    if _REDIRECTS <= status < _REFUSALS:
        return AttemptReason.REDIRECT
    return AttemptReason.BAD_STATUS


def _record(courier: Courier, claim: Claim, attempt: Attempt) -> None:
    about = {
        "callback": ids.callback_id(claim.callback),
        "event_id": ids.event_id(claim.event_id),
        "endpoint": ids.endpoint_id(claim.endpoint_id),
        "attempt": claim.attempt,
        "status": attempt.status,
        "reason": attempt.reason,
        "seconds": round(attempt.seconds, 4),
    }
    courier.meters.add(metrics.CALLBACK_ATTEMPTS, result=attempt.reason)
    courier.meters.observe(metrics.CALLBACK_SECONDS, attempt.seconds)
    try:
        recorded = persist(
            courier.database,
            lambda c: callbacks.record(c, claim, attempt, shift=courier.clock_shift_seconds),
            patience_seconds=_LEASE_MARGIN,
        )
    except LeaseLostError:
        courier.meters.add(metrics.STALE_WRITES)
        log.warning("stale_write_refused", **about)
        return
    if recorded.state == CallbackState.DELIVERED:
        log.info("callback_delivered", **about)
    elif recorded.state == CallbackState.DEAD:
        courier.meters.add(metrics.CALLBACKS_DEAD)
        log.warning("callback_dead", **about)
    else:
        log.info("callback_failed", **about)
    if recorded.disabled is not None:
        courier.meters.add(metrics.ENDPOINTS_DISABLED)
        log.warning("callback_endpoint_disabled", endpoint=about["endpoint"], why=recorded.disabled)
