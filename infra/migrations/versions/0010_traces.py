"""A shard says where its trace began, while that is traced; callback processes may read that of it and no more."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"

_READ = "SELECT (id, filing_id, first_line, traceparent) ON shards"


def upgrade() -> None:
    op.add_column("shards", sa.Column("traceparent", sa.Text()))
    op.execute(f"GRANT {_READ} TO nightcourt_callbacks")


def downgrade() -> None:
    op.execute(f"REVOKE {_READ} FROM nightcourt_callbacks")
    op.drop_column("shards", "traceparent")
