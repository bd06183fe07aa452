"""The tables of callbacks. A callback holds all its queue state; events are written once and never changed."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Identity,
    Index,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from schemas.base import Base


class CallbackEndpointRow(Base):
    """A receiver of callbacks: registered, or where requests with a `callback_url` of that origin are delivered to.

    Either way it is what a circuit breaks for, and what has so many callbacks under way at a time.
    """

    __tablename__ = "callback_endpoints"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    url: Mapped[str]
    registered: Mapped[bool]
    types: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=text("'{}'"))
    description: Mapped[str | None]
    state: Mapped[str] = mapped_column(server_default=text("'enabled'"))
    disabled_reason: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    succeeded_at: Mapped[datetime | None]
    failures: Mapped[int] = mapped_column(server_default=text("0"))
    failing_since: Mapped[datetime | None]
    open_until: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint("state IN ('enabled', 'disabled')", name="state"),
        Index("ix_callback_endpoints_registered", "tenant", "id", postgresql_where=text("registered")),
        Index(
            "ix_callback_endpoints_unproven",
            "tenant",
            "created_at",
            postgresql_where=text("NOT registered AND (succeeded_at IS NULL OR failures > 0)"),
        ),
        Index("ix_callback_endpoints_origin", "tenant", "url", unique=True, postgresql_where=text("NOT registered")),
    )


class CallbackSecretRow(Base):
    """What callbacks are signed with: an endpoint's own, or, without one, what all of a tenant's requests share."""

    __tablename__ = "callback_secrets"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    tenant: Mapped[str]
    endpoint_id: Mapped[UUID | None] = mapped_column(ForeignKey("callback_endpoints.id", ondelete="CASCADE"))
    secret: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime | None]

    __table_args__ = (Index("ix_callback_secrets_owner", "tenant", "endpoint_id"),)


class CallbackRequestRow(Base):
    """The `callback_url` of one filing, and the endpoint that stands for its origin."""

    __tablename__ = "callback_requests"

    filing_id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    endpoint_id: Mapped[UUID] = mapped_column(ForeignKey("callback_endpoints.id", ondelete="CASCADE"))
    url: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (Index("ix_callback_requests_endpoint_id", "endpoint_id"),)


class CallbackEventRow(Base):
    """That something ended, written in the transaction in which it did. Its key makes one event of one ending."""

    __tablename__ = "callback_events"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    type: Mapped[str]
    subject_id: Mapped[UUID]
    line: Mapped[int]
    at: Mapped[datetime]
    fanned_out: Mapped[bool] = mapped_column(server_default=text("false"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (
        UniqueConstraint("subject_id", "line", "at"),
        Index("ix_callback_events_untold", "tenant", "id", postgresql_where=text("NOT fanned_out")),
        Index("ix_callback_events_tenant", "tenant", "created_at"),
    )


class CallbackRow(Base):
    """An event on its way to one receiver: what `infra/callbacks.py` moves."""

    __tablename__ = "callbacks"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    event_id: Mapped[UUID] = mapped_column(ForeignKey("callback_events.id", ondelete="CASCADE"))
    endpoint_id: Mapped[UUID] = mapped_column(ForeignKey("callback_endpoints.id", ondelete="CASCADE"))
    url: Mapped[str]
    state: Mapped[str]
    due_at: Mapped[datetime]
    released_at: Mapped[datetime | None]
    attempt: Mapped[int] = mapped_column(server_default=text("0"))
    lease_token: Mapped[int | None] = mapped_column(BigInteger)
    lease_until: Mapped[datetime | None]
    status: Mapped[int | None]
    reason: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    ended_at: Mapped[datetime | None]

    __table_args__ = (
        # However often an event is fanned out, each receiver gets it once.
        UniqueConstraint("event_id", "endpoint_id"),
        CheckConstraint("state IN ('waiting', 'released', 'sending', 'delivered', 'dead')", name="state"),
        CheckConstraint("(state = 'sending') = (lease_token IS NOT NULL)", name="lease_token"),
        CheckConstraint("(state = 'sending') = (lease_until IS NOT NULL)", name="lease_until"),
        CheckConstraint("(state IN ('delivered', 'dead')) = (ended_at IS NOT NULL)", name="ended"),
        Index("ix_callbacks_waiting", "endpoint_id", "due_at", "id", postgresql_where=text("state = 'waiting'")),
        Index("ix_callbacks_out", "endpoint_id", postgresql_where=text("state IN ('released', 'sending')")),
        Index("ix_callbacks_tenant", "tenant", "id"),
        Index("ix_callbacks_dead", "tenant", "id", postgresql_where=text("state = 'dead'")),
        Index("ix_callbacks_dead_endpoint", "endpoint_id", postgresql_where=text("state = 'dead'")),
        Index("ix_callbacks_endpoint_id", "endpoint_id", "id"),
    )


class CallbackAttemptRow(Base):
    """One attempt to deliver a callback, and how it ended."""

    __tablename__ = "callback_attempts"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    callback_id: Mapped[UUID] = mapped_column(ForeignKey("callbacks.id", ondelete="CASCADE"))
    number: Mapped[int]
    at: Mapped[datetime]
    seconds: Mapped[float]
    status: Mapped[int | None]
    reason: Mapped[str]

    __table_args__ = (Index("ix_callback_attempts_callback_id", "callback_id", "id"),)
