"""Bringing the tables to the newest form. Alembic is loaded here alone: no process needs it that does not migrate."""

from collections.abc import Mapping

import structlog
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import text

from infra import callback_secrets, rights, roles
from infra.database import MIGRATIONS, connect, newest_revision
from infra.sealing import Seals
from schemas.base import Base
from schemas.problems import UNAVAILABLE, Problem

log = structlog.get_logger()

_MIGRATION_LOCK = 0x6E636F7572740001
"""An advisory lock of our own: two migrations started together run one after the other."""

# One that was made beforehand, and failed, bears the name that a migration looks for.
_BROKEN = text("""
    SELECT string_agg(c.relname, ', ') FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
    WHERE NOT i.indisvalid AND c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = current_schema())
        AND c.relname = ANY(:ours)
""")


def migrate(url: str, passwords: Mapping[str, str] | None = None, seals: Seals | None = None) -> None:
    """Bring the tables to the newest revision, and who may do what with them. Safe to run again, by several too.

    Those of a later release stay as they are: they serve this one too, which knows neither them nor what they allow.

    Args:
        url: Postgres, by the login that owns the tables.
        passwords: by process, what it may log in by from now on (`infra/roles.py`).
        seals: what secrets are sealed by that are not yet, or by an earlier key. A lost key keeps nothing from being
            migrated: what no key opens stays as it is, and the log says so.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: Postgres could not be reached, or a step failed; then nothing changed.
        Problem: there is an index that is not whole; then nothing changed either.
    """
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    # An index takes as long as it takes.
    engine = connect(url, application="migrate", pool_size=1, statement_seconds=0)
    try:
        with engine.begin() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK})
            heads = MigrationContext.configure(connection).get_current_heads()
            if (revision := max(heads, default="")) > newest_revision():
                log.warning("tables_of_a_later_release", revision=revision, known=newest_revision())
                return
            ours = [index.name for table in Base.metadata.tables.values() for index in table.indexes]
            if revision < newest_revision() and (broken := connection.execute(_BROKEN, {"ours": ours}).scalar()):
                raise Problem(
                    UNAVAILABLE,
                    f"Not migrated: the CREATE INDEX CONCURRENTLY of {broken} failed, or is still under way. Wait for "
                    "it, or drop the index and make it again.",
                )
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            rights.settle(connection)
            roles.let_in(connection, passwords or {})
            closed = callback_secrets.seal_all(connection, seals) if seals else {}
    finally:
        engine.dispose()
    for why, count in closed.items():
        log.error("callback_secrets_not_opened", secrets=count, why=why)
