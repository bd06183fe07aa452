"""What the broker does for its workers beyond what Celery does."""

import signal
from pathlib import Path

import pytest
from kombu.exceptions import OperationalError
from redis.exceptions import ConnectionError as RedisConnectionError

from infra.broker import make_celery
from infra.local.ports import free_port
from infra.local.redis import start_redis
from schemas.message import JUDGE_TASK, QUEUES
from schemas.states import Lane

SLOTS = 3
QUEUE = QUEUES[Lane.INTERACTIVE]


def test_a_worker_sees_that_redis_died_while_all_its_slots_were_taken(tmp_path: Path):
    """Hints in hand that can no longer be acknowledged leave their slots, so that the worker asks Redis again."""
    server = start_redis(tmp_path / "redis", log=tmp_path / "redis.log")
    app = make_celery(server.url, name="test")
    taken = []
    try:
        for shard in range(SLOTS + 1):
            app.send_task(JUDGE_TASK, kwargs={"shard": shard}, queue=QUEUE)
        with app.connection_for_read() as connection, connection.channel() as channel:
            channel.basic_qos(0, SLOTS, False)
            with connection.Consumer([app.amqp.queues[QUEUE]], channel=channel, on_message=taken.append):
                while len(taken) < SLOTS:
                    connection.drain_events(timeout=10)
                server.child.kill()
                for message in taken:
                    message.ack()
                with pytest.raises(RedisConnectionError):
                    connection.drain_events(timeout=10)
    finally:
        server.child.stop(signal.SIGKILL, 10)


def test_who_sends_hints_hears_that_redis_is_not_there():
    """A dispatcher that starts while Redis is away does all that it can without, and is told to end meanwhile."""
    app = make_celery(f"redis://127.0.0.1:{free_port()}/0", name="test", patient=False)
    with pytest.raises(OperationalError):
        app.send_task(JUDGE_TASK, kwargs={"shard": 1}, queue=QUEUE)
    with app.producer_or_acquire() as producer, pytest.raises(OperationalError):
        producer.channel  # noqa: B018 - connects
