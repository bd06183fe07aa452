"""What the tests of the tables share."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, Engine, text
from support.desk import Desk
from support.inbox import Inbox, open_inbox


@pytest.fixture
def connection(database: Engine) -> Iterator[Connection]:
    """A connection whose every statement is a transaction of its own, on tables that know one judge."""
    with database.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("INSERT INTO judges (id, card) VALUES ('jdg_test', '{}')"))
        yield connection


@pytest.fixture
def desk(database: Engine, database_url: str) -> Desk:
    """A desk on tables that know one judge, with a secret for what goes to requests' own URLs."""
    with database.begin() as connection:
        connection.execute(text("INSERT INTO judges (id, card) VALUES ('jdg_test', '{}')"))
    desk = Desk(database, database_url)
    desk.default = desk.default_secret()
    return desk


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    """A receiver on loopback that takes everything."""
    with open_inbox() as inbox:
        yield inbox
