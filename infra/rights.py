"""Who may do what in Postgres: a role for each process, its grants, and the walls between tenants.

All of it stands here, and every run of `nightcourt migrate` brings Postgres to it. Roles belong to the whole server and
no dump of a database holds them, so that grants and policies, which name them, are missing from one that was restored.
Migrations name none of it; one that changes a policy drops it, and it is made anew from here.
"""

from collections.abc import Mapping

from sqlalchemy import Connection, text

from infra.roles import PROCESSES, role_of

_API, _DISPATCHER, _WORKER, _CALLBACKS = _ROLES = tuple(role_of(process) for process in PROCESSES)
_ALL = ", ".join(_ROLES)

# Nobody can log in as one before `nightcourt migrate` is given its password. Another database's migration may make it
# at the same moment.
_MAKE_ROLE = """
    DO $$ BEGIN
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}') THEN
            CREATE ROLE {role} NOLOGIN NOINHERIT;
        END IF;
    EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
    END $$
"""
# The worker stores outcomes by COPY, which Postgres refuses wherever a policy would look at the rows. A role that
# bypasses policies is spared that; who may not make one has outcomes go by a table in between (infra/copying.py).
_LET_BYPASS = """
    DO $$ BEGIN
        IF NOT (SELECT rolbypassrls FROM pg_roles WHERE rolname = '{role}') THEN
            ALTER ROLE {role} BYPASSRLS;
        END IF;
    EXCEPTION WHEN insufficient_privilege THEN NULL;
    END $$
"""

# As a subquery, it is asked once a statement and not once a row. Where nobody set it, nothing is equal to it.
# Behind a policy Postgres looks rows up only by conditions that it knows to leak nothing: what else a statement of the
# API compares a column with has to be a subquery, too, or the whole table is read: tests/integration/test_rows_read.py
_TENANT = "tenant = (SELECT current_setting('nightcourt.tenant', true))"
# Asked once a statement, of a table with few rows: nothing is filed for a tenant that was purged.
_ALIVE = "NOT EXISTS (SELECT FROM tombstones WHERE tombstones.tenant = current_setting('nightcourt.tenant', true))"
_OF_TENANTS = (
    *("comparisons", "files", "batches", "shards", "outcomes", "idempotency_keys"),
    *("callback_endpoints", "callback_secrets", "callback_requests", "callback_events", "callbacks"),
)
_OWN = {
    **dict.fromkeys(_OF_TENANTS, f"USING ({_TENANT}) WITH CHECK ({_TENANT} AND {_ALIVE})"),
    # Rows that hang on a row that has a tenant: what is seen of it decides.
    "file_runs": "USING (EXISTS (SELECT FROM files WHERE files.id = file_runs.file_id))",
    "bad_lines": "USING (EXISTS (SELECT FROM files WHERE files.id = bad_lines.file_id))",
    "callback_attempts": ("USING (EXISTS (SELECT FROM callbacks WHERE callbacks.id = callback_attempts.callback_id))"),
}
_POLICIES = {
    "own": {table: f"TO {_API} {own}" for table, own in _OWN.items()},
    "everyones": dict.fromkeys(_OWN, f"TO {_DISPATCHER}, {_WORKER}, {_CALLBACKS} USING (true)"),
}

