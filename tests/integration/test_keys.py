"""Keys: made once, found by whoever sends them whole, ended by time, by hand and by their successors."""

import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from sqlalchemy import Connection, Engine, text
from support.program import Cli
from typer.testing import CliRunner

from producer import keys
from producer.cli.app import make_app
from producer.cli.output import local_time
from schemas import ids
from schemas.keys import Key, KeyLimits, NewKey, Scope, parse_key
from schemas.problems import KEY_ENDED, NOT_FOUND, Problem

DAY = 86400.0


def made(connection: Connection, **changes) -> NewKey:
    """Make a key that may read."""
    return keys.create(connection, **{"tenant": "alpha", "scopes": [Scope.READ], **changes})


def age(connection: Connection, seconds: float) -> None:
    """Let every key be older by so many seconds."""
    connection.execute(
        text("""UPDATE keys SET created_at = created_at - make_interval(secs => :seconds),
                                expires_at = expires_at - make_interval(secs => :seconds),
                                revoked_at = revoked_at - make_interval(secs => :seconds)"""),
        {"seconds": seconds},
    )


def uuid_of(key: NewKey):
    """The id of a key as its row has it."""
    return ids.parse_prefixed(key.id, "nck_")


class TestFinding:
    def test_whoever_sends_a_key_is_its_tenant(self, connection: Connection):
        """A key tells tenant, scopes and limits, and its id is what it begins with."""
        limits = KeyLimits(requests_per_second=2.5, tokens_per_day=10**12)
        key = made(connection, scopes=[Scope.SUBMIT, Scope.READ], limits=limits)
        caller = keys.find(connection, key.key)
        assert (caller.tenant, caller.key_id, caller.limits) == ("alpha", key.id, limits)
        assert caller.scopes == {Scope.SUBMIT, Scope.READ}
        assert key.key.startswith(f"{key.id}_")
        assert not caller.may(Scope.ADMIN)

    def test_admin_may_do_everything(self, connection: Connection):
        """The scope `admin` includes the others."""
        caller = keys.find(connection, made(connection, scopes=[Scope.ADMIN]).key)
        assert all(caller.may(scope) for scope in Scope)

    def test_nothing_but_the_whole_key_will_do(self, connection: Connection):
        """Another's secret, a changed character, an id alone and no key at all are nobody's."""
        key, other = made(connection), made(connection)
        last = "A" if key.key[-1] != "A" else "B"
        swapped = keys.spell_key(keys.SpelledKey(uuid_of(key), parse_key(other.key).secret))
        for wrong in (swapped, key.key[:-1] + last, key.id, key.key + "A", key.key.upper(), f" {key.key}", "", "nck_"):
            assert keys.find(connection, wrong) is None, wrong

    def test_the_secret_is_not_kept(self, connection: Connection):
        """No column of the table holds it."""
        key = made(connection, name="nightly")
        kept = connection.execute(text("SELECT keys::text FROM keys")).scalar_one()
        assert "nightly" in kept
        assert parse_key(key.key).secret not in kept

    def test_every_secret_is_new(self, connection: Connection):
        """Two keys made alike share neither id nor secret."""
        assert len({parse_key(made(connection).key) for _ in range(50)}) == 50


class TestEnding:
    def test_a_key_expires(self, connection: Connection):
        """A key with a span ends when that is over; one without does not."""
        brief, lasting = made(connection, expires_seconds=DAY), made(connection)
        age(connection, DAY - 60)
        assert keys.find(connection, brief.key)
        age(connection, 61)
        assert keys.find(connection, brief.key) is None
        assert keys.find(connection, lasting.key)
        assert [key.status for key in keys.listing(connection)] == ["expired", "active"]

    def test_a_key_is_revoked_once(self, connection: Connection):
        """A revoked key is nobody's, and revoking it again does not move the moment."""
        key = made(connection)
        first = keys.revoke(connection, uuid_of(key))
        assert keys.find(connection, key.key) is None
        assert first.status == "revoked"
        assert keys.revoke(connection, uuid_of(key)).revoked_at == first.revoked_at

    def test_what_is_not_there_cannot_be_ended(self, connection: Connection):
        """Revoking or rotating an id that nobody has is `not_found`."""
        for end in (keys.revoke, lambda c, key: keys.rotate(c, key, overlap_seconds=0)):
            with pytest.raises(Problem) as raised:
                end(connection, keys.new_key().id)
            assert raised.value.kind is NOT_FOUND


