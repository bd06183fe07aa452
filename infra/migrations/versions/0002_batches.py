"""Files and batches: comparisons keep the line as it was filed, and shards keep count."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0002"
down_revision = "0001"

_MOMENT = sa.DateTime(timezone=True)
_COUNTS = ("succeeded", "errored", "cancelled", "expired", "reused")


def upgrade() -> None:
    op.drop_constraint("fk_outcomes_filing_id_line", "outcomes", type_="foreignkey")
    op.add_column("comparisons", sa.Column("body", sa.Text()))
    op.execute("""
        UPDATE comparisons SET body = jsonb_build_object(
            'prompt', prompt, 'response_a', response_a, 'response_b', response_b, 'order', orders, 'profile', profile,
            'tie_margin', tie_margin, 'metadata', metadata)::text
    """)
    op.alter_column("comparisons", "body", nullable=False)
    for column in ("prompt", "response_a", "response_b", "orders", "profile", "tie_margin", "metadata"):
        op.drop_column("comparisons", column)
    op.alter_column("comparisons", "filing_id", new_column_name="source_id")

    op.add_column("shards", sa.Column("source_id", sa.Uuid()))
    op.execute("UPDATE shards SET source_id = filing_id")
    op.alter_column("shards", "source_id", nullable=False)
    op.add_column("shards", sa.Column("bytes", sa.Integer(), server_default=sa.text("0"), nullable=False))
    for column in _COUNTS:
        op.add_column("shards", sa.Column(column, sa.Integer(), server_default=sa.text("0"), nullable=False))
    for column in ("prompt_tokens", "cached_tokens"):
        op.add_column("shards", sa.Column(column, sa.BigInteger(), server_default=sa.text("0"), nullable=False))
    op.add_column("shards", sa.Column("gpu_seconds", sa.Float(53), server_default=sa.text("0"), nullable=False))
    op.create_index(
        "ix_shards_batch", "shards", ["filing_id", "due_at", "id"], postgresql_where=sa.text("state = 'waiting'")
    )

    # A tally is written and read whole: as text it costs neither taking apart nor putting together.
    op.alter_column("outcomes", "tally", type_=sa.JSON(), postgresql_using="tally::json")
    op.add_column("outcomes", sa.Column("digest", sa.LargeBinary(), nullable=True))
    op.add_column("outcomes", sa.Column("reused", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.create_index(
        "ix_outcomes_digest", "outcomes", ["digest", "judge_id"], postgresql_where=sa.text("digest IS NOT NULL")
    )

    op.create_table(
        "files",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("filename", sa.Text(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("lines", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("bad_lines", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("created_at", _MOMENT, server_default=sa.func.now(), nullable=False),
        sa.CheckConstraint("state IN ('uploading', 'processed')", name=op.f("ck_files_state")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_files")),
    )
    op.create_index("ix_files_tenant", "files", ["tenant", "id"])
    op.create_table(
        "file_runs",
        sa.Column("file_id", sa.Uuid(), nullable=False),
        sa.Column("first_line", sa.Integer(), nullable=False),
        sa.Column("last_line", sa.Integer(), nullable=False),
        sa.Column("lines", sa.Integer(), nullable=False),
        sa.Column("bytes", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("file_id", "first_line", name=op.f("pk_file_runs")),
    )
    op.create_table(
        "bad_lines",
        sa.Column("file_id", sa.Uuid(), nullable=False),
        sa.Column("line", sa.Integer(), nullable=False),
        sa.Column("custom_id", sa.Text(), nullable=True),
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("param", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("file_id", "line", name=op.f("pk_bad_lines")),
    )
    op.create_table(
        "batches",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("file_id", sa.Uuid(), nullable=False),
        sa.Column("endpoint", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("options", JSONB(), nullable=False),
        sa.Column("completion_window", sa.Text(), nullable=False),
        sa.Column("metadata", JSONB(), nullable=True),
        sa.Column("priority", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("on_bad_line", sa.Text(), nullable=False),
        sa.Column("not_before", _MOMENT, nullable=True),
        sa.Column("window", JSONB(), nullable=True),
        sa.Column("paused", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("open", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("total", sa.Integer(), nullable=False),
        sa.Column("created_at", _MOMENT, server_default=sa.func.now(), nullable=False),
        sa.Column("expires_at", _MOMENT, nullable=False),
        sa.Column("in_progress_at", _MOMENT, nullable=True),
        sa.Column("cancelling_at", _MOMENT, nullable=True),
        sa.Column("ended_at", _MOMENT, nullable=True),
        sa.CheckConstraint(
            "status IN ('failed', 'in_progress', 'completed', 'expired', 'cancelling', 'cancelled')",
            name=op.f("ck_batches_status"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_batches")),
    )
    op.create_index("ix_batches_tenant", "batches", ["tenant", "id"])
    op.create_index(
        "ix_batches_live", "batches", ["id"], postgresql_where=sa.text("status IN ('in_progress', 'cancelling')")
    )


def downgrade() -> None:
    # What was filed in batches has no place in the tables before: it goes. Single comparisons stay.
    op.execute("DELETE FROM outcomes WHERE line > 0")
    op.execute("DELETE FROM shards WHERE last_line > 0")
    op.execute("DELETE FROM comparisons WHERE line > 0")
    for table in ("batches", "bad_lines", "file_runs", "files"):
        op.drop_table(table)

    op.drop_index("ix_outcomes_digest", "outcomes")
    for column in ("digest", "reused"):
        op.drop_column("outcomes", column)
    op.alter_column("outcomes", "tally", type_=JSONB(), postgresql_using="tally::jsonb")

    op.drop_index("ix_shards_batch", "shards")
    for column in ("source_id", "bytes", *_COUNTS, "prompt_tokens", "cached_tokens", "gpu_seconds"):
        op.drop_column("shards", column)

    op.alter_column("comparisons", "source_id", new_column_name="filing_id")
    columns: dict[str, tuple[str, Any, bool]] = {
        "prompt": ("body::jsonb -> 'prompt'", JSONB(), False),
        "response_a": ("body::jsonb -> 'response_a'", JSONB(), False),
        "response_b": ("body::jsonb -> 'response_b'", JSONB(), False),
        "orders": ("body::jsonb ->> 'order'", sa.Text(), False),
        "profile": ("body::jsonb ->> 'profile'", sa.Text(), False),
        "tie_margin": ("(body::jsonb ->> 'tie_margin')::float8", sa.Float(53), True),
        "metadata": ("body::jsonb -> 'metadata'", JSONB(), False),
    }
    for name, (source, kind, nullable) in columns.items():
        op.add_column("comparisons", sa.Column(name, kind))
        op.execute(f"UPDATE comparisons SET {name} = {source}")  # noqa: S608 - constants of this migration
        op.alter_column("comparisons", name, nullable=nullable)
    op.drop_column("comparisons", "body")
    op.create_foreign_key(
        "fk_outcomes_filing_id_line", "outcomes", "comparisons", ["filing_id", "line"], ["filing_id", "line"]
    )
