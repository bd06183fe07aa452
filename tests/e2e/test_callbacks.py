"""Callbacks over a whole service of real processes: HTTP, dispatcher, Redis, the callback process, a receiver."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support.inbox import Inbox, open_inbox
from support.program import Cli, Ended
from support.sample import sample_receiver
from support.service import QUESTION, Service
from support.waiting import wait_until

from producer.client import Client, InvalidRequest, ServerProblem, verify_callback
from schemas.callback import Callback


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    """A receiver on loopback that takes everything."""
    with open_inbox() as inbox:
        yield inbox


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[Client]:
    """A client of the service."""
    with Client(service.url, api_key=service.key) as client:
        yield client


@pytest.fixture(scope="module")
def secret(client: Client) -> str:
    """The default secret."""
    return client.rotate_secret().secret


@pytest.fixture(scope="module")
def cli(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """The program, with no stack of its own, and a key of the service."""
    program = Cli(tmp_path_factory.mktemp("home"))
    program.environment["NIGHTCOURT_KEY"] = service.key
    return program


@pytest.fixture
def endpoint(client: Client, inbox: Inbox) -> Iterator[tuple[str, str]]:
    """A registered endpoint, which hears nothing more after the test: its id and its secret."""
    made = client.add_endpoint(inbox.url)
    yield made.id, made.secret
    client.disable_endpoint(made.id)


def own_callbacks(client: Client, object_id: str) -> list[Callback]:
    """The callbacks about something that go to its own callback_url."""
    return [each for each in client.callbacks(object_id=object_id).data if not each.registered]


def arrival(inbox: Inbox, count: int = 1) -> list:
    """Wait until so many messages have come."""
    wait_until(lambda: len(inbox.messages) >= count, within=60, what=f"{count} callbacks arrive")
    return inbox.messages


class TestWithoutASecret:
    def test_a_promise_that_cannot_be_kept(self, service_at_rest: Service):
        """Without a secret a callback_url is refused with a code, and a sentence that says how to make one."""
        answer = service_at_rest.file({**QUESTION, "callback_url": "http://127.0.0.1:9/"})
        assert answer.status_code == 409
        assert answer.json()["code"] == "no_callback_secret"
        assert "rotate-secret" in answer.json()["detail"]


class TestRequests:
    def test_a_comparison_calls_back(self, client: Client, inbox: Inbox, secret: str):
        """A comparison is filed with a callback_url, and its end arrives there, signed, and quickly."""
        filed = client.submit(**QUESTION, callback_url=inbox.url)
        [message] = arrival(inbox)
        event = verify_callback(message.body, message.headers, secret)
        assert event.data.id == filed.id
        assert event.type == "comparison.succeeded"
        assert client.get(filed.id).status == "succeeded"
        [callback] = own_callbacks(client, filed.id)
        assert callback.event_id == event.id
        assert callback.url == inbox.url

    def test_a_batch_calls_back(self, client: Client, inbox: Inbox, secret: str):
        """A batch tells of its end, and of each comparison where that was asked for."""
        lines = b"\n".join(json.dumps({**QUESTION, "custom_id": f"line {number}"}).encode() for number in range(5))
        file = client.upload(lines)
        batch = client.create_batch(file.id, callback_url=inbox.url, callback_comparisons=True)
        messages = arrival(inbox, 6)
        events = [verify_callback(message.body, message.headers, secret) for message in messages]
        assert sorted(event.type for event in events) == ["batch.completed"] + ["comparison.succeeded"] * 5
        assert {event.data.batch_id or event.data.id for event in events} == {batch.id}
        assert len(inbox.counts()) == 6

    def test_the_same_key_calls_back_once(self, client: Client, inbox: Inbox, secret: str):
        """A submission that is repeated under its Idempotency-Key is one comparison, and one event."""
        filed = [client.submit(**QUESTION, callback_url=inbox.url, idempotency_key="once").id for _ in range(2)]
        assert filed[0] == filed[1]
        arrival(inbox)
        assert len(own_callbacks(client, filed[0])) == 1

    @pytest.mark.parametrize("url", ["http://169.254.169.254/", "ftp://example.com/", "https://user:pw@example.com/"])
    def test_a_url_that_is_refused(self, service: Service, secret: str, url: str):
        """Filing with a URL that callbacks may not go to is refused, naming the field."""
        answer = service.file({**QUESTION, "callback_url": url})
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["field"] == "callback_url"

    def test_a_line_of_a_file_has_none(self, client: Client):
        """A callback_url inside a line of a file would not be heeded, so it is refused with the line."""
        file = client.upload(json.dumps({**QUESTION, "callback_url": "https://example.com/"}).encode())
        assert file.bad_lines == 1


class TestEndpoints:
    def test_from_registration_to_delivery(self, client: Client, inbox: Inbox, endpoint: tuple[str, str]):
        """A registered endpoint hears of what is filed from then on, and is shown to do well."""
        filed = client.submit(**QUESTION)
        [message] = arrival(inbox)
        assert verify_callback(message.body, message.headers, endpoint[1]).data.id == filed.id
        found = wait_until(
            lambda: [each for each in client.endpoints().data if each.id == endpoint[0] and each.last_success_at],
            within=60,
            what="the success is written down",
        )
        assert found[0].failures == 0

    def test_a_test_event(self, client: Client, inbox: Inbox, endpoint: tuple[str, str]):
        """A test event arrives like any other, and the callback tells how it went."""
        sent = client.test_endpoint(endpoint[0])
        [message] = arrival(inbox)
        assert verify_callback(message.body, message.headers, endpoint[1]).type == "callback.test"
        ended = wait_until(lambda: client.callback(sent.id).log, within=60, what="the attempt is recorded")
        assert [(each.number, each.status, each.reason) for each in ended] == [(1, 204, "delivered")]

    def test_a_replay(self, client: Client, inbox: Inbox, endpoint: tuple[str, str]):
        """A callback that was replayed arrives again under the same id."""
        client.test_endpoint(endpoint[0])
        arrival(inbox)
        [callback] = client.callbacks(endpoint_id=endpoint[0]).data
        wait_until(lambda: client.callback(callback.id).ended_at, within=60, what="it is delivered")
        client.replay(callback.id)
        first, second = arrival(inbox, 2)
        assert (first.id, first.body) == (second.id, second.body)

    def test_what_died_is_replayed_since_then(self, client: Client, inbox: Inbox, endpoint: tuple[str, str]):
        """After 410 the endpoint is disabled and its callbacks die; enabled again, one command brings them back."""
        inbox.answer = lambda _: 410
        began = datetime.now(UTC) - timedelta(seconds=1)
        client.submit(**QUESTION)
        wait_until(
            lambda: any(each.status == "disabled" for each in client.endpoints().data if each.id == endpoint[0]),
            within=60,
            what="the endpoint is disabled",
        )
        with pytest.raises(ServerProblem) as refused:
            client.replay_dead(began, endpoint_id=endpoint[0])
        assert refused.value.code == "endpoint_disabled"
        inbox.answer = lambda _: 204
        client.enable_endpoint(endpoint[0])
        assert client.replay_dead(began, endpoint_id=endpoint[0]).replayed >= 1
        arrival(inbox, 2)
        assert len(inbox.counts()) == 1

    def test_nobody_else_is_told_the_secret(self, service: Service, endpoint: tuple[str, str]):
        """After its registration nothing that the service answers holds the secret."""
        for path in ("/v1/callback-endpoints", f"/v1/callback-endpoints/{endpoint[0]}", "/v1/callbacks"):
            assert "whsec_" not in service.http.get(path).text

    def test_an_endpoint_removed(self, service: Service, client: Client, inbox: Inbox):
        """What was removed is there no more, nor are its callbacks."""
        made = client.add_endpoint(inbox.url)
        sent = client.test_endpoint(made.id)
        wait_until(lambda: client.callback(sent.id).ended_at, within=60, what="a callback is delivered")
        assert client.remove_endpoint(made.id) is None
        assert service.http.get(f"/v1/callback-endpoints/{made.id}").status_code == 404
        assert service.http.get(f"/v1/callbacks/{sent.id}").status_code == 404

    @pytest.mark.parametrize(
        ("body", "field"),
        [
            ({}, "url"),
            ({"url": "http://10.0.0.1/"}, "url"),
            ({"url": "https://example.com", "events": ["comparison.won"]}, "events[0]"),
            ({"url": "https://example.com", "more": 1}, "more"),
        ],
        ids=str,
    )
    def test_what_is_no_endpoint(self, service: Service, body: dict, field: str):
        """A field at fault is named."""
        answer = service.http.post("/v1/callback-endpoints", json=body)
        assert answer.status_code == 422
        assert [each["field"] for each in answer.json()["errors"]] == [field]

    @pytest.mark.parametrize("path", ["callback-endpoints/cep_0", f"callback-endpoints/cep_{'0' * 32}", "callbacks/x"])
    def test_what_is_not_there(self, service: Service, path: str):
        """An id of nothing is a problem of its own, well formed or not."""
        answer = service.http.get(f"/v1/{path}")
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")

    def test_the_client_knows_an_id(self, client: Client):
        """A call with an id that is none asks no server."""
        with pytest.raises(InvalidRequest):
            client.callback("cmp_0")
        with pytest.raises(InvalidRequest):
            client.enable_endpoint("cbk_0")


class TestCommands:
    def test_a_life(self, cli: Cli, service: Service, inbox: Inbox):
        """Add, test, list, show, replay, rotate, disable, enable, remove: each says what came of it."""

        def nightcourt(*arguments: object, given: str = "") -> Ended:
            return cli("callbacks", *arguments, "--server", service.url, given=given)

        added = nightcourt("add", inbox.url, "--event", "batch.completed", "--json").objects[0]
        assert added["secret"].startswith("whsec_")
        tested = nightcourt("test", added["id"])
        assert tested.status == 0, tested.err
        assert "delivered" in tested.out
        [listed] = nightcourt("list", "--endpoint", added["id"], "--json").objects
        assert listed["type"] == "callback.test"
        assert listed["id"] in nightcourt("show", listed["id"]).out
        assert nightcourt("replay", listed["id"]).status == 0
        arrival(inbox, 2)
        assert "0 callbacks" in nightcourt("replay", "--since", "1h", "--endpoint", added["id"]).out
        rotated = nightcourt("rotate-secret", added["id"], "--grace", "1h")
        assert rotated.out.startswith("whsec_")
        assert "signs too until" in rotated.err
        assert "disabled (asked)" in nightcourt("disable", added["id"]).out
        assert nightcourt("test", added["id"]).status == 1
        assert "enabled" in nightcourt("enable", added["id"]).out
        assert added["id"] in nightcourt("endpoints").out
        kept = nightcourt("remove", added["id"], given="n\n")
        assert (kept.status, kept.out.strip()) == (1, "")
        assert f"Remove {added['id']} with all of its callbacks for good?" in kept.err
        assert nightcourt("remove", added["id"], given="y\n").out.strip() == f"{added['id']}  removed"
        assert added["id"] not in nightcourt("endpoints").out
        again = nightcourt("remove", added["id"], "--yes")
        assert (again.status, "There is no callback endpoint of this id" in again.err) == (1, True)

    def test_a_test_that_does_not_arrive(self, cli: Cli, service: Service, inbox: Inbox):
        """A receiver that refuses is told at once, with the status, and an exit status that a script sees."""
        inbox.answer = lambda _: 500
        added = cli("callbacks", "add", inbox.url, "--json", "--server", service.url).objects[0]
        tested = cli("callbacks", "test", added["id"], "--server", service.url)
        assert tested.status == 1
        assert "bad_status 500" in tested.out
        removed = cli("callbacks", "remove", added["id"], "--yes", "--json", "--server", service.url)
        assert removed.objects == [{"id": added["id"], "deleted": True}]

    def test_a_test_that_is_held(self, cli: Cli, service: Service, inbox: Inbox):
        """Where a receiver asked for time, a test says at once that nothing was tried, and what has it tried now."""
        inbox.answer = lambda _: (429, {"Retry-After": "3600"})
        added = cli("callbacks", "add", inbox.url, "--json", "--server", service.url).objects[0]
        cli("callbacks", "test", added["id"], "--server", service.url)
        tested = cli("callbacks", "test", added["id"], "--timeout", "3500", "--server", service.url)
        assert tested.status == 1
        assert "nothing was tried: held until" in tested.out
        assert f"`nightcourt callbacks enable {added['id']}` tries now" in tested.out
        assert "held until" in cli("callbacks", "endpoints", "--server", service.url).out
        inbox.answer = lambda _: 204
        cli("callbacks", "enable", added["id"], "--server", service.url)
        arrival(inbox, 2)
        cli("callbacks", "disable", added["id"], "--server", service.url)

    def test_a_receiver_that_a_request_named_is_let_go_by_hand(
        self, cli: Cli, service: Service, client: Client, inbox: Inbox, secret: str
    ):
        """What is held says so and what ends it, wherever it is looked at; then it is sent, and the log tells apart."""

        def nightcourt(*arguments: object) -> Ended:
            return cli("callbacks", *arguments, "--server", service.url)

        inbox.answer = lambda _: (429, {"Retry-After": "3600"})
        filed = client.submit(**QUESTION, callback_url=inbox.url)
        arrival(inbox)
        [callback] = own_callbacks(client, filed.id)
        wait_until(lambda: client.callback(callback.id).log, within=60, what="the attempt is recorded")
        assert "next attempt at" in nightcourt("list", "--status", "waiting", "--of", filed.id).out
        replayed = nightcourt("replay", callback.id)
        assert replayed.status == 0
        assert "It is not sent before" in replayed.err
        command = f"nightcourt callbacks enable {callback.endpoint_id} --server {service.url}"
        assert command in replayed.err
        assert "to be sent again: held until" in nightcourt("show", callback.id).out
        listed = nightcourt("list", "--status", "waiting", "--of", filed.id).out
        assert "held until" in listed
        assert f"by {callback.endpoint_id}" in listed
        [held] = [line for line in nightcourt("endpoints").out.splitlines() if callback.endpoint_id in line]
        assert "named by requests" in held
        assert "is registered: requests named" in nightcourt("disable", callback.endpoint_id).err
        inbox.answer = lambda _: 204
        assert cli(*command.split()[1:]).status == 0
        arrival(inbox, 2)
        wait_until(lambda: client.callback(callback.id).ended_at, within=60, what="it is delivered")
        first, again, second = nightcourt("show", callback.id).out.splitlines()[1:]
        assert first.endswith("throttled 429")
        assert again == "  sent again:"
        assert second.endswith("delivered 204")
        assert callback.endpoint_id not in nightcourt("endpoints").out

    def test_nothing_found(self, cli: Cli, service_at_rest: Service):
        """Where there is no receiver and no callback that is said, and nothing is printed for a program to read."""
        for command, said in (("endpoints", "No receiver is registered"), ("list", "There is no such callback.")):
            found = cli("callbacks", command, "--server", service_at_rest.url, key=service_at_rest.key)
            assert (found.status, found.out) == (0, "")
            assert said in found.err

    def test_what_to_replay(self, cli: Cli, service: Service):
        """Neither an id nor a time, or a time that is none, is a command line that cannot be understood."""
        assert cli("callbacks", "replay", "--server", service.url).status == 2
        assert cli("callbacks", "replay", "--since", "yesterday", "--server", service.url).status == 2


def test_the_sample_receiver(client: Client, secret: str, tmp_path: Path):
    """The example is run as its text says: each event has its effect once, however often it is sent again."""
    with sample_receiver(secret, tmp_path) as sample:
        filed = client.submit(**QUESTION, callback_url=sample.url)
        wait_until(sample.effects, within=60, what="the callback has its effect")
        [callback] = own_callbacks(client, filed.id)
        wait_until(lambda: client.callback(callback.id).ended_at, within=60, what="it is delivered")
        client.replay(callback.id)
        wait_until(lambda: len(client.callback(callback.id).log) == 2, within=60, what="it is delivered again")
        assert sample.effects() == [(filed.id, "comparison.succeeded")]
