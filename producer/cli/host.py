"""What commands share that work on the host, straight in the database, and spans of time on the command line."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated
from uuid import UUID

import typer
from sqlalchemy import Engine as Database
from sqlalchemy.exc import SQLAlchemyError

from infra import settings
from infra.database import connect
from infra.environment import forget_libpq
from infra.local.folder import running_stack
from schemas import ids
from schemas.problems import UNAVAILABLE, Problem

DataDir = Annotated[Path | None, typer.Option(help="Data folder of the embedded stack to use.")]

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@contextmanager
def records(data_dir: Path | None, *, application: str, statement_seconds: int = 30) -> Iterator[Database]:
    """Lend the database: the embedded stack's where one runs, else what the settings name.

    Raises:
        Problem: it cannot be reached, or refuses.
    """
    chosen = settings.load(data_dir=data_dir)
    stack = running_stack(chosen.data_dir)
    if stack is not None:
        forget_libpq()
    url = stack.database_url if stack else chosen.database_url.get_secret_value()
    database = connect(url, application=application, statement_seconds=statement_seconds)
    try:
        yield database
    except SQLAlchemyError as error:
        raise Problem(
            UNAVAILABLE,
            f"The database cannot be used ({type(error).__name__}). Is NIGHTCOURT_DATABASE_URL right, is Postgres "
            "there, and has `nightcourt migrate` run?",
        ) from None
    finally:
        database.dispose()


def id_of(text: str, prefix: str, option: str | None = None) -> UUID:
    """Understand an id as it is typed; a callback needs not say what the option is called."""
    found = ids.parse_prefixed(text, prefix)
    if found is None:
        raise typer.BadParameter(f"looks like {prefix} and 32 hexadecimal digits; this is none", param_hint=option)
    return found


def id_like(prefix: str) -> Callable[[str | None], str | None]:
    """Make the callback of an option or argument that takes an id, so that it is told by the name it has there."""

    def check(value: str | None) -> str | None:
        if value is not None:
            id_of(value, prefix)
        return value

    return check


def span(text: str, option: str) -> float:
    """Understand a span of time, such as 90s or 7d, as seconds."""
    match = re.fullmatch(r"(\d{1,6})([smhd])", text)
    if match is None:
        raise typer.BadParameter("takes a span of time: 90s, 30m, 12h, 7d", param_hint=option)
    return float(int(match[1]) * _UNITS[match[2]])
