"""Everything on the way of a callback is killed again and again, and each event still arrives, and counts once."""

import json
import os
import signal
from contextlib import suppress
from pathlib import Path

import httpx2
import pytest
import redis
from support.inbox import Message, open_inbox
from support.sample import sample_receiver
from support.service import QUESTION, Service, running_service
from support.waiting import wait_until

from producer.client import Client

# Short times, so that what a kill leaves behind is taken up again within seconds; for the receiver more than it needs,
# since five answers in a row that come too late, as on a machine that stands still, hold all others back.
IMPATIENT = {"sweep_seconds": 0.5, "hint_seconds": 3.0, "callback_deadline_seconds": 8.0}
VICTIMS = ("callbacks", "dispatcher")


def kill(service: Service, number: int) -> None:
    """Kill one of the two processes, and wait until the next is there."""
    part = VICTIMS[number % len(VICTIMS)]
    pid = service.pid(part)
    with suppress(ProcessLookupError):  # it is between two lives already
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: service.pid(part) != pid, within=30, every=0.2, what=f"{part} is started again")


@pytest.mark.parametrize(
    ("events", "kills"),
    [(300, 4), pytest.param(5000, 24, marks=[pytest.mark.slow, pytest.mark.timeout(900)])],
    ids=["short", "full"],
)
def test_every_event_arrives_and_counts_once(tmp_path: Path, events: int, kills: int):
    """Callback process and dispatcher die by kill -9 in turns, Redis forgets everything twice: nothing is lost."""
    flushes = {kills // 3, 2 * kills // 3}
    with running_service(tmp_path / "data", **IMPATIENT) as service, Client(service.url, api_key=service.key) as client:
        secret = client.rotate_secret().secret
        with sample_receiver(secret, tmp_path) as sample, httpx2.Client(trust_env=False, timeout=60) as onward:

            def tap(message: Message) -> int:
                """Keep what came, and let the sample receiver answer."""
                return onward.post(sample.url, content=message.body, headers=message.headers).status_code

            with open_inbox(tap) as inbox:
                lines = (json.dumps({**QUESTION, "prompt": f"Which, {number}?"}) for number in range(events))
                file = client.upload("\n".join(lines).encode())
                batch = client.create_batch(file.id, callback_url=inbox.url, callback_comparisons=True)
                wait_until(lambda: inbox.messages, within=60, what="the first callback arrives")
                for number in range(kills):
                    kill(service, number)
                    if number in flushes:
                        with redis.Redis.from_url(service.redis_url) as store:
                            store.flushall()
                wait_until(
                    lambda: len(sample.effects()) >= events + 1, within=300, every=0.5, what="every event arrives"
                )
                for status in ("waiting", "released", "sending"):
                    wait_until(
                        lambda status=status: not client.callbacks(status=status).data,
                        within=120,
                        every=0.5,
                        what=f"nothing is {status} any more",
                    )
                messages = list(inbox.messages)
                effects = sample.effects()
            assert client.callbacks(status="dead").data == []
            comparisons = {comparison.id for comparison in client.batch_results(batch.id)}
    # Every event at least once, each under one id with one body, its effect exactly once.
    assert len(comparisons) == events
    assert sorted(effects) == sorted(
        [(each, "comparison.succeeded") for each in comparisons] + [(batch.id, "batch.completed")]
    )
    bodies = {(message.id, message.body) for message in messages}
    assert len(bodies) == len({message.id for message in messages}) == events + 1
