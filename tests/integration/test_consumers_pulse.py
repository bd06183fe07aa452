"""The pulse of what takes hints: it beats as long as hints are taken or Redis is waited for, and then no more."""

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from support.waiting import wait_until

from infra.broker import make_celery
from infra.environment import child_environment
from infra.local.child import Child, start_child
from infra.local.redis import Redis, start_redis
from infra.roles import KEY_PREFIX
from schemas.message import CALLBACK_QUEUE, CALLBACK_TASK, JUDGE_TASK, QUEUES
from schemas.states import Lane

# What takes hints stands still with the first: a stand-in for whatever might stop that thread alone.
PROGRAM = """
import sys, threading
from importlib import import_module
from pathlib import Path
from celery import signals

@signals.task_received.connect(weak=False)
def stand_still(**_):
    Path(sys.argv[2]).touch()
    threading.Event().wait()

app = import_module(sys.argv[1])
app._STILL_SECONDS = 2.0  # of the judge, which does not ask so soon
app.main()
"""


@dataclass(frozen=True)
class Consumer:
    """A process that takes hints."""

    child: Child
    pulse: Path
    stands_still: Path
    log: Path

    def beats(self) -> None:
        """Wait for a beat from now on."""
        wait_until(self.pulse.exists, within=60, what="a beat")
        os.utime(self.pulse, (1, 1))
        wait_until(lambda: self.pulse.stat().st_mtime > 1, within=60, what="another beat")

    def is_refused(self, error: str) -> None:
        """Wait until Redis answered with an error, and until it beats after that."""
        wait_until(lambda: error in self.log.read_text(), within=60, what="it is refused")
        self.beats()

    def takes(self, app: Celery, task: str, queue: str, message: dict[str, Any]) -> None:
        """Send it a hint, and wait until it is taken by the process that was there all the time."""
        app.send_task(task, kwargs=message, queue=queue)
        wait_until(self.stands_still.exists, within=60, what="the hint is taken")
        assert self.child.wait(0) is None


Start = Callable[[str, str], Consumer]


@pytest.fixture
def start(database_url: str, tmp_path: Path) -> Iterator[Start]:
    """Start a process on the test's own database, and end it after the test."""
    begun = []

    def start(module: str, redis_url: str) -> Consumer:
        pulse, stands_still = tmp_path / "pulse", tmp_path / "stands-still"
        variables = {
            "NIGHTCOURT_ENGINE": "simulated",
            "NIGHTCOURT_DATABASE_URL": database_url,
            "NIGHTCOURT_REDIS_URL": redis_url,
            "NIGHTCOURT_PULSE_FILE": str(pulse),
            "NIGHTCOURT_HEARTBEAT_SECONDS": "1",
            "NIGHTCOURT_SECRET_KEYS": "0123456789abcdef" * 4,
        }
        command = [sys.executable, "-P", "-c", PROGRAM, module, str(stands_still)]
        log = tmp_path / "log"
        begun.append(start_child(module, command, log=log, environment=child_environment(variables)))
        return Consumer(begun[-1], pulse, stands_still, log)

    yield start
    for child in begun:
        child.kill()


@pytest.fixture
def spoilt(tmp_path: Path) -> Iterator[Redis]:
    """A Redis of the test's own, to be spoilt."""
    server = start_redis(tmp_path / "redis")
    yield server
    server.stop()


def await_consumer(client: redis.Redis) -> None:
    """Wait until somebody waits for hints."""
    wait_until(lambda: "brpop" in {each["cmd"] for each in client.client_list()}, within=60, what="it waits")


EACH = pytest.mark.parametrize(
    ("module", "task", "queue", "message"),
    [
        ("worker.callbacks_app", CALLBACK_TASK, CALLBACK_QUEUE, {"v": 1, "callback": "0" * 32}),
        ("worker.app", JUDGE_TASK, QUEUES[Lane.INTERACTIVE], {"v": 1, "shard": 1}),
    ],
)


@EACH
def test_a_consumer_that_stands_still_has_no_pulse(
    start: Start, redis_server: Redis, module: str, task: str, queue: str, message: dict[str, Any]
):
    """It beats as long as it waits for hints, and no more once the thread that takes them does not come back."""
    with redis.from_url(redis_server.url) as client:
        client.flushdb()  # what another test left there would be taken first
    consumer = start(module, redis_server.url)
    consumer.beats()
    consumer.beats()
    make_celery(redis_server.url, name="test").send_task(task, kwargs=message, queue=queue)
    wait_until(consumer.stands_still.exists, within=60, what="the hint is taken")

    def still() -> bool:
        os.utime(consumer.pulse, (1, 1))
        assert consumer.child.wait(4.0) is None
        return consumer.pulse.stat().st_mtime == 1

    wait_until(still, within=60, what="its last beat was")


@pytest.mark.parametrize("module", ["worker.callbacks_app", "worker.app"])
def test_a_consumer_that_waits_for_redis_has_a_pulse(start: Start, module: str):
    """A restart would not bring Redis back."""
    consumer = start(module, "redis://127.0.0.1:9/0")
    consumer.beats()
    consumer.beats()


@EACH
def test_a_redis_that_becomes_a_replica_ends_no_consumer(
    start: Start, spoilt: Redis, module: str, task: str, queue: str, message: dict[str, Any]
):
    """As where a server is failed over: whoever waits there is refused, goes on asking, and is there after it."""
    consumer = start(module, spoilt.url)
    with redis.from_url(spoilt.url) as client:
        await_consumer(client)
        client.execute_command("REPLICAOF", "127.0.0.1", "9")
        consumer.is_refused("ReadOnlyError")
        client.execute_command("REPLICAOF", "NO", "ONE")
    consumer.takes(make_celery(spoilt.url, name="test"), task, queue, message)


def test_a_full_redis_ends_no_consumer(start: Start, spoilt: Redis):
    """A hint that came before is taken from its list, cannot be noted as taken, and the consumer is there after it."""
    app, aside = make_celery(spoilt.url, name="test"), QUEUES[Lane.INTERACTIVE]
    hint = {"v": 1, "callback": "0" * 32}
    consumer = start("worker.callbacks_app", spoilt.url)
    with redis.from_url(spoilt.url) as client:
        await_consumer(client)
        app.send_task(CALLBACK_TASK, kwargs=hint, queue=aside)
        client.config_set("maxmemory", "1")
        client.rename(f"{KEY_PREFIX}{aside}", f"{KEY_PREFIX}{CALLBACK_QUEUE}")  # takes no memory, and so is let
        consumer.is_refused("OutOfMemoryError")
        client.config_set("maxmemory", "0")
    consumer.takes(app, CALLBACK_TASK, CALLBACK_QUEUE, hint)


def test_a_redis_that_refuses_a_consumer_for_good_ends_it(start: Start, spoilt: Redis):
    """Connecting anew would mend nothing, and a pulse that beats meanwhile would hide it."""
    consumer = start("worker.callbacks_app", spoilt.url)
    with redis.from_url(spoilt.url) as client:
        await_consumer(client)
        client.execute_command("ACL", "SETUSER", "default", "-brpop")
    assert consumer.child.wait(60) not in {None, 0}
    assert "NoPermissionError" in consumer.log.read_text()
