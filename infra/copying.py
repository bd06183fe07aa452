"""COPY: its text form, with columns between tabs and rows between line feeds, its way in, and its driver's errors.

Postgres takes no COPY into a table whose rows it has to look at one by one. Where row-level security holds for who
copies, rows go into a temporary table first, and on from there by an INSERT that the policies see.
"""

# ruff: noqa: S608 - statements are put together from constants of the code alone

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection

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


class Copying:
    """Rows on their way into some columns of one table."""

    def __init__(self, table: str, columns: str) -> None:
        self._table = table
        between = f"incoming_{table}"
        self._straight = f"COPY {table} ({columns}) FROM STDIN"
        self._walled = text(f"SELECT row_security_active('{table}')")
        # It stays for as long as the connection does, and its rows for a transaction.
        self._make = f"""
            CREATE TEMPORARY TABLE IF NOT EXISTS {between} ON COMMIT DELETE ROWS
            AS SELECT {columns} FROM {table} WITH NO DATA
        """
        self._aside = f"COPY {between} ({columns}) FROM STDIN"
        self._on = f"INSERT INTO {table} ({columns}) SELECT {columns} FROM {between}"

    def _is_walled(self, connection: Connection) -> bool:
        # A connection has one role all its life.
        known = connection.info.setdefault("walled", {})
        if self._table not in known:
            known[self._table] = connection.execute(self._walled).scalar_one()
        return bool(known[self._table])

    def store(self, connection: Connection, rows: bytes) -> None:
        """Store rows in COPY's text form, once in a transaction.

        Raises:
            sqlalchemy.exc.OperationalError: Postgres went away.
            sqlalchemy.exc.DBAPIError: Postgres refused them.
        """
        walled = self._is_walled(connection)
        driver: Any = connection.connection.driver_connection
        with sqlalchemy_errors(self._table), driver.cursor() as cursor:
            if walled:
                cursor.execute(self._make)
            with cursor.copy(self._aside if walled else self._straight) as copy:
                copy.write(rows)
            if walled:
                cursor.execute(self._on)

    async def store_async(self, connection: AsyncConnection, rows: bytes | bytearray) -> None:
        """Store rows; see `store`."""
        walled = await connection.run_sync(self._is_walled)
        driver: Any = (await connection.get_raw_connection()).driver_connection
        with sqlalchemy_errors(self._table):
            async with driver.cursor() as cursor:
                if walled:
                    await cursor.execute(self._make)
                async with cursor.copy(self._aside if walled else self._straight) as copy:
                    await copy.write(rows)
                if walled:
                    await cursor.execute(self._on)
