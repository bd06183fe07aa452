"""Row-level security by tenant, and a role for each process with the grants that its statements need.

The roles belong to the whole server, so they are made where they are missing and never dropped. Nobody can log in as
one before `nightcourt migrate` is given its password.
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

API, DISPATCHER, WORKER, CALLBACKS = (
    f"nightcourt_{process}" for process in ("api", "dispatcher", "worker", "callbacks")
)
ROLES = (API, DISPATCHER, WORKER, CALLBACKS)

# The worker stores outcomes by COPY, which Postgres refuses wherever a policy would look at the rows. A role that
# bypasses policies is spared that; who may not make one has outcomes go by a table in between (infra/copying.py).
_MAKE_ROLE = """
    DO $$ BEGIN
        CREATE ROLE {role} NOLOGIN NOINHERIT;
    EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
    END $$
"""
_LET_BYPASS = """
    DO $$ BEGIN
        ALTER ROLE {role} BYPASSRLS;
    EXCEPTION WHEN insufficient_privilege THEN NULL;
    END $$
"""

_OF_TENANTS = (
    *("comparisons", "files", "batches", "shards", "outcomes", "idempotency_keys"),
    *("callback_endpoints", "callback_secrets", "callback_requests", "callback_events", "callbacks"),
)
# Tables whose rows hang on a row that has a tenant: what is seen of it decides.
_PARTS = {
    "file_runs": "EXISTS (SELECT FROM files WHERE files.id = file_runs.file_id)",
    "bad_lines": "EXISTS (SELECT FROM files WHERE files.id = bad_lines.file_id)",
    "callback_attempts": "EXISTS (SELECT FROM callbacks WHERE callbacks.id = callback_attempts.callback_id)",
}
# As a subquery, it is asked once a statement and not once a row. Where nobody set it, nothing is equal to it.
_TENANT = "tenant = (SELECT current_setting('nightcourt.tenant', true))"

# What anyone may know of everyone's: how long the lines are, who is at work, and that something was decided. No
# tenant, no contents.
_VIEWS = {
    "queue": """
        SELECT s.id, s.lane, s.state, s.priority, s.due_at, s.released_at, s.attempt, s.lease_owner,
               s.lane = 'interactive' OR b.open AS open
        FROM shards s LEFT JOIN batches b ON b.id = s.filing_id
    """,
    "decided": "SELECT filing_id, line FROM outcomes",
}

_GRANTS = {
    API: {
        "comparisons": "SELECT, INSERT, DELETE",
        "files": "SELECT, INSERT, UPDATE, DELETE",
        "file_runs": "SELECT, INSERT, UPDATE, DELETE",
        "bad_lines": "SELECT, INSERT, DELETE",
        "batches": "SELECT, INSERT, UPDATE",
        "shards": "SELECT, INSERT, UPDATE",
        "outcomes": "SELECT, INSERT, DELETE",
        "idempotency_keys": "SELECT, INSERT",
        "judges": "SELECT",
        "workers": "SELECT",
        # Read before anyone knows whose they are, and so without a policy. They are made on the host, by the owner.
        "keys": "SELECT (id, tenant, hash, scopes, expires_at, revoked_at, requests_per_second, queued_comparisons, "
        "tokens_per_day, concurrent_batches, max_body_bytes)",
        "callback_endpoints": "SELECT, INSERT, UPDATE, DELETE",
        "callback_secrets": "SELECT, INSERT, UPDATE, DELETE",
        "callback_requests": "SELECT, INSERT",
        "callback_events": "SELECT, INSERT",
        "callbacks": "SELECT, INSERT, UPDATE",
        "callback_attempts": "SELECT",
        "queue": "SELECT",
        "decided": "SELECT",
    },
    # It splits and ends shards by the numbers of their lines, and deletes what is old: it never reads a body.
    DISPATCHER: {
        "comparisons": "SELECT (source_id, line, tenant, created_at, ctid), DELETE",
        "files": "SELECT, DELETE",
        "file_runs": "SELECT (file_id, ctid), DELETE",
        "bad_lines": "SELECT (file_id, ctid), DELETE",
        "batches": "SELECT, UPDATE, DELETE",
        "shards": "SELECT, INSERT, UPDATE, DELETE",
        "outcomes": "SELECT, INSERT, DELETE",
        "idempotency_keys": "SELECT (filing_id), DELETE",
        "workers": "SELECT, DELETE",
        "callback_endpoints": "SELECT, UPDATE",
        "callback_requests": "SELECT, DELETE",
        "callback_events": "SELECT, INSERT, UPDATE, DELETE",
        "callbacks": "SELECT, INSERT, UPDATE",
        "callback_attempts": "INSERT",
        "queue": "SELECT",
    },
    WORKER: {
        "comparisons": "SELECT",
        "batches": "SELECT (id, options)",
        "shards": "SELECT, INSERT, UPDATE",
        "outcomes": "SELECT, INSERT",
        "judges": "SELECT, INSERT",
        "workers": "SELECT, INSERT, UPDATE, DELETE",
        "callback_events": "SELECT, INSERT",
    },
    # What is sent says that something ended and not how: nothing of comparisons and verdicts is needed for it.
    CALLBACKS: {
        "callback_endpoints": "SELECT, UPDATE",
        "callback_secrets": "SELECT",
        "callback_events": "SELECT",
        "callbacks": "SELECT, UPDATE",
        "callback_attempts": "INSERT",
    },
}
_TAKE_LEASES = (WORKER, CALLBACKS)


def upgrade() -> None:
    for role in ROLES:
        op.execute(_MAKE_ROLE.format(role=role))
    op.execute(_LET_BYPASS.format(role=WORKER))
    schema = op.get_bind().execute(sa.text("SELECT quote_ident(current_schema())")).scalar_one()
    op.execute(f"GRANT USAGE ON SCHEMA {schema} TO {', '.join(ROLES)}")
    for name, query in _VIEWS.items():
        op.execute(f"CREATE VIEW {name} AS {query}")
    policies = {**dict.fromkeys(_OF_TENANTS, _TENANT), **_PARTS}
    for table, own in policies.items():
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(f"CREATE POLICY own ON {table} TO {API} USING ({own})")
        op.execute(f"CREATE POLICY everyones ON {table} TO {DISPATCHER}, {WORKER}, {CALLBACKS} USING (true)")
    for role, grants in _GRANTS.items():
        for relation, privileges in grants.items():
            op.execute(f"GRANT {privileges} ON {relation} TO {role}")
    op.execute(f"GRANT USAGE ON SEQUENCE lease_tokens TO {', '.join(_TAKE_LEASES)}")


def downgrade() -> None:
    for table in (*_OF_TENANTS, *_PARTS):
        op.execute(f"DROP POLICY own ON {table}")
        op.execute(f"DROP POLICY everyones ON {table}")
        op.execute(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")
    for name in _VIEWS:
        op.execute(f"DROP VIEW {name}")
    for role in ROLES:
        op.execute(f"DROP OWNED BY {role}")
