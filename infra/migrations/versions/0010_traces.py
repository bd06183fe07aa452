"""A shard says where its trace began, while that is traced."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.add_column("shards", sa.Column("traceparent", sa.Text()))


def downgrade() -> None:
    op.drop_column("shards", "traceparent")
