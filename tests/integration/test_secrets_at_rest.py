"""Callback secrets in the database: sealed, each for its row, and sealed anew when the keys change."""

import uuid

import pytest
from sqlalchemy import Engine, text
from structlog.testing import capture_logs
from support.desk import SEALS

from infra import callback_secrets
from infra.migrating import migrate
from infra.sealing import NotOpenedError, Seals

NEWER, OLDER = "fedcba9876543210" * 4, "0123456789abcdef" * 4
SHARED = {"tenant": "default", "endpoint": None}


def stored(database: Engine) -> list[str]:
    """What the table holds."""
    with database.connect() as connection:
        return list(connection.execute(text("SELECT secret FROM callback_secrets ORDER BY id")).scalars())


def read(database: Engine, seals: Seals = SEALS) -> list[str]:
    """The secrets that sign, opened."""
    with database.connect() as connection:
        return callback_secrets.read(connection, seals, **SHARED)


def rotate(database: Engine, seals: Seals = SEALS) -> str:
    """Make the next secret."""
    with database.begin() as connection:
        return callback_secrets.rotate(connection, seals, **SHARED, grace_seconds=3600)[0]


def test_the_database_does_not_hold_what_signs(database: Engine):
    """Neither the secret nor its base64 stands in the table; who has the key reads it."""
    secret = rotate(database)
    assert secret not in str(stored(database))
    assert read(database) == [secret]


def test_a_row_that_is_put_in_anothers_place_does_not_open(database: Engine):
    """Who may write to the table cannot have one tenant's events signed by another's secret."""
    rotate(database)
    with database.begin() as connection:
        connection.execute(
            text("INSERT INTO callback_secrets (tenant, secret) SELECT 'other', secret FROM callback_secrets")
        )
    with database.connect() as connection, pytest.raises(NotOpenedError, match="another place"):
        callback_secrets.read(connection, SEALS, tenant="other", endpoint=None)


def test_migrating_seals_what_was_stored_plain(database: Engine, database_url: str):
    """Secrets of an earlier version go on signing, and stand in the table no more."""
    with database.begin() as connection:
        connection.execute(text("INSERT INTO callback_secrets (tenant, secret) VALUES ('default', 'whsec_cGxhaW4=')"))
    migrate(database_url, seals=SEALS)
    assert "whsec_" not in str(stored(database))
    assert read(database) == ["whsec_cGxhaW4="]


def test_migrating_seals_by_the_newest_key(database: Engine, database_url: str):
    """After it the old key may go; without the old key it says so, and changes nothing of what takes it."""
    secrets = [rotate(database), rotate(database)]
    before = stored(database)
    with capture_logs() as logs:
        migrate(database_url, seals=Seals([NEWER]))
    [said] = [each for each in logs if each["event"] == "callback_secrets_not_opened"]
    assert (said["log_level"], said["secrets"]) == ("error", 2)
    assert "not among NIGHTCOURT_SECRET_KEYS" in said["why"]
    assert stored(database) == before
    migrate(database_url, seals=Seals([NEWER, OLDER]))
    assert read(database, Seals([NEWER])) == secrets[::-1]


def test_keys_are_migrated_to_once_nobody_seals_by_the_earlier(database: Engine, database_url: str):
    """Until it is restarted an API seals by the key that it began with, and what it seals then is left behind."""
    newer = Seals([NEWER])
    migrate(database_url, seals=Seals([NEWER, OLDER]))
    late = rotate(database)
    with pytest.raises(NotOpenedError):
        read(database, newer)
    migrate(database_url, seals=Seals([NEWER, OLDER]))  # as docs/security.md has it: after they are restarted
    assert read(database, newer) == [late]


def test_a_lost_key_costs_a_rotation(database: Engine, database_url: str):
    """By another key everything is migrated, and the next secret signs at once, whatever grace the lost one had."""
    rotate(database)
    migrate(database_url, seals=Seals([NEWER]))
    first, second = rotate(database, Seals([NEWER])), rotate(database, Seals([NEWER]))
    assert read(database, Seals([NEWER])) == [second, first]


def test_an_unknown_endpoint_has_no_secret(database: Engine):
    """Whether there is one is told without opening any."""
    rotate(database)
    with database.connect() as connection:
        assert callback_secrets.exist(connection, **SHARED)
        assert not callback_secrets.exist(connection, tenant="default", endpoint=uuid.uuid4())
