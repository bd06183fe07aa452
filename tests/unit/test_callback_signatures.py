"""Signatures: what we sign anybody can verify, and what we verify anybody could have signed."""

import base64
import json
import os
from datetime import UTC, datetime, timedelta
from uuid import UUID

import openai
import pytest
import standardwebhooks
import svix

from producer.client import CallbackRefused, verify_callback
from schemas.callback import EventType, event_body
from worker.callbacks import sign

# The published example: the test vector of Standard Webhooks' reference libraries, Svix's documentation included.
VECTOR = {
    "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    "id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
    "timestamp": 1614265330,
    "body": '{"test": 2432232314}',
    "signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
}
EVENT = UUID("0197f3c2a5d47b1c8e6f0a1b2c3d4e5f")
FILING = UUID("0197f3c2a5d47b1c8e6f0a1b2c3d4e60")
AT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def new_secret() -> str:
    """A secret of the form that endpoints get."""
    return "whsec_" + base64.b64encode(os.urandom(32)).decode()


SECRET = new_secret()
BODY = event_body(EVENT, EventType.COMPARISON_SUCCEEDED, AT, FILING, 0)
ID = f"evt_{EVENT.hex}"


def signed(*secrets: str, ago: float = 0.0, body: bytes = BODY) -> dict[str, str]:
    """The headers of an attempt made so many seconds ago."""
    return sign(ID, body, list(secrets or [SECRET]), datetime.now(UTC) - timedelta(seconds=ago))


class TestOthersVerifyOurs:
    def test_standardwebhooks(self):
        """The reference library of Standard Webhooks accepts it."""
        assert standardwebhooks.Webhook(SECRET).verify(BODY, signed())["id"] == ID

    def test_svix(self):
        """Svix's library accepts it."""
        svix.Webhook(SECRET).verify(BODY, signed())

    def test_openai(self):
        """OpenAI's client accepts it, and reads it as one of the events that it knows the shape of."""
        client = openai.OpenAI(api_key="unused", webhook_secret=SECRET)
        client.webhooks.verify_signature(BODY.decode(), signed())
        batch = event_body(EVENT, EventType.BATCH_COMPLETED, AT, FILING, 0)
        event = client.webhooks.unwrap(batch.decode(), signed(body=batch))
        assert event.type == "batch.completed"
        assert event.data.id == f"batch_{FILING.hex}"
        assert event.created_at == int(AT.timestamp())

    def test_while_a_secret_rotates(self):
        """With two signatures each library accepts it by either secret, and by no third."""
        old = new_secret()
        headers = signed(SECRET, old)
        for secret in (SECRET, old):
            standardwebhooks.Webhook(secret).verify(BODY, headers)
            svix.Webhook(secret).verify(BODY, headers)
            openai.OpenAI(api_key="unused", webhook_secret=secret).webhooks.verify_signature(BODY.decode(), headers)
        with pytest.raises(standardwebhooks.WebhookVerificationError):
            standardwebhooks.Webhook(new_secret()).verify(BODY, headers)

    def test_the_published_vector(self):
        """The published id, time, body and secret give the published signature."""
        made = sign(
            VECTOR["id"],
            VECTOR["body"].encode(),
            [VECTOR["secret"]],
            datetime.fromtimestamp(VECTOR["timestamp"], tz=UTC),
        )
        assert made["webhook-signature"] == VECTOR["signature"]
        assert made["webhook-timestamp"] == str(VECTOR["timestamp"])


class TestWeVerifyOurs:
    def test_what_was_sent(self):
        """A callback as it came gives its event."""
        event = verify_callback(BODY, signed(), SECRET)
        assert (event.id, event.type, event.timestamp) == (ID, "comparison.succeeded", AT)
        assert event.data.id == f"cmp_{FILING.hex}"

    def test_headers_in_any_case(self):
        """Servers spell header names as they like."""
        verify_callback(BODY, {name.title(): value for name, value in signed().items()}, SECRET)

    def test_any_of_several_secrets(self):
        """A receiver that changes from one secret to the next gives both."""
        verify_callback(BODY, signed(), [new_secret(), SECRET])

    def test_the_published_vector(self, monkeypatch: pytest.MonkeyPatch):
        """The published signature is accepted at the published time, though what it signs is no event of ours."""

        class Then(datetime):
            @classmethod
            def now(cls, tz=None):
                return datetime.fromtimestamp(VECTOR["timestamp"], tz=tz)

        monkeypatch.setattr("standardwebhooks.webhooks.datetime", Then)
        headers = {
            "webhook-id": VECTOR["id"],
            "webhook-timestamp": str(VECTOR["timestamp"]),
            "webhook-signature": VECTOR["signature"],
        }
        with pytest.raises(CallbackRefused, match="signed, but no event"):
            verify_callback(VECTOR["body"], headers, VECTOR["secret"])
        with pytest.raises(CallbackRefused, match="No matching signature"):
            verify_callback(VECTOR["body"] + " ", headers, VECTOR["secret"])

    def test_an_event_of_a_later_version(self):
        """A type and a field that are not known yet are no reason to refuse."""
        body = json.dumps({**json.loads(BODY), "type": "comparison.reconsidered", "more": 1}).encode()
        assert verify_callback(body, signed(body=body), SECRET).type == "comparison.reconsidered"