_GRANTS: Mapping[str, Mapping[str, str]] = {
    _API: {
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
        # Read before anyone knows whose they are, and so without a policy. Keys are made on the host, by the owner.
        "keys": "SELECT (id, tenant, hash, scopes, expires_at, revoked_at, requests_per_second, queued_comparisons, "
        "tokens_per_day, concurrent_batches, max_body_bytes)",
        "sessions": "SELECT, INSERT, DELETE",
        "tombstones": "SELECT (tenant)",
        "callback_endpoints": "SELECT, INSERT, UPDATE, DELETE",
        "callback_secrets": "SELECT, INSERT, UPDATE, DELETE",
        "callback_requests": "SELECT, INSERT",
        "callback_events": "SELECT, INSERT",
        "callbacks": "SELECT, INSERT, UPDATE, DELETE",
        "callback_attempts": "SELECT",
        "queue": "SELECT",
        "decided": "SELECT",
    },
    # It splits and ends shards by the numbers of their lines, and deletes what is old: it never reads a body. It takes
    # a file back from whoever would make a batch of it before it deletes it.
    _DISPATCHER: {
        "comparisons": "SELECT (source_id, line, tenant, ctid), DELETE",
        "files": "SELECT, UPDATE (state), DELETE",
        "file_runs": "SELECT (file_id, ctid), DELETE",
        "bad_lines": "SELECT (file_id, ctid), DELETE",
        "batches": "SELECT, UPDATE, DELETE",
        "shards": "SELECT, INSERT, UPDATE, DELETE",
        "outcomes": "SELECT, INSERT, DELETE",
        "idempotency_keys": "SELECT (filing_id), DELETE",
        "workers": "SELECT, DELETE",
        "callback_endpoints": "SELECT, UPDATE, DELETE",
        "callback_requests": "SELECT, DELETE",
        "callback_events": "SELECT, INSERT, UPDATE, DELETE",
        "callbacks": "SELECT, INSERT, UPDATE",
        "callback_attempts": "INSERT",
        "queue": "SELECT",
    },
    _WORKER: {
        "comparisons": "SELECT",
        "batches": "SELECT (id, options)",
        "shards": "SELECT, INSERT, UPDATE",
        "outcomes": "SELECT, INSERT",
        "judges": "SELECT, INSERT",
        "workers": "SELECT, INSERT, UPDATE, DELETE",
        "callback_events": "SELECT, INSERT",
        "lease_tokens": "USAGE",
    },
    # What is sent says that something ended and not how: nothing of comparisons and verdicts is needed for it.
    _CALLBACKS: {
        "shards": "SELECT (id, filing_id, first_line, traceparent)",
        "callback_endpoints": "SELECT, UPDATE",
        "callback_secrets": "SELECT",
        "callback_events": "SELECT",
        "callbacks": "SELECT, UPDATE",
        "callback_attempts": "INSERT",
        "lease_tokens": "USAGE",
    },
}
# Each process waits for the tables of its release (`infra/database.py`).
_GRANTS = {role: {**grants, "alembic_version": "SELECT"} for role, grants in _GRANTS.items()}

_EXISTING_POLICIES = text("SELECT tablename, policyname FROM pg_policies WHERE schemaname = current_schema()")
_WALLED = text("SELECT relname FROM pg_class WHERE relrowsecurity AND relnamespace = current_schema()::regnamespace")


def settle(connection: Connection) -> None:
    """Make the roles that the server lacks, give each the rights that stand above and no other, put up missing walls.

    Walls that stand are left alone: making one locks its table, which would wait for whatever runs on it.

    Args:
        connection: in a transaction of the owner's, on migrated tables.

    Raises:
        sqlalchemy.exc.ProgrammingError: a role is missing, and the owner may not make roles.
    """
    for role in _ROLES:
        connection.exec_driver_sql(_MAKE_ROLE.format(role=role))
    connection.exec_driver_sql(_LET_BYPASS.format(role=_WORKER))
    schema = connection.execute(text("SELECT quote_ident(current_schema())")).scalar_one()
    statements = [f"GRANT USAGE ON SCHEMA {schema} TO {_ALL}"]
    for relation in dict.fromkeys(name for grants in _GRANTS.values() for name in grants):
        kind = _kind(relation)
        statements.append(f"REVOKE ALL ON {kind} {relation} FROM {_ALL}")
        statements += [
            f"GRANT {own[relation]} ON {kind} {relation} TO {role}" for role, own in _GRANTS.items() if relation in own
        ]
    walled = set(connection.execute(_WALLED).scalars())
    statements += [f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY" for table in _OWN if table not in walled]
    there = {tuple(row) for row in connection.execute(_EXISTING_POLICIES)}
    for policy, tables in _POLICIES.items():
        statements += [
            f"CREATE POLICY {policy} ON {table} {terms}"
            for table, terms in tables.items()
            if (table, policy) not in there
        ]
    connection.exec_driver_sql("; ".join(statements))


def _kind(relation: str) -> str:
    return "SEQUENCE" if relation == "lease_tokens" else "TABLE"
