"""How many receivers a tenant's requests named lately is counted without reading those of before."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    op.create_index(
        "ix_callback_endpoints_named",
        "callback_endpoints",
        ["tenant", "created_at"],
        postgresql_where=sa.text("NOT registered"),
    )


def downgrade() -> None:
    op.drop_index("ix_callback_endpoints_named", "callback_endpoints")