class TestRotating:
    def test_two_keys_live_while_one_takes_over(self, connection: Connection):
        """The successor is like its predecessor, and both are good until the overlap is over."""
        limits = KeyLimits(concurrent_batches=3)
        old = made(connection, name="n", scopes=[Scope.SUBMIT], limits=limits, expires_seconds=90 * DAY)
        age(connection, 30 * DAY)
        new = keys.rotate(connection, uuid_of(old), overlap_seconds=DAY)
        assert (new.replaces, new.tenant, new.name, new.scopes, new.limits) == (
            old.id,
            "alpha",
            "n",
            ["submit"],
            limits,
        )
        assert (new.expires_at - new.created_at).total_seconds() == 90 * DAY
        assert keys.find(connection, old.key)
        assert keys.find(connection, new.key)
        age(connection, DAY + 1)
        assert keys.find(connection, old.key) is None
        assert keys.find(connection, new.key)

    def test_an_overlap_prolongs_nothing(self, connection: Connection):
        """A key that would have ended sooner than the overlap ends when it would have."""
        old = made(connection, expires_seconds=3600)
        keys.rotate(connection, uuid_of(old), overlap_seconds=DAY)
        age(connection, 3601)
        assert keys.find(connection, old.key) is None

    def test_a_key_has_one_successor_at_a_time(self, connection: Connection):
        """Rotating twice is refused, until the successor, whose secret may be lost, is revoked."""
        old = made(connection)
        new = keys.rotate(connection, uuid_of(old), overlap_seconds=DAY)
        with pytest.raises(Problem, match=new.id) as raised:
            keys.rotate(connection, uuid_of(old), overlap_seconds=DAY)
        assert raised.value.kind is KEY_ENDED
        keys.revoke(connection, uuid_of(new))
        assert keys.rotate(connection, uuid_of(old), overlap_seconds=DAY).replaces == old.id

    @pytest.mark.parametrize("lives", [None, 90 * DAY])
    def test_a_lost_successor_takes_no_life_from_the_next(self, connection: Connection, lives: float | None):
        """Whatever was rotated and lost before, a successor lives as long as the first key was to."""
        old = made(connection, expires_seconds=lives)
        for _ in range(2):
            lost = keys.rotate(connection, uuid_of(old), overlap_seconds=DAY)
            heir = keys.rotate(connection, uuid_of(lost), overlap_seconds=DAY)
            for key in (lost, heir):
                keys.revoke(connection, uuid_of(key))
        new = keys.rotate(connection, uuid_of(old), overlap_seconds=DAY)
        assert (new.expires_at and (new.expires_at - new.created_at).total_seconds()) == lives

    def test_a_key_that_has_ended_has_no_successor(self, connection: Connection):
        """Rotating brings no key back to life."""
        key = made(connection)
        keys.revoke(connection, uuid_of(key))
        with pytest.raises(Problem, match="revoked"):
            keys.rotate(connection, uuid_of(key), overlap_seconds=DAY)


def run(*arguments: str) -> Result:
    """Run `nightcourt keys ...` to its end."""
    return CliRunner().invoke(make_app(), ["keys", *arguments])


@pytest.fixture
def command(database_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Result]:
    """The same, on the test's own database."""
    monkeypatch.setenv("NIGHTCOURT_DATABASE_URL", database_url)
    monkeypatch.setenv("NIGHTCOURT_DATA_DIR", str(tmp_path))
    return run


