"""Redis behind TLS: every client that we have of it speaks TLS, knows whom it speaks to, and says nothing before."""

import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trustme
from chaos.proxy import Proxy
from fastapi.testclient import TestClient
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError
from support.waiting import wait_until

from infra.broker import make_celery
from infra.environment import child_environment
from infra.local.child import start_child
from infra.local.redis import Redis
from infra.settings import Settings
from producer.api.app import create_app
from producer.cli import doctor
from schemas.message import JUDGE_TASK, QUEUES
from schemas.states import Lane

QUEUE = QUEUES[Lane.INTERACTIVE]
HELLO = b"\x16\x03"
"""What a TLS handshake begins with."""


def send(url: str) -> None:
    """Send a hint, as the dispatcher does."""
    app = make_celery(url, name="test")
    with app.producer_or_acquire() as producer:
        app.send_task(JUDGE_TASK, kwargs={"v": 1, "shard": 7}, queue=QUEUE, producer=producer, retry=False)


def take(url: str) -> None:
    """Take a hint, as a worker does."""
    app = make_celery(url, name="test")
    taken = []
    with app.connection_for_read() as connection, connection.channel() as channel:
        with connection.Consumer([app.amqp.queues[QUEUE]], channel=channel, on_message=taken.append):
            connection.drain_events(timeout=10)
        taken[0].ack()


def be_ready(url: str) -> None:
    """Look after Redis, as the API does."""
    stores = {"database_url": "postgresql://127.0.0.1:9/none", "redis_url": url}
    with TestClient(create_app(Settings(**stores, secret_keys="0123456789abcdef" * 4))) as http:
        if (found := http.get("/readyz").json()["redis"]) != "ok":
            raise RedisError(found)


CLIENTS = [send, take, be_ready, doctor._redis]
UNREACHED = (OperationalError, RedisError, OSError)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """A certificate authority of the test's own."""
    return trustme.CA()


@pytest.fixture
def front(redis_server: Redis, authority: trustme.CA) -> Iterator[int]:
    """A port of this machine where Redis is behind TLS, as it has none of its own."""
    terms = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(terms)
    proxy = Proxy()
    yield proxy.link(redis_server.port, tls=terms).port
    proxy.close()


@pytest.fixture
def rediss(front: int, redis_server: Redis, authority: trustme.CA, tmp_path: Path) -> str:
    """The URL of Redis behind TLS, with who vouches for it, and the database in the query too."""
    file = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(file)
    user = redis_server.service_url.partition("://")[2].partition("@")[0]
    return f"rediss://{user}@127.0.0.1:{front}?db=0&ssl_ca_certs={file}"


@pytest.mark.parametrize("client", CLIENTS)
def test_nothing_is_said_before_tls(client: Callable[[str], None]):
    """The first that a server sees is a handshake, and no password."""
    heard = []

    def hear(listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                call, _ = listener.accept()
                with call:
                    heard.append(call.recv(100))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=hear, args=(listener,))
        thread.start()
        with pytest.raises(UNREACHED):
            client(f"rediss://nightcourt:secret@127.0.0.1:{listener.getsockname()[1]}/0")
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)
    assert {each[:2] for each in heard} == {HELLO}


def test_every_client_goes_by_the_options_of_the_url(rediss: str):
    """With the authority that the URL names, a hint is sent and taken, and Redis is found well."""
    for client in CLIENTS:
        client(rediss)


@pytest.mark.parametrize("client", CLIENTS)
def test_a_server_that_nobody_vouches_for_is_told_nothing(client: Callable[[str], None], rediss: str):
    """Without options a certificate is asked for, and has to be good."""
    with pytest.raises(UNREACHED):
        client(rediss.partition("?")[0])


def test_a_worker_takes_hints_behind_tls(rediss: str, database_url: str, tmp_path: Path):
    """One after the other comes through to a worker's loop, which waits for sockets and not for bytes in TLS."""
    log = tmp_path / "worker.log"
    variables = {
        "NIGHTCOURT_ENGINE": "simulated",
        "NIGHTCOURT_LOG_LEVEL": "debug",
        "NIGHTCOURT_DATABASE_URL": database_url,
        "NIGHTCOURT_REDIS_URL": rediss,
    }
    command = [sys.executable, "-P", "-m", "worker.app"]
    with make_celery(rediss, name="test").connection_for_write() as connection:
        connection.default_channel.queue_purge(QUEUE)  # what other tests left there
    worker = start_child("worker", command, log=log, environment=child_environment(variables))
    try:
        for count in range(1, 6):
            send(rediss)
            wait_until(
                lambda count=count: log.read_text().count("hint_without_work") == count, within=60, what="it is taken"
            )
    finally:
        worker.kill()
