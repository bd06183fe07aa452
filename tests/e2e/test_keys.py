"""Keys of the embedded stack: it makes the first by itself, and nothing that runs beside it has to be told."""

import stat
from pathlib import Path

import openai
import pytest
from support.keys import a_key, bearer
from support.program import Cli
from support.service import QUESTION, Service
from support.waiting import wait_until

from producer.client import Client, ServerProblem
from schemas import ids
from schemas.keys import parse_key


def test_the_first_key_is_private(service: Service):
    """The stack makes itself a key, in a file of its folder that its owner alone may read."""
    file = service.folder / "key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.read_text().strip() == service.key
    assert parse_key(service.key).secret not in (service.folder / "logs" / "migrate.log").read_text()


def test_commands_find_it(service: Service, tmp_path: Path):
    """On the stack's own folder the command line needs to be told no key; elsewhere it says that one is needed."""
    cli = Cli(tmp_path)
    assert cli("batch", "list", data_dir=service.folder).status == 0
    assert cli("batch", "list", data_dir=service.folder, server=service.url).status == 0
    without = cli("batch", "list", server=service.url)
    assert without.status == 1
    assert "NIGHTCOURT_KEY" in without.err
    assert cli("batch", "list", server=service.url, key=service.key).status == 0


def test_a_list_tells_a_keys_own_limits(service: Service, tmp_path: Path):
    """What a key was given for itself stands behind it; a list of nothing says so."""
    cli = Cli(tmp_path)
    limits = ("--requests-per-second", "2.5", "--tokens-per-day", "1000000")
    cli("keys", "create", "--tenant", "limited", "--name", "nightly", *limits, data_dir=service.folder)
    listed = cli("keys", "list", "--tenant", "limited", data_dir=service.folder)
    assert listed.out.rstrip().endswith("  nightly  requests_per_second=2.5  tokens_per_day=1,000,000")
    none = cli("keys", "list", "--tenant", "nobody", data_dir=service.folder)
    assert (none.status, none.out, none.err) == (0, "", "There is no such key.\n")


def test_the_client_takes_it_from_the_environment(service: Service, monkeypatch: pytest.MonkeyPatch):
    """A program that says nothing of keys sends the one of NIGHTCOURT_KEY; what it says itself comes first."""
    monkeypatch.setenv("NIGHTCOURT_KEY", service.key)
    with Client(service.url) as client:
        client.list(limit=1)
    with Client(service.url, api_key=f"{service.key}x") as client, pytest.raises(ServerProblem) as raised:
        client.list(limit=1)
    assert raised.value.code == "key_invalid"


def test_openais_client_sends_it_as_its_own(service: Service):
    """`api_key` of the official client is all that it takes; without a good one it raises what it raises there."""
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key=service.key) as client:
        client.batches.list(limit=1)
    with (
        openai.OpenAI(base_url=f"{service.url}/v1", api_key="sk-1") as client,
        pytest.raises(openai.AuthenticationError) as raised,
    ):
        client.batches.list(limit=1)
    assert raised.value.code == "key_invalid"


def test_a_key_is_named_in_the_log(service: Service):
    """A request's line names the id of its key, by which an operator knows whose it was; never the key."""
    key = a_key(service.database_url)
    service.file(QUESTION, **bearer(key))
    # The line is written after the answer.
    wait_until(
        lambda: any(line.get("key") == ids.key_id(parse_key(key).id) for line in service.log("api")),
        within=60,
        what="the request's line is in the log",
    )
    assert parse_key(key).secret not in (service.folder / "logs" / "api.log").read_text()