def changed(**headers: str) -> dict[str, str]:
    """Our headers, some of them changed."""
    return {**signed(), **{name.replace("_", "-"): value for name, value in headers.items()}}


REFUSED = {
    "another body": lambda: (BODY.replace(b"succeeded", b"cancelled"), signed(), SECRET),
    "a byte more": lambda: (BODY + b" ", signed(), SECRET),
    "another id": lambda: (BODY, changed(webhook_id="evt_0"), SECRET),
    "another time": lambda: (BODY, changed(webhook_timestamp=str(int(datetime.now(UTC).timestamp()) - 60)), SECRET),
    "another secret": lambda: (BODY, signed(new_secret()), SECRET),
    "sent again after six minutes": lambda: (BODY, signed(ago=360), SECRET),
    "from the future": lambda: (BODY, signed(ago=-360), SECRET),
    "no signature": lambda: (BODY, {**signed(), "webhook-signature": ""}, SECRET),
    "no headers": lambda: (BODY, {}, SECRET),
    "a signature without a comma": lambda: (BODY, changed(webhook_signature="v1"), SECRET),
    "a signature that is no base64": lambda: (BODY, changed(webhook_signature="v1,é"), SECRET),
    "a signature of another kind": lambda: (BODY, changed(webhook_signature="v1a,AAAA"), SECRET),
    "a time that is none": lambda: (BODY, changed(webhook_timestamp="nan"), SECRET),
    "a time with an exponent": lambda: (BODY, changed(webhook_timestamp="1e999"), SECRET),
    "a body that is no text": lambda: (b"\xff" + BODY, signed(), SECRET),
    "no secret": lambda: (BODY, signed(), []),
    "a secret that is none": lambda: (BODY, signed(), "secret"),
    "an empty secret": lambda: (BODY, signed(), "whsec_"),
    "a secret that is no base64": lambda: (BODY, signed(), "whsec_é"),
}


class TestRefused:
    @pytest.mark.parametrize("name", REFUSED)
    def test_what_is_not_ours(self, name: str):
        """Tampered, stale, foreign or broken: always the same exception, and never another."""
        body, headers, secret = REFUSED[name]()
        with pytest.raises(CallbackRefused):
            verify_callback(body, headers, secret)

    def test_the_message_tells_no_secret(self):
        """What is raised may be logged by whoever receives it."""
        with pytest.raises(CallbackRefused) as refused:
            verify_callback(BODY + b"x", signed(), SECRET)
        said = str(refused.value)
        assert SECRET not in said
        assert "v1," not in said


class TestBody:
    """The bytes of a body are made anew at each attempt, so they must never change. A change here breaks a promise."""

    def test_a_single_comparison(self):
        """Thin: what happened, when, to what; in this order, to this byte."""
        assert BODY == (
            b'{"id":"evt_0197f3c2a5d47b1c8e6f0a1b2c3d4e5f","object":"event","type":"comparison.succeeded",'
            b'"timestamp":"2026-01-02T03:04:05.678901Z","created_at":1767323045,'
            b'"data":{"id":"cmp_0197f3c2a5d47b1c8e6f0a1b2c3d4e60","object":"comparison"}}'
        )

    def test_a_comparison_of_a_batch(self):
        """It names its batch."""
        data = json.loads(event_body(EVENT, EventType.COMPARISON_ERRORED, AT, FILING, 7))["data"]
        assert data == {
            "id": f"cmp_{FILING.hex}_7",
            "object": "comparison",
            "batch_id": f"batch_{FILING.hex}",
        }

    @pytest.mark.parametrize("type_", [each for each in EventType if each.startswith("batch.")])
    def test_a_batch(self, type_: EventType):
        """A batch is named by its own id."""
        data = json.loads(event_body(EVENT, type_, AT, FILING, 0))["data"]
        assert data == {"id": f"batch_{FILING.hex}", "object": "batch"}

    def test_any_zone_gives_the_same_bytes(self):
        """The database's zone does not matter."""
        elsewhere = AT.astimezone(datetime.now().astimezone().tzinfo)
        assert event_body(EVENT, EventType.COMPARISON_SUCCEEDED, elsewhere, FILING, 0) == BODY
