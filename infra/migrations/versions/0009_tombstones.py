"""What is left of a tenant that was purged: nothing more is filed for it (`infra/rights.py`)."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.create_table(
        "tombstones",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("purged_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("tenant", name=op.f("pk_tombstones")),
    )


def downgrade() -> None:
    # With the walls that look into it: what is without its wall, nobody sees.
    op.execute("DROP TABLE tombstones CASCADE")
