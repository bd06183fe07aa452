"""Redis from the wheel: closed to those without the password, and keeping what it was told."""

import os
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from support.processes import processes_of
from support.waiting import wait_until

from infra.broker import make_celery
from infra.local import LocalStackError, StartCancelledError
from infra.local.model import embedded_model
from infra.local.redis import Redis, start_redis
from infra.local.wheels import wheel_file
from schemas.message import JUDGE_TASK, QUEUES, ShardHint
from schemas.states import Lane


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder whose path needs quoting, on which nothing may be left running."""
    yield tmp_path / 'with "quotes" and spaces'
    left = processes_of(tmp_path)
    assert not left


@pytest.fixture
def server(folder: Path) -> Iterator[Redis]:
    """A running server."""
    running = start_redis(folder)
    yield running
    running.stop()


def test_it_is_set_up_as_a_broker(server: Redis) -> None:
    """It writes every second, evicts nothing, and listens on loopback alone."""
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        wanted = {
            "appendonly": "yes",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
            "bind": "127.0.0.1",
            "save": "",
        }
        assert {name: client.config_get(name)[name] for name in wanted} == wanted


def test_a_client_without_the_password_is_refused(server: Redis) -> None:
    """Neither a wrong password nor none opens it."""
    for password in (None, "guess"):
        client = redis.Redis(port=server.port, password=password, retry=Retry(NoBackoff(), 0))
        with client, pytest.raises(redis.AuthenticationError):
            client.ping()


def test_its_secrets_are_private(server: Redis, folder: Path) -> None:
    """Nobody else may read the password or the data, and the password is in no argument and no repr."""
    password = (folder / "password").read_text().strip()
    assert password in server.url
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes.pop("data") == 0o700
    assert modes == dict.fromkeys(("password", "service-password", "redis.conf", "redis.log"), 0o600)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert password not in Path(f"/proc/{server.child.pid}/cmdline").read_text()
    assert password not in repr(server)


def test_what_was_said_survives_an_end_and_a_kill(folder: Path) -> None:
    """A clean end keeps everything; kill -9 keeps what is over a second old."""
    first = start_redis(folder)
    with redis.Redis.from_url(first.url, decode_responses=True) as client:
        client.set("clean", "end")
    first.stop()
    assert first.child.poll() == 0
    second = start_redis(folder)
    with redis.Redis.from_url(second.url, decode_responses=True) as client:
        client.set("hard", "kill")
    time.sleep(1.5)
    os.kill(second.child.pid, signal.SIGKILL)
    assert wait_until(second.child.poll, within=60, what="Redis to be dead") == -signal.SIGKILL
    third = start_redis(folder, port=second.port)
    assert third.url == second.url
    with redis.Redis.from_url(third.url, decode_responses=True) as client:
        assert client.mget("clean", "hard") == ["end", "kill"]
    third.stop()


def test_a_busy_port_is_an_error(server: Redis, tmp_path: Path) -> None:
    """A second server that has to be on the same port says that it cannot, in the words of its log."""
    with pytest.raises(LocalStackError, match=r"Address already in use|not with our password"):
        start_redis(tmp_path / "second", port=server.port)


def test_a_start_can_be_cancelled(folder: Path) -> None:
    """A cancelled start leaves nothing running."""
    with pytest.raises(StartCancelledError):
        start_redis(folder, cancelled=lambda: True)
    assert not processes_of(folder)


def test_the_embedded_model_is_found() -> None:
    """The wheel's model is a GGUF file."""
    with embedded_model().open("rb") as file:
        assert file.read(4) == b"GGUF"


def test_a_missing_wheel_is_named_with_the_way_out() -> None:
    """Whoever lacks a wheel is told which, and what to do."""
    with pytest.raises(LocalStackError, match=r"wheel no-such-wheel is not installed .*: set NIGHTCOURT_MODEL"):
        wheel_file("no-such-wheel", "x.gguf", otherwise="set NIGHTCOURT_MODEL")


MASTERS = (
    *("FLUSHALL", "FLUSHDB", "KEYS *", "CONFIG GET requirepass", "CONFIG SET dir /", "DEBUG SLEEP 0", "SHUTDOWN"),
    *("ACL LIST", "MONITOR", "REPLICAOF NO ONE", "CLIENT LIST", "SAVE", "MODULE LIST", "INFO", "SORT nightcourt:a"),
)


class TestService:
    def test_it_reaches_its_own_keys_alone(self, server: Redis) -> None:
        """Another program's keys are not read, not written and not deleted."""
        with redis.Redis.from_url(server.service_url) as client:
            client.set("nightcourt:mine", "1")
            assert client.get("nightcourt:mine") == b"1"
            for command in (("SET", "theirs", "1"), ("GET", "theirs"), ("DEL", "theirs"), ("PUBLISH", "theirs", "1")):
                with pytest.raises(redis.exceptions.NoPermissionError):
                    client.execute_command(*command)

    def test_it_is_no_master(self, server: Redis) -> None:
        """Nothing that empties, lists, configures, copies or ends the server is open to the service."""
        with redis.Redis.from_url(server.service_url) as client:
            for command in MASTERS:
                with pytest.raises(redis.exceptions.NoPermissionError):
                    client.execute_command(*command.split())

    def test_celery_works_as_it(self, server: Redis) -> None:
        """A message is sent, taken and acknowledged by the service's own login."""
        app = make_celery(server.service_url, name="test")
        taken = []
        with app.connection_for_read() as connection, app.producer_or_acquire() as producer:
            app.send_task(
                JUDGE_TASK, kwargs=ShardHint(shard=1).model_dump(), queue=QUEUES[Lane.BULK], producer=producer
            )
            queue = app.amqp.queues[QUEUES[Lane.BULK]]
            with connection.Consumer([queue], callbacks=[lambda body, message: (taken.append(body), message.ack())]):
                connection.drain_events(timeout=10)
        app.close()
        assert len(taken) == 1
