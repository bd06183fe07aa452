"""`nightcourt migrate`."""

from pathlib import Path

import structlog
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from infra import logs, migrating, settings
from infra.database import connect, reason_or_kind
from infra.local.folder import write_private
from producer import keys
from schemas.keys import Scope
from schemas.problems import BAD_SETTING, UNAVAILABLE, Problem

log = structlog.get_logger()

_NOT_ALLOWED = "42501"


def migrate() -> None:
    """Bring the tables to the newest revision, and who may do what with them. Safe to run again.

    Example: NIGHTCOURT_DATABASE_URL=postgresql://... nightcourt migrate
    """
    chosen = settings.load()
    logs.configure(process="migrate", level=chosen.log_level, style=chosen.log_format)
    try:
        migrating.migrate(chosen.database_url.get_secret_value(), chosen.passwords(), chosen.seals())
        if chosen.first_key_file is not None:
            _keep_a_key(chosen.database_url.get_secret_value(), chosen.first_key_file)
    except SQLAlchemyError as error:
        if "database_url" not in chosen.model_fields_set:
            raise Problem(
                BAD_SETTING,
                "NIGHTCOURT_DATABASE_URL is not set, and no Postgres takes us where it is looked for then. The "
                "embedded stack needs no migrating by hand: `nightcourt up` migrates its own tables.",
            ) from None
        if isinstance(error, DBAPIError) and getattr(error.orig, "sqlstate", None) == _NOT_ALLOWED:
            raise Problem(
                BAD_SETTING,
                f"NIGHTCOURT_DATABASE_URL: its login may not do what migrating takes ({error.orig}). It has to own the "
                "tables, and to be allowed to make roles and change them (CREATEROLE).",
            ) from None
        raise Problem(
            UNAVAILABLE,
            f"The tables could not be migrated ({reason_or_kind(error)}). Is NIGHTCOURT_DATABASE_URL right, and is "
            "Postgres there?",
        ) from None
    except OSError as error:
        raise Problem(BAD_SETTING, f"NIGHTCOURT_FIRST_KEY_FILE: {chosen.first_key_file}: {error.strerror}.") from None
    log.info("migrated")


def _keep_a_key(url: str, file: Path) -> None:
    """Make sure that a file holds a key that is good: whoever can read it needs nobody to make them one."""
    database = connect(url, application="migrate", pool_size=1)
    try:
        with database.begin() as connection:
            if file.exists() and keys.find(connection, file.read_text().strip()):
                return
            try:
                made = keys.create(connection, tenant=keys.FIRST_TENANT, scopes=[Scope.ADMIN], name="first")
            except Problem as problem:  # the tenant was purged: the service runs, for the keys of others
                log.warning("first_key_not_made", code=problem.kind.code)
                return
            write_private(file, made.key + "\n")
            log.info("first_key_made", key=made.id)
    finally:
        database.dispose()
