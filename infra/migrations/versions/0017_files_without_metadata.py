"""Of files whose lines have no metadata the lines are not searched for it when results are read."""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    op.add_column("files", sa.Column("has_metadata", sa.Boolean(), server_default=sa.true(), nullable=False))


def downgrade() -> None:
    op.drop_column("files", "has_metadata")
