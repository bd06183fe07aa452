"""What waits is found by tenant, so that each has its turn however much another has waiting."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

_WAITING = sa.text("state = 'waiting'")


def upgrade() -> None:
    op.drop_index("ix_shards_waiting", "shards")
    op.create_index(
        "ix_shards_waiting",
        "shards",
        ["lane", "tenant", sa.text("priority DESC"), "due_at", "id"],
        postgresql_where=_WAITING,
    )


def downgrade() -> None:
    op.drop_index("ix_shards_waiting", "shards")
    op.create_index(
        "ix_shards_waiting", "shards", ["lane", sa.text("priority DESC"), "due_at", "id"], postgresql_where=_WAITING
    )
