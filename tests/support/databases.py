"""Databases for tests: copies of one that has all tables, each for as long as it is wanted."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine, create_engine, text
from sqlalchemy.engine import make_url

from infra.local.postgres import Postgres
from support.canaries import watch_errors


@contextmanager
def own_database(postgres: Postgres, template: str) -> Iterator[str]:
    """Lend the URL of a database of the test's own, until the block ends."""
    name = f"test_{uuid.uuid4().hex}"
    admin = _admin(postgres.url)
    with admin.connect() as connection:
        connection.execute(text(f'CREATE DATABASE "{name}" TEMPLATE "{template}"'))
    url = make_url(postgres.url).set(database=name).render_as_string(hide_password=False)
    yield url
    watch_errors(url)
    with admin.connect() as connection:
        connection.execute(text(f'DROP DATABASE "{name}" WITH (FORCE)'))
    admin.dispose()


def _admin(url: str) -> Engine:
    address = make_url(url).set(drivername="postgresql+psycopg", database="postgres")
    return create_engine(address, isolation_level="AUTOCOMMIT")


@contextmanager
def away(url: str) -> Iterator[None]:
    """Put an end to every connection to a database, and let in nobody until the block ends."""
    name = make_url(url).database
    admin = _admin(url)
    with admin.connect() as connection:
        connection.execute(text(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false'))
        end = text("SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = :name")
        connection.execute(end, {"name": name})
        try:
            yield
        finally:
            connection.execute(text(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true'))
    admin.dispose()
