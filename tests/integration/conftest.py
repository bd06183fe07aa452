"""What the tests of the tables share."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, Engine, text


@pytest.fixture
def connection(database: Engine) -> Iterator[Connection]:
    """A connection whose every statement is a transaction of its own, on tables that know one judge."""
    with database.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("INSERT INTO judges (id, card) VALUES ('jdg_test', '{}')"))
        yield connection
