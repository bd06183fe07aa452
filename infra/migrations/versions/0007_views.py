"""What anyone may know of everyone's: how long the lines are, who is at work, and that something was decided.

No tenant, no contents. Who may read what else is no migration's matter: `infra/rights.py` has it, whole.
"""

from alembic import op

revision = "0007"
down_revision = "0006"

_VIEWS = {
    "queue": """
        SELECT s.id, s.lane, s.state, s.priority, s.due_at, s.released_at, s.attempt, s.lease_owner,
               s.lane = 'interactive' OR b.open AS open
        FROM shards s LEFT JOIN batches b ON b.id = s.filing_id
    """,
    "decided": "SELECT filing_id, line FROM outcomes",
}


def upgrade() -> None:
    for name, query in _VIEWS.items():
        op.execute(f"CREATE VIEW {name} AS {query}")


def downgrade() -> None:
    for name in _VIEWS:
        op.execute(f"DROP VIEW {name}")
