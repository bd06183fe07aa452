"""Events that are to be told are found by tenant, so that each has its turn however much another has to tell."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"

_INDEX = "ix_callback_events_fresh"
_FRESH = sa.text("NOT fanned_out")


def upgrade() -> None:
    op.drop_index(_INDEX, "callback_events")
    op.create_index(_INDEX, "callback_events", ["tenant", "id"], postgresql_where=_FRESH)


def downgrade() -> None:
    op.drop_index(_INDEX, "callback_events")
    op.create_index(_INDEX, "callback_events", ["id"], postgresql_where=_FRESH)
