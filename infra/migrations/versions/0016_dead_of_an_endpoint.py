"""What is dead of a receiver is counted without reading what was delivered to it, or what is dead of others."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    op.create_index(
        "ix_callbacks_dead_endpoint",
        "callbacks",
        ["endpoint_id"],
        postgresql_where=sa.text("state = 'dead'"),
        if_not_exists=True,
    )


def downgrade() -> None:
    op.drop_index("ix_callbacks_dead_endpoint", "callbacks")
