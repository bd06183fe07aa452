"""The database, for commands that run on the service's host and use it directly."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Engine as Database
from sqlalchemy.exc import SQLAlchemyError

from infra import settings
from infra.database import STATEMENT_SECONDS, connect, reason_or_kind
from infra.environment import forget_libpq
from infra.local.folder import running_stack
from producer.cli.options import no_stack
from schemas.problems import UNAVAILABLE, Problem


@contextmanager
def open_database(
    data_dir: Path | None, *, application: str, statement_seconds: int = STATEMENT_SECONDS
) -> Iterator[Database]:
    """Lend the database: the embedded stack's where one runs, else what the settings name.

    Raises:
        Problem: it cannot be reached, or refuses; or no stack runs on the folder that an option names.
    """
    chosen = settings.load(data_dir=data_dir)
    stack = running_stack(chosen.data_dir)
    if stack is not None:
        forget_libpq()
    elif chosen.data_dir is not None and (data_dir is not None or "database_url" not in chosen.model_fields_set):
        raise no_stack(chosen.data_dir)
    url = stack.database_url if stack else chosen.database_url.get_secret_value()
    database = connect(url, application=application, statement_seconds=statement_seconds)
    try:
        yield database
    except SQLAlchemyError as error:
        raise Problem(
            UNAVAILABLE,
            f"The database cannot be used ({reason_or_kind(error)}). Is NIGHTCOURT_DATABASE_URL right, is Postgres "
            "there, and has `nightcourt migrate` run?",
        ) from None
    finally:
        database.dispose()
