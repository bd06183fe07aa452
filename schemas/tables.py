"""The tables. A shard holds all queue state; comparisons never change; outcomes are written once."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Identity,
    Index,
    SmallInteger,
    Text,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from schemas import callback_tables, key_tables  # noqa: F401 - their tables stand in the same metadata
from schemas.base import Base


class ComparisonRow(Base):
    """What was filed, as it was filed. Written once, never changed.

    The source is the uploaded file that the line came in, or the filing itself where a comparison was filed singly.
    """

    __tablename__ = "comparisons"

    source_id: Mapped[UUID] = mapped_column(primary_key=True)
    line: Mapped[int] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    custom_id: Mapped[str | None]
    body: Mapped[str]
    request_id: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (
        # A producer's list of single comparisons, newest first.
        Index("ix_comparisons_single", "tenant", "source_id", postgresql_where=text("line = 0")),
    )


class FileRow(Base):
    """An uploaded file. Its lines are comparisons whose source it is; what is no comparison stands in `bad_lines`."""

    __tablename__ = "files"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    filename: Mapped[str]
    purpose: Mapped[str]
    state: Mapped[str]
    bytes: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    lines: Mapped[int] = mapped_column(server_default=text("0"))
    bad_lines: Mapped[int] = mapped_column(server_default=text("0"))
    has_metadata: Mapped[bool] = mapped_column(server_default=text("true"))
    """Whether a line of it may have some, and so has to be searched for it."""
    has_labels: Mapped[bool] = mapped_column(server_default=text("true"))
    """Whether a line of it may say which response is the better, and so has to be read for it."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (
        CheckConstraint("state IN ('uploading', 'processed')", name="state"),
        Index("ix_files_tenant", "tenant", "id"),
    )


class FileRunRow(Base):
    """A run of lines of a file that will travel together as a shard, and how much text it is."""

    __tablename__ = "file_runs"

    file_id: Mapped[UUID] = mapped_column(primary_key=True)
    first_line: Mapped[int] = mapped_column(primary_key=True)
    last_line: Mapped[int]
    lines: Mapped[int]
    bytes: Mapped[int]


class BadLineRow(Base):
    """A line of a file that is no comparison, and why. Never its text."""

    __tablename__ = "bad_lines"

    file_id: Mapped[UUID] = mapped_column(primary_key=True)
    line: Mapped[int] = mapped_column(primary_key=True)
    custom_id: Mapped[str | None]
    code: Mapped[str]
    message: Mapped[str]
    param: Mapped[str | None]


class BatchRow(Base):
    """What is to be made of a file. The lines' queue state is on the shards; counts are sums over them."""

    __tablename__ = "batches"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    file_id: Mapped[UUID]
    endpoint: Mapped[str]
    status: Mapped[str]
    options: Mapped[Any]
    completion_window: Mapped[str]
    metadata_: Mapped[Any | None] = mapped_column("metadata")
    priority: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))
    on_bad_line: Mapped[str]
    not_before: Mapped[datetime | None]
    window: Mapped[Any | None]
    paused: Mapped[bool] = mapped_column(server_default=text("false"))
    open: Mapped[bool] = mapped_column(server_default=text("false"))
    samples: Mapped[Any] = mapped_column(server_default=text("'[]'"))
    total: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime]
    in_progress_at: Mapped[datetime | None]
    cancelling_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint(
            # What is being deleted is shown to nobody (producer/retention.py).
            "status IN ('failed', 'in_progress', 'completed', 'expired', 'cancelling', 'cancelled', 'deleting')",
            name="status",
        ),
        Index("ix_batches_tenant", "tenant", "id"),
        Index("ix_batches_live", "id", postgresql_where=text("status IN ('in_progress', 'cancelling')")),
    )


class ShardRow(Base):
    """A run of lines of one filing that travels together, and the only thing whose state changes.

    A shard's work is those of its lines that have no outcome yet.
    """

    __tablename__ = "shards"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    tenant: Mapped[str]
    filing_id: Mapped[UUID]
    source_id: Mapped[UUID]
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
    at_work: Mapped[int | None]
    losses: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=text("'{}'"))
    bytes: Mapped[int] = mapped_column(server_default=text("0"))
    succeeded: Mapped[int] = mapped_column(server_default=text("0"))
    errored: Mapped[int] = mapped_column(server_default=text("0"))
    cancelled: Mapped[int] = mapped_column(server_default=text("0"))
    expired: Mapped[int] = mapped_column(server_default=text("0"))
    reused: Mapped[int] = mapped_column(server_default=text("0"))
    prompt_tokens: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    cached_tokens: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    gpu_seconds: Mapped[float] = mapped_column(server_default=text("0"))
    notify: Mapped[bool] = mapped_column(server_default=text("false"))
    traceparent: Mapped[str | None]
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
        # The line that is alone in the engine, while one is: who is lost with the worker that runs it.
        CheckConstraint("at_work IS NULL OR state = 'running'", name="at_work"),
        Index("ix_shards_filing", "filing_id", "first_line"),
        Index("ix_shards_batch", "filing_id", "due_at", "id", postgresql_where=text("state = 'waiting'")),
        Index(
            "ix_shards_waiting",
            "lane",
            "tenant",
            text("priority DESC"),
            "due_at",
            "id",
            postgresql_where=text("state = 'waiting'"),
        ),
        Index("ix_shards_oldest", "due_at", postgresql_where=text("lane = 'interactive' AND state = 'waiting'")),
        Index("ix_shards_out", "lane", "state", postgresql_where=text("state IN ('released', 'running')")),
        # What was judged for a tenant today.
        Index("ix_shards_ended", "tenant", "ended_at", postgresql_where=text("ended_at IS NOT NULL")),
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
    """How a comparison ended: at most one row for each, by its key. Never changed.

    `judge_id` refers to a row of `judges`, from which nothing is ever deleted; no foreign key says so, since looking
    each one up would be a tenth of what it costs to store an outcome.
    """

    __tablename__ = "outcomes"

    filing_id: Mapped[UUID] = mapped_column(primary_key=True)
    line: Mapped[int] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    status: Mapped[str]
    tally: Mapped[Any | None] = mapped_column(JSON(none_as_null=True))
    judge_id: Mapped[str | None]
    error_code: Mapped[str | None]
    error_message: Mapped[str | None]
    prompt_tokens: Mapped[int] = mapped_column(server_default=text("0"))
    cached_tokens: Mapped[int] = mapped_column(server_default=text("0"))
    gpu_seconds: Mapped[float] = mapped_column(server_default=text("0"))
    attempt: Mapped[int] = mapped_column(server_default=text("0"))
    digest: Mapped[bytes | None]
    reused: Mapped[bool] = mapped_column(server_default=text("false"))
    decided_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (
        # Where a verdict that was computed is found again: by what was asked.
        Index("ix_outcomes_digest", "digest", postgresql_where=text("digest IS NOT NULL")),
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

    # A key goes with what it led to.
    __table_args__ = (Index("ix_idempotency_keys_filing_id", "filing_id"),)


class WorkerRow(Base):
    """A worker that said it is alive, and how much it can take."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(primary_key=True)
    slots: Mapped[int]
    bulk_slots: Mapped[int]
    engine: Mapped[Any]
    started_at: Mapped[datetime] = mapped_column(server_default=func.now())
    seen_at: Mapped[datetime] = mapped_column(server_default=func.now())
