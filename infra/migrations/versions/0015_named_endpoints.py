"""How many receivers a tenant's requests named lately that take nothing is counted without reading the others."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    op.create_index(
        "ix_callback_endpoints_unproven",
        "callback_endpoints",
        ["tenant", "created_at"],
        postgresql_where=sa.text("NOT registered AND (succeeded_at IS NULL OR failures > 0)"),
        if_not_exists=True,
    )


def downgrade() -> None:
    op.drop_index("ix_callback_endpoints_unproven", "callback_endpoints")
