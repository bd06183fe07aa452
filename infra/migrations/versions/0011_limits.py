"""What was judged for a tenant today is found without reading what was judged before."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    op.create_index(
        "ix_shards_ended", "shards", ["tenant", "ended_at"], postgresql_where=sa.text("ended_at IS NOT NULL")
    )


def downgrade() -> None:
    op.drop_index("ix_shards_ended", "shards")