class TestCommands:
    def test_a_key_is_shown_once(self, command, database: Engine):
        """What `create` prints is the key itself; `list` tells everything but the secret."""
        ended = command("create", "--tenant", "beta", "--scopes", "read, submit", "--name", "ci", "--expires", "90d")
        key = ended.stdout.strip()
        assert ended.exit_code == 0
        with database.connect() as connection:
            caller = keys.find(connection, key)
        assert (caller.tenant, caller.scopes) == ("beta", {Scope.READ, Scope.SUBMIT})
        listed = command("list", "--tenant", "beta").output
        assert caller.key_id in listed
        assert parse_key(key).secret not in listed
        assert command("list", "--tenant", "alpha").stdout == ""

    def test_json_for_a_program(self, command):
        """With --json each command prints objects, one a line, that read back as what they tell of."""
        limits = ("--requests-per-second", "5", "--max-body-bytes", "1000")
        first = NewKey.model_validate_json(command("create", "--json", *limits).stdout)
        assert first.limits == KeyLimits(requests_per_second=5, max_body_bytes=1000)
        second = NewKey.model_validate_json(command("rotate", first.id, "--overlap", "1h", "--json").stdout)
        assert second.replaces == first.id
        # Whoever pastes a whole key in place of its id means that key.
        assert '"status": "revoked"' in command("revoke", second.key, "--json").stdout

    def test_how_long_the_old_key_lives(self, command, monkeypatch: pytest.MonkeyPatch):
        """Until the overlap is over, or until it would have ended anyway; that moment is told."""
        monkeypatch.setenv("COLUMNS", "300")
        for expires, overlap, hours in (("90d", "1h", 1), ("2h", "24h", 2)):
            old = NewKey.model_validate_json(command("create", "--json", "--expires", expires).stdout)
            said = command("rotate", old.id, "--overlap", overlap).stderr
            ends = Key.model_validate_json(command("list", "--json").stdout.splitlines()[-2]).expires_at
            assert (ends - old.created_at).total_seconds() == pytest.approx(hours * 3600, abs=60)
            assert f"{old.id} lives until {local_time(ends)}." in said

    @pytest.mark.parametrize(
        ("option", "most"),
        [
            ("--queued-comparisons", 2**31 - 1),
            ("--concurrent-batches", 2**31 - 1),
            ("--max-body-bytes", 2**31 - 1),
            ("--tokens-per-day", 2**63 - 1),
            ("--requests-per-second", 10**6),
        ],
    )
    def test_a_limit_has_a_limit(self, command, option: str, most: int):
        """The largest that can be kept is; one more is refused by its name, and not as a fault of the database."""
        made = NewKey.model_validate_json(command("create", "--json", option, str(most)).stdout)
        assert getattr(made.limits, option[2:].replace("-", "_")) == most
        ended = command("create", option, str(most + 1))
        said = " ".join(ended.output.replace("│", " ").split())
        assert ended.exit_code == 2, said
        assert option in said
        assert str(most) in said or "1000000.0" in said

    @pytest.mark.parametrize(
        "arguments",
        [("create", "--scopes", "write"), ("create", "--expires", "soon"), ("create", "--tenant", "a\nb"), ("rotate",)],
    )
    def test_what_cannot_be_understood(self, arguments: tuple[str, ...]):
        """A scope, a span or a tenant that cannot be, and an id that is left out, end with 2."""
        assert run(*arguments).exit_code == 2


def test_a_first_key_is_kept_good(database: Engine, database_url: str, tmp_path: Path):
    """Where a setting names a file, migrating sees to a good key in it: it stays while it is good, and is private."""
    file = tmp_path / "key"
    cli = Cli(tmp_path)  # a process of its own, as it sets up logging

    def migrated() -> str:
        ended = cli("migrate", database_url=database_url, first_key_file=file)
        assert ended.status == 0, ended.err
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        return file.read_text().strip()

    first = migrated()
    assert migrated() == first
    with database.begin() as connection:
        assert keys.find(connection, first).scopes == {Scope.ADMIN}
        keys.revoke(connection, parse_key(first).id)
    second = migrated()
    assert second != first
    with database.begin() as connection:
        assert keys.find(connection, second).tenant == "default"
