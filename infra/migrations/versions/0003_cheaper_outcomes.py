"""Outcomes are stored by COPY: no foreign key to look up for each, an index on the digest alone. Batches keep samples of
their progress."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0003"
down_revision = "0002"

_DIGEST = "ix_outcomes_digest"
_FOREIGN_KEY = "fk_outcomes_judge_id"


def upgrade() -> None:
    op.drop_constraint(_FOREIGN_KEY, "outcomes", type_="foreignkey")
    op.drop_index(_DIGEST, "outcomes")
    op.create_index(_DIGEST, "outcomes", ["digest"], postgresql_where=sa.text("digest IS NOT NULL"))
    op.add_column("batches", sa.Column("samples", JSONB(), server_default=sa.text("'[]'"), nullable=False))


def downgrade() -> None:
    op.drop_column("batches", "samples")
    op.drop_index(_DIGEST, "outcomes")
    op.create_index(_DIGEST, "outcomes", ["digest", "judge_id"], postgresql_where=sa.text("digest IS NOT NULL"))
    op.create_foreign_key(_FOREIGN_KEY, "outcomes", "judges", ["judge_id"], ["id"])
