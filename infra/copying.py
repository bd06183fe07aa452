"""COPY: its text form, with columns between tabs and rows between line feeds, and the errors of its driver."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from sqlalchemy.exc import DBAPIError, OperationalError

_ESCAPES = ((b"\\", b"\\\\"), (b"\t", b"\\t"), (b"\r", b"\\r"), (b"\n", b"\\n"))


def escape(value: bytes) -> bytes:
    """Escape a column's text."""
    for plain, escaped in _ESCAPES:
        value = value.replace(plain, escaped)
    return value


def column(value: str | None) -> bytes:
    """Give a column's text, or the mark of its absence."""
    return b"\\N" if value is None else escape(value.encode())


@contextmanager
def sqlalchemy_errors(what: str) -> Iterator[None]:
    """Raise what the driver raises within a COPY as SQLAlchemy's own, which it passes by and callers know.

    Args:
        what: what is copied, for the message.

    Raises:
        sqlalchemy.exc.OperationalError: Postgres went away.
        sqlalchemy.exc.DBAPIError: Postgres refused the rows.
    """
    try:
        yield
    except psycopg.Error as error:
        gone = isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
        raise (OperationalError if gone else DBAPIError)(f"COPY {what}", None, error, hide_parameters=True) from error
