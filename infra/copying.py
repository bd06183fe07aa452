"""COPY in its binary format: making rows, storing them, and raising the driver's errors as SQLAlchemy's.

A row is the number of its columns, and of each its length and its bytes, so nothing has to be escaped.
(https://www.postgresql.org/docs/current/sql-copy.html, "Binary Format")

Postgres converts nothing: each value has to be of its column's very type.

Postgres refuses COPY into a table whose row-level security applies to the role that copies. For such a role rows are
copied into a temporary table, and an INSERT, which the policies check, moves them from there.
"""

# ruff: noqa: S608 - statements are put together from constants of the code alone

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import psycopg
from psycopg.errors import ReadOnlySqlTransaction
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection

_BEGINNING = b"PGCOPY\n\xff\r\n\0" + bytes(8)  # no flags, no extension
_END = b"\xff\xff"
NULL = b"\xff\xff\xff\xff"
TRUE, FALSE = b"\0\0\0\1\1", b"\0\0\0\1\0"
_INTEGER, _NUMBER = struct.Struct(">ii"), struct.Struct(">id")


def octets(value: bytes) -> bytes:
    """Give a column of bytes, or of a text's or JSON's in UTF-8."""
    return len(value).to_bytes(4) + value


def string(value: str | None) -> bytes:
    """Give a column of text or JSON."""
    return NULL if value is None else octets(value.encode())


def integer(value: int) -> bytes:
    """Give a column of the type integer.

    Raises:
        struct.error: it has more than 32 bits.
    """
    return _INTEGER.pack(4, value)


def number(value: float) -> bytes:
    """Give a column of the type double precision."""
    return _NUMBER.pack(8, value)


def key(value: UUID) -> bytes:
    """Give a column of the type uuid."""
    return octets(value.bytes)


def packed(*columns: bytes) -> bytes:
    """Make a row of columns, in the order in which they were given to `Copying`."""
    return len(columns).to_bytes(2) + b"".join(columns)


@contextmanager
def sqlalchemy_errors(what: str) -> Iterator[None]:
    """Raise the driver's errors as SQLAlchemy's, which callers expect: a COPY goes to the driver past SQLAlchemy.

    Args:
        what: what is copied, for the message.

    Raises:
        sqlalchemy.exc.OperationalError: Postgres went away, or takes no writes, which counts as away.
        sqlalchemy.exc.DBAPIError: Postgres refused the rows.
    """
    try:
        yield
    except psycopg.Error as error:
        gone = isinstance(error, psycopg.OperationalError | psycopg.InterfaceError | ReadOnlySqlTransaction)
        raise (OperationalError if gone else DBAPIError)(f"COPY {what}", None, error, hide_parameters=True) from error


class Copying:
    """Copies rows into some columns of one table."""

    def __init__(self, table: str, columns: str) -> None:
        self._table = table
        staging = f"incoming_{table}"
        self._copy = f"COPY {table} ({columns}) FROM STDIN (FORMAT binary)"
        self._secured = text(f"SELECT row_security_active('{table}')")
        # The temporary table lives as long as the connection, its rows as long as the transaction.
        self._make_staging = f"""
            CREATE TEMPORARY TABLE IF NOT EXISTS {staging} ON COMMIT DELETE ROWS
            AS SELECT {columns} FROM {table} WITH NO DATA
        """
        self._copy_to_staging = f"COPY {staging} ({columns}) FROM STDIN (FORMAT binary)"
        self._insert_from_staging = f"INSERT INTO {table} ({columns}) SELECT {columns} FROM {staging}"

    def _is_secured(self, connection: Connection) -> bool:
        # Asked once for each connection, as its role never changes.
        known = connection.info.setdefault("secured", {})
        if self._table not in known:
            known[self._table] = connection.execute(self._secured).scalar_one()
        return bool(known[self._table])

    def store(self, connection: Connection, rows: bytes | bytearray) -> None:
        """Store rows, once in a transaction.

        Args:
            connection: in a transaction.
            rows: what `packed` gives, one after the other.

        Raises:
            sqlalchemy.exc.OperationalError: Postgres went away, or takes no writes.
            sqlalchemy.exc.DBAPIError: Postgres refused them.
        """
        secured = self._is_secured(connection)
        driver: Any = connection.connection.driver_connection
        try:
            with sqlalchemy_errors(self._table), driver.cursor() as cursor:
                if secured:
                    cursor.execute(self._make_staging)
                with cursor.copy(self._copy_to_staging if secured else self._copy) as copy:
                    for part in (_BEGINNING, rows, _END):
                        copy.write(part)
                if secured:
                    cursor.execute(self._insert_from_staging)
        except OperationalError:  # whoever comes next connects anew, and may find a server that takes writes
            connection.invalidate()
            raise

    async def store_async(self, connection: AsyncConnection, rows: bytes | bytearray) -> None:
        """Store rows; see `store`."""
        secured = await connection.run_sync(self._is_secured)
        driver: Any = (await connection.get_raw_connection()).driver_connection
        try:
            with sqlalchemy_errors(self._table):
                async with driver.cursor() as cursor:
                    if secured:
                        await cursor.execute(self._make_staging)
                    async with cursor.copy(self._copy_to_staging if secured else self._copy) as copy:
                        for part in (_BEGINNING, rows, _END):
                            await copy.write(part)
                    if secured:
                        await cursor.execute(self._insert_from_staging)
        except OperationalError:  # as above
            await connection.invalidate()
            raise
