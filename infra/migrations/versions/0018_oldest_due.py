"""The oldest interactive shard that is due is found at once: each probe of an API asks for it, however much waits."""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"


def upgrade() -> None:
    op.create_index(
        "ix_shards_oldest",
        "shards",
        ["due_at"],
        postgresql_where=sa.text("lane = 'interactive' AND state = 'waiting'"),
        if_not_exists=True,
    )


def downgrade() -> None:
    op.drop_index("ix_shards_oldest", "shards")
