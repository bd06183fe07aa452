"""What is left of a tenant that was purged, and the wall that keeps anything more from being filed for it."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"

_TENANTS = (
    *("comparisons", "files", "batches", "shards", "outcomes", "idempotency_keys"),
    *("callback_endpoints", "callback_secrets", "callback_requests", "callback_events", "callbacks"),
)
_OWN = "tenant = (SELECT current_setting('nightcourt.tenant', true))"
# Asked once a statement, of a table with few rows.
_ALIVE = "NOT EXISTS (SELECT FROM tombstones WHERE tombstones.tenant = current_setting('nightcourt.tenant', true))"


def upgrade() -> None:
    op.create_table(
        "tombstones",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("purged_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("tenant", name=op.f("pk_tombstones")),
    )
    op.execute("GRANT SELECT (tenant) ON tombstones TO nightcourt_api")
    for table in _TENANTS:
        op.execute(f"ALTER POLICY own ON {table} USING ({_OWN}) WITH CHECK ({_OWN} AND {_ALIVE})")


def downgrade() -> None:
    for table in _TENANTS:
        op.execute(f"ALTER POLICY own ON {table} USING ({_OWN}) WITH CHECK ({_OWN})")
    op.drop_table("tombstones")
