"""What a connection to Postgres is asked to hold to."""

import pytest
from sqlalchemy import Engine, text

EXPECTED = {
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "15000",
}


@pytest.mark.parametrize(("setting", "value"), EXPECTED.items())
def test_postgres_looks_whether_we_are_still_there(database: Engine, setting: str, value: str):
    """Its own end of the connection has them, so that what a vanished worker has locked is soon free."""
    with database.connect() as connection:
        assert connection.execute(text(f"SHOW {setting}")).scalar_one() == value
