"""What is being deleted says so, and what a key led to is found by it."""

from alembic import op

revision = "0013"
down_revision = "0012"

_STATUSES = ("failed", "in_progress", "completed", "expired", "cancelling", "cancelled")


def _take(statuses: tuple[str, ...]) -> None:
    op.drop_constraint(op.f("ck_batches_status"), "batches", type_="check")
    listed = ", ".join(f"'{status}'" for status in statuses)
    op.create_check_constraint(op.f("ck_batches_status"), "batches", f"status IN ({listed})")


def upgrade() -> None:
    _take((*_STATUSES, "deleting"))
    op.create_index("ix_idempotency_keys_filing_id", "idempotency_keys", ["filing_id"])
    # Keys that were left behind by their batches answer for nothing.
    op.execute("""
        DELETE FROM idempotency_keys k
        WHERE NOT EXISTS (SELECT FROM batches b WHERE b.id = k.filing_id)
          AND NOT EXISTS (SELECT FROM comparisons c WHERE c.source_id = k.filing_id)
    """)


def downgrade() -> None:
    op.drop_index("ix_idempotency_keys_filing_id", "idempotency_keys")
    for table in ("outcomes", "shards"):
        op.execute(f"DELETE FROM {table} t USING batches b WHERE b.id = t.filing_id AND b.status = 'deleting'")  # noqa: S608
    op.execute("DELETE FROM batches WHERE status = 'deleting'")
    _take(_STATUSES)
