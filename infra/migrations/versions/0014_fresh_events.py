"""Events that are to be told are found by tenant, so that each has its turn however much another has to tell."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"

_FRESH = sa.text("NOT fanned_out")


def upgrade() -> None:
    op.create_index(
        "ix_callback_events_untold", "callback_events", ["tenant", "id"], postgresql_where=_FRESH, if_not_exists=True
    )
    op.drop_index("ix_callback_events_fresh", "callback_events")


def downgrade() -> None:
    op.create_index(
        "ix_callback_events_fresh", "callback_events", ["id"], postgresql_where=_FRESH, if_not_exists=True
    )
    op.drop_index("ix_callback_events_untold", "callback_events")
