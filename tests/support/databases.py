"""Databases for tests: copies of one that has all tables, each for as long as it is wanted."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

from infra.local.postgres import Postgres
from support.canaries import watch_errors


@contextmanager
def own_database(postgres: Postgres, template: str) -> Iterator[str]:
    """Lend the URL of a database of the test's own, until the block ends."""
    name = f"test_{uuid.uuid4().hex}"
    admin = create_engine(
        make_url(postgres.url).set(drivername="postgresql+psycopg", database="postgres"),
        isolation_level="AUTOCOMMIT",
    )
    with admin.connect() as connection:
        connection.execute(text(f'CREATE DATABASE "{name}" TEMPLATE "{template}"'))
    url = make_url(postgres.url).set(database=name).render_as_string(hide_password=False)
    yield url
    watch_errors(url)
    with admin.connect() as connection:
        connection.execute(text(f'DROP DATABASE "{name}" WITH (FORCE)'))
    admin.dispose()
