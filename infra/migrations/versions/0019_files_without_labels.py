"""Of files whose lines say nowhere which response is the better the lines are not read for it with the results."""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"


def upgrade() -> None:
    op.add_column("files", sa.Column("has_labels", sa.Boolean(), server_default=sa.true(), nullable=False))


def downgrade() -> None:
    op.drop_column("files", "has_labels")
