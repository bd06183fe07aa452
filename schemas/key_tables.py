"""The tables of keys, and of tenants that are no more.

A key's secret is nowhere: what is kept tells whether a secret is the right one.
"""

from datetime import datetime
from uuid import UUID

from sqlalchemy import ARRAY, BigInteger, CheckConstraint, ForeignKey, Index, Text, func
from sqlalchemy.orm import Mapped, mapped_column

from schemas.base import Base


class KeyRow(Base):
    """A key of a tenant: what it may do, until when, and within which limits (NULL is the setting's default).

    `hash` is the SHA-256 of the secret: 256 random bits, which no dictionary holds and nobody can try out.
    """

    __tablename__ = "keys"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    name: Mapped[str | None]
    hash: Mapped[bytes]
    scopes: Mapped[list[str]] = mapped_column(ARRAY(Text))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    replaces: Mapped[UUID | None] = mapped_column(ForeignKey("keys.id", ondelete="SET NULL"))
    requests_per_second: Mapped[float | None]
    queued_comparisons: Mapped[int | None]
    tokens_per_day: Mapped[int | None] = mapped_column(BigInteger)
    concurrent_batches: Mapped[int | None]
    max_body_bytes: Mapped[int | None]

    __table_args__ = (
        CheckConstraint("octet_length(hash) = 32", name="hash"),
        CheckConstraint("cardinality(scopes) > 0 AND scopes <@ ARRAY['submit', 'read', 'admin']", name="scopes"),
        Index("ix_keys_tenant", "tenant", "id"),
        Index("ix_keys_replaces", "replaces"),
    )


class TombstoneRow(Base):
    """A tenant whose everything was deleted, so that nothing is filed for it again by who came late."""

    __tablename__ = "tombstones"

    tenant: Mapped[str] = mapped_column(primary_key=True)
    purged_at: Mapped[datetime] = mapped_column(server_default=func.now())
    finished_at: Mapped[datetime | None]


class SessionRow(Base):
    """A browser that somebody signed in with a key; or an invitation to one, which is good once.

    `id` is the SHA-256 of what the browser sends. A session ends with its key, whatever ends that.
    """

    __tablename__ = "sessions"

    id: Mapped[bytes] = mapped_column(primary_key=True)
    key_id: Mapped[UUID] = mapped_column(ForeignKey("keys.id", ondelete="CASCADE"))
    invitation: Mapped[bool]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime]

    __table_args__ = (
        CheckConstraint("octet_length(id) = 32", name="id"),
        Index("ix_sessions_key_id", "key_id"),
        Index("ix_sessions_expires_at", "expires_at"),
    )
