"""The tables. A shard holds all queue state; comparisons never change; outcomes are written once."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    DateTime,
    Float,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Sequence,
    SmallInteger,
    Text,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

Moment = DateTime(timezone=True)


class Base(DeclarativeBase):
    """The base of all tables, with one way of naming constraints so that migrations can find them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy reads it as a class attribute
        str: Text,
        int: Integer,
        float: Float(53),
        datetime: Moment,
        UUID: Uuid,
        bytes: LargeBinary,
        Any: JSONB,
    }


LEASE_TOKENS = Sequence("lease_tokens", metadata=Base.metadata)
"""Where fencing tokens come from: each claim takes the next, so no two leases ever share one."""


class ComparisonRow(Base):
    """What was filed. Written once, never changed."""

    __tablename__ = "comparisons"

    filing_id: Mapped[UUID] = mapped_column(primary_key=True)
    line: Mapped[int] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    custom_id: Mapped[str | None]
    prompt: Mapped[Any]
    response_a: Mapped[Any]
    response_b: Mapped[Any]
    orders: Mapped[str]
    profile: Mapped[str]
    tie_margin: Mapped[float | None]
    metadata_: Mapped[Any] = mapped_column("metadata")
    request_id: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (
        # A producer's list of single comparisons, newest first.
        Index("ix_comparisons_single", "tenant", "filing_id", postgresql_where=text("line = 0")),
    )


class ShardRow(Base):
    """A run of lines of one filing that travels together, and the only thing whose state changes.

    A shard's work is those of its lines that have no outcome yet.
    """

    __tablename__ = "shards"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    tenant: Mapped[str]
    filing_id: Mapped[UUID]
    first_line: Mapped[int]
    last_line: Mapped[int]
    lane: Mapped[str]
    priority: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))
    state: Mapped[str]
    due_at: Mapped[datetime] = mapped_column(server_default=func.now())
    deadline_at: Mapped[datetime | None]
    released_at: Mapped[datetime | None]
    attempt: Mapped[int] = mapped_column(server_default=text("0"))
    lease_token: Mapped[int | None] = mapped_column(BigInteger)
    lease_until: Mapped[datetime | None]
    lease_owner: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    ended_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint("first_line <= last_line", name="lines"),
        CheckConstraint("attempt >= 0", name="attempt"),
        CheckConstraint("state IN ('waiting', 'released', 'running', 'split', 'done')", name="state"),
        CheckConstraint("lane IN ('interactive', 'bulk')", name="lane"),
        # A lease exists exactly while the shard runs: whoever ends the run has to take the token away.
        CheckConstraint("(state = 'running') = (lease_token IS NOT NULL)", name="lease_token"),
        CheckConstraint("(state = 'running') = (lease_until IS NOT NULL)", name="lease_until"),
        Index("ix_shards_filing", "filing_id", "first_line"),
        Index(
            "ix_shards_waiting",
            "lane",
            text("priority DESC"),
            "due_at",
            "id",
            postgresql_where=text("state = 'waiting'"),
        ),
        Index("ix_shards_out", "lane", "state", postgresql_where=text("state IN ('released', 'running')")),
        Index("ix_shards_lease", "lease_until", postgresql_where=text("state = 'running'")),
        Index(
            "ix_shards_deadline",
            "deadline_at",
            postgresql_where=text("deadline_at IS NOT NULL AND state IN ('waiting', 'released', 'running')"),
        ),
    )


class JudgeRow(Base):
    """What verdicts were made with, once for all the verdicts that share it."""

    __tablename__ = "judges"

    id: Mapped[str] = mapped_column(primary_key=True)
    card: Mapped[Any]
    first_seen_at: Mapped[datetime] = mapped_column(server_default=func.now())


class OutcomeRow(Base):
    """How a comparison ended: at most one row for each, by its key. Never changed."""

    __tablename__ = "outcomes"

    filing_id: Mapped[UUID] = mapped_column(primary_key=True)
    line: Mapped[int] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    status: Mapped[str]
    tally: Mapped[Any | None]
    judge_id: Mapped[str | None]
    error_code: Mapped[str | None]
    error_message: Mapped[str | None]
    prompt_tokens: Mapped[int] = mapped_column(server_default=text("0"))
    cached_tokens: Mapped[int] = mapped_column(server_default=text("0"))
    gpu_seconds: Mapped[float] = mapped_column(server_default=text("0"))
    attempt: Mapped[int] = mapped_column(server_default=text("0"))
    decided_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (
        ForeignKeyConstraint(["filing_id", "line"], ["comparisons.filing_id", "comparisons.line"]),
        ForeignKeyConstraint(["judge_id"], ["judges.id"]),
        CheckConstraint("status IN ('succeeded', 'errored', 'cancelled', 'expired')", name="status"),
        CheckConstraint("(status = 'succeeded') = (tally IS NOT NULL)", name="tally"),
        CheckConstraint("(tally IS NULL) = (error_code IS NOT NULL)", name="error"),
        CheckConstraint("tally IS NULL OR judge_id IS NOT NULL", name="judge"),
    )


class IdempotencyKeyRow(Base):
    """A key that a producer sent with a request, and the filing it led to."""

    __tablename__ = "idempotency_keys"

    tenant: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    fingerprint: Mapped[bytes]
    filing_id: Mapped[UUID]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class WorkerRow(Base):
    """A worker that said it is alive, and how much it can take."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(primary_key=True)
    slots: Mapped[int]
    bulk_slots: Mapped[int]
    engine: Mapped[Any]
    started_at: Mapped[datetime] = mapped_column(server_default=func.now())
    seen_at: Mapped[datetime] = mapped_column(server_default=func.now())
