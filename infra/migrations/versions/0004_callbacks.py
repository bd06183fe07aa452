"""Callbacks: endpoints and their secrets, events written with what they tell of, deliveries and their attempts."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column("shards", sa.Column("notify", sa.Boolean(), server_default=sa.text("false"), nullable=False))

    op.create_table(
        "callback_endpoints",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("registered", sa.Boolean(), nullable=False),
        sa.Column("types", sa.ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("state", sa.Text(), server_default=sa.text("'enabled'"), nullable=False),
        sa.Column("disabled_reason", sa.Text(), nullable=True),
        sa.Column("created_at", _MOMENT, server_default=sa.func.now(), nullable=False),
        sa.Column("succeeded_at", _MOMENT, nullable=True),
        sa.Column("failures", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("failing_since", _MOMENT, nullable=True),
        sa.Column("open_until", _MOMENT, nullable=True),
        sa.CheckConstraint("state IN ('enabled', 'disabled')", name=op.f("ck_callback_endpoints_state")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_callback_endpoints")),
    )
    op.create_index(
        "ix_callback_endpoints_registered",
        "callback_endpoints",
        ["tenant", "id"],
        postgresql_where=sa.text("registered"),
    )
    op.create_index(
        "ix_callback_endpoints_origin",
        "callback_endpoints",
        ["tenant", "url"],
        unique=True,
        postgresql_where=sa.text("NOT registered"),
    )
    op.create_table(
        "callback_secrets",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("endpoint_id", sa.Uuid(), nullable=True),
        sa.Column("secret", sa.Text(), nullable=False),
        sa.Column("created_at", _MOMENT, server_default=sa.func.now(), nullable=False),
        sa.Column("expires_at", _MOMENT, nullable=True),
        sa.ForeignKeyConstraint(
            ["endpoint_id"],
            ["callback_endpoints.id"],
            name=op.f("fk_callback_secrets_endpoint_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_callback_secrets")),
    )
    op.create_index("ix_callback_secrets_owner", "callback_secrets", ["tenant", "endpoint_id"])
    op.create_table(
        "callback_requests",
        sa.Column("filing_id", sa.Uuid(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("endpoint_id", sa.Uuid(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("created_at", _MOMENT, server_default=sa.func.now(), nullable=False),
        sa.ForeignKeyConstraint(
            ["endpoint_id"],
            ["callback_endpoints.id"],
            name=op.f("fk_callback_requests_endpoint_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("filing_id", name=op.f("pk_callback_requests")),
    )
    op.create_index("ix_callback_requests_endpoint_id", "callback_requests", ["endpoint_id"])
    op.create_table(
        "callback_events",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("subject_id", sa.Uuid(), nullable=False),
        sa.Column("line", sa.Integer(), nullable=False),
        sa.Column("at", _MOMENT, nullable=False),
        sa.Column("fanned_out", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("created_at", _MOMENT, server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_callback_events")),
        sa.UniqueConstraint("subject_id", "line", "at", name=op.f("uq_callback_events_subject_id_line_at")),
    )
    op.create_index(
        "ix_callback_events_fresh", "callback_events", ["id"], postgresql_where=sa.text("NOT fanned_out")
    )
    op.create_index("ix_callback_events_tenant", "callback_events", ["tenant", "created_at"])
    op.create_table(
        "callbacks",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("event_id", sa.Uuid(), nullable=False),
        sa.Column("endpoint_id", sa.Uuid(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("due_at", _MOMENT, nullable=False),
        sa.Column("released_at", _MOMENT, nullable=True),
        sa.Column("attempt", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("lease_token", sa.BigInteger(), nullable=True),
        sa.Column("lease_until", _MOMENT, nullable=True),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("created_at", _MOMENT, server_default=sa.func.now(), nullable=False),
        sa.Column("ended_at", _MOMENT, nullable=True),
        sa.CheckConstraint(
            "state IN ('waiting', 'released', 'sending', 'delivered', 'dead')", name=op.f("ck_callbacks_state")
        ),
        sa.CheckConstraint("(state = 'sending') = (lease_token IS NOT NULL)", name=op.f("ck_callbacks_lease_token")),
        sa.CheckConstraint("(state = 'sending') = (lease_until IS NOT NULL)", name=op.f("ck_callbacks_lease_until")),
        sa.CheckConstraint(
            "(state IN ('delivered', 'dead')) = (ended_at IS NOT NULL)", name=op.f("ck_callbacks_ended")
        ),
        sa.ForeignKeyConstraint(
            ["event_id"], ["callback_events.id"], name=op.f("fk_callbacks_event_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["endpoint_id"], ["callback_endpoints.id"], name=op.f("fk_callbacks_endpoint_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_callbacks")),
        sa.UniqueConstraint("event_id", "endpoint_id", name=op.f("uq_callbacks_event_id_endpoint_id")),
    )
    op.create_index(
        "ix_callbacks_waiting",
        "callbacks",
        ["endpoint_id", "due_at", "id"],
        postgresql_where=sa.text("state = 'waiting'"),
    )
    op.create_index(
        "ix_callbacks_out",
        "callbacks",
        ["endpoint_id"],
        postgresql_where=sa.text("state IN ('released', 'sending')"),
    )
    op.create_index("ix_callbacks_tenant", "callbacks", ["tenant", "id"])
    op.create_index("ix_callbacks_dead", "callbacks", ["tenant", "id"], postgresql_where=sa.text("state = 'dead'"))
    op.create_index("ix_callbacks_endpoint_id", "callbacks", ["endpoint_id", "id"])
    op.create_table(
        "callback_attempts",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("callback_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("at", _MOMENT, nullable=False),
        sa.Column("seconds", sa.Float(53), nullable=False),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["callback_id"], ["callbacks.id"], name=op.f("fk_callback_attempts_callback_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_callback_attempts")),
    )
    op.create_index("ix_callback_attempts_callback_id", "callback_attempts", ["callback_id", "id"])


def downgrade() -> None:
    for table in (
        "callback_attempts",
        "callbacks",
        "callback_events",
        "callback_requests",
        "callback_secrets",
        "callback_endpoints",
    ):
        op.drop_table(table)
    op.drop_column("shards", "notify")
