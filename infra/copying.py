"""COPY: its binary form, its way in, and its driver's errors.

A row is the number of its columns, and of each its length and its bytes: nothing has to be escaped, or looked for.
(https://www.postgresql.org/docs/current/sql-copy.html, "Binary Format")

Postgres converts nothing: a column has to be given in the very type that it has.

Postgres takes no COPY into a table whose rows it has to look at one by one. Where row-level security holds for who
copies, rows go into a temporary table first, and on from there by an INSERT that the policies see.
"""

# ruff: noqa: S608 - statements are put together from constants of the code alone

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import psycopg
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection

_BEGINNING = b"PGCOPY\n\xff\r\n\0" + bytes(8)  # no flags, no extension
_END = b"\xff\xff"
NULL = b"\xff\xff\xff\xff"
TRUE, FALSE = b"\0\0\0\1\1", b"\0\0\0\1\0"
_NUMBER = struct.Struct(">id")


def octets(value: bytes) -> bytes:
    """Give a column of bytes, or of a text's or JSON's in UTF-8."""
    return len(value).to_bytes(4) + value


def string(value: str | None) -> bytes:
    """Give a column of text or JSON."""
    return NULL if value is None else octets(value.encode())


def integer(value: int) -> bytes:
    """Give a column of the type integer.

    Raises:
        OverflowError: it has more than 32 bits.
    """
    return b"\0\0\0\4" + value.to_bytes(4, signed=True)


def number(value: float) -> bytes:
    """Give a column of the type double precision."""
    return _NUMBER.pack(8, value)


def key(value: UUID) -> bytes:
    """Give a column of the type uuid."""
    return octets(value.bytes)


def packed(*columns: bytes) -> bytes:
    """Put columns together, in the order in which `Copying` was told of them."""
    return len(columns).to_bytes(2) + b"".join(columns)


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
        self._straight = f"COPY {table} ({columns}) FROM STDIN (FORMAT binary)"
        self._walled = text(f"SELECT row_security_active('{table}')")
        # It stays for as long as the connection does, and its rows for a transaction.
        self._make = f"""
            CREATE TEMPORARY TABLE IF NOT EXISTS {between} ON COMMIT DELETE ROWS
            AS SELECT {columns} FROM {table} WITH NO DATA
        """
        self._aside = f"COPY {between} ({columns}) FROM STDIN (FORMAT binary)"
        self._on = f"INSERT INTO {table} ({columns}) SELECT {columns} FROM {between}"

    def _is_walled(self, connection: Connection) -> bool:
        # A connection has one role all its life.
        known = connection.info.setdefault("walled", {})
        if self._table not in known:
            known[self._table] = connection.execute(self._walled).scalar_one()
        return bool(known[self._table])

    def store(self, connection: Connection, rows: bytes | bytearray) -> None:
        """Store rows, once in a transaction.

        Args:
            connection: in a transaction.
            rows: what `packed` gives, one after the other.

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
                for part in (_BEGINNING, rows, _END):
                    copy.write(part)
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
                    for part in (_BEGINNING, rows, _END):
                        await copy.write(part)
                if walled:
                    await cursor.execute(self._on)
