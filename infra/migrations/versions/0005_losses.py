"""A shard keeps count of the workers that were lost over it, and notes the line that is alone in the engine."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("shards", sa.Column("at_work", sa.Integer()))
    op.add_column("shards", sa.Column("losses", ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False))
    op.create_check_constraint("at_work", "shards", "at_work IS NULL OR state = 'running'")


def downgrade() -> None:
    op.drop_column("shards", "losses")
    op.drop_column("shards", "at_work")
