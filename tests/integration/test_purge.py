"""`nightcourt purge`: looks at what was typed, then asks, then deletes."""

from pathlib import Path

import pytest
from click.testing import Result
from sqlalchemy import Engine, text
from typer.testing import CliRunner

from producer import keys
from producer.cli.app import make_app
from schemas.keys import Scope
from schemas.problems import NOT_FOUND, Problem


def purge(*arguments: str, given: str = "") -> Result:
    """Run `nightcourt purge` to its end."""
    return CliRunner().invoke(make_app(["purge", "keys"]), ["purge", *arguments], input=given, env={"COLUMNS": "200"})


@pytest.fixture
def here(database_url: str, database: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """The settings name a database of the test's own, and no stack runs."""
    monkeypatch.setenv("NIGHTCOURT_DATABASE_URL", database_url)
    monkeypatch.setenv("NIGHTCOURT_DATA_DIR", str(tmp_path))
    return database


def names(database: Engine) -> list[str]:
    """The tenants that have a tombstone."""
    with database.connect() as connection:
        return list(connection.execute(text("SELECT tenant FROM tombstones")).scalars())


class TestTenants:
    @pytest.mark.parametrize("options", [(), ("--yes",)], ids=["asked", "unasked"])
    def test_a_name_that_was_mistyped(self, here: Engine, options: tuple[str, ...]):
        """Of a tenant that nothing is stored of nothing is deleted, nobody is asked, and the name stays free."""
        ended = purge("--tenant", "nosuch", *options)
        assert isinstance(ended.exception, Problem)
        assert ended.exception.kind is NOT_FOUND
        assert "nosuch" in ended.exception.detail
        assert "for good?" not in ended.output
        assert names(here) == []

    def test_the_name_is_gone_with_the_rest(self, here: Engine):
        """It is said before and after that no key can be made for the name, and a second purge has nothing to do."""
        with here.begin() as connection:
            keys.create(connection, tenant="alpha", scopes=[Scope.READ])
        assert "no key can be made for the name" in " ".join(purge("--help").output.replace("│", " ").split())
        ended = purge("--tenant", "alpha", given="y\n")
        assert ended.exit_code == 0
        assert "Delete tenant alpha for good?" in ended.output
        assert "No key can be made for the tenant alpha any more." in ended.output
        assert "1 rows deleted." in ended.output
        assert names(here) == ["alpha"]
        assert "0 rows deleted." in purge("--tenant", "alpha", "--yes").output

    @pytest.mark.parametrize(
        ("answer", "status", "told"),
        [("n\n", 1, "Aborted"), ("", 2, "Invalid value for --yes: say it where nobody can be asked")],
        ids=["no", "nobody"],
    )
    def test_it_is_not_meant(self, here: Engine, answer: str, status: int, told: str):
        """Whoever says no has kept everything, and so has a script, which is told what to say."""
        with here.begin() as connection:
            keys.create(connection, tenant="alpha", scopes=[Scope.READ])
        ended = purge("--tenant", "alpha", given=answer)
        assert ended.exit_code == status
        assert told in ended.output
        assert names(here) == []

    def test_it_takes_as_long_as_it_takes(self, here: Engine):
        """No statement of a purge is cut short, however many rows Postgres has to read for it."""
        with here.begin() as connection:
            connection.execute(
                text("""
                    CREATE FUNCTION in_haste() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                        RAISE 'in haste' USING ERRCODE = 'query_canceled';
                    END $$;
                    CREATE TRIGGER in_haste BEFORE DELETE ON keys FOR EACH ROW
                    WHEN (current_setting('statement_timeout') <> '0') EXECUTE FUNCTION in_haste();
                """)
            )
            keys.create(connection, tenant="alpha", scopes=[Scope.READ])
        assert "1 rows deleted." in purge("--tenant", "alpha", "--yes").output


class TestWhatWasTyped:
    @pytest.mark.parametrize(
        ("option", "value", "says"),
        [
            ("--older-than", "xx", "takes hours or days"),
            ("--batch", "nope", "looks like batch_ and 32 hexadecimal digits"),
        ],
    )
    def test_what_cannot_be_is_told_before_anybody_is_asked(self, here: Engine, option: str, value: str, says: str):
        """The option is named, with what it takes."""
        ended = purge(option, value)
        assert ended.exit_code == 2
        assert option in ended.output
        assert says in ended.output
        assert "for good?" not in ended.output

    def test_a_batch_that_is_not_there(self, here: Engine):
        """Nobody is asked about it either."""
        ended = purge("--batch", f"batch_{7:032x}")
        assert isinstance(ended.exception, Problem)
        assert ended.exception.kind is NOT_FOUND
        assert "for good?" not in ended.output
