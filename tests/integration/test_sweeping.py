"""What the dispatcher does of its own accord, one step at a time, with a real Redis."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import redis
from kombu.exceptions import OperationalError as BrokerError
from sqlalchemy import text
from support.desk import Desk, a_pace
from support.dockets import batch

from infra import roster
from infra.broker import make_celery
from infra.local.redis import Redis
from infra.meters import Meters
from producer import dispatcher


@pytest.fixture
def client(redis_server: Redis) -> Iterator[redis.Redis]:
    """Redis, with nothing in it."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
        yield client


@pytest.fixture
def dispatching(desk: Desk, redis_server: Redis) -> Iterator[dispatcher.Desk]:
    """A dispatcher's desk, where a hint is repeated as soon as it has gone out, if at all."""
    app = make_celery(redis_server.url, name="test")
    pace = a_pace(poll=1, sweep=1, hint=0)
    yield dispatcher.Desk(desk.database, app, pace, Meters("dispatcher"))
    app.close()


def let_shards_go(desk: Desk, dispatching: dispatcher.Desk) -> None:
    """Hand three comparisons out."""
    for _ in range(3):
        desk.file()
    assert dispatcher.release(dispatching, dispatcher.look_around(dispatching)) == 3


def let_callbacks_go(desk: Desk, dispatching: dispatcher.Desk) -> None:
    """Hand three callbacks out."""
    for number in range(3):
        desk.add_endpoint(f"http://127.0.0.{number + 1}:9/")
    desk.tell()
    assert dispatcher.call_back(dispatching) == 4


def test_the_room_is_what_the_workers_have(desk: Desk, dispatching: dispatcher.Desk):
    """A hint for each slot, or eight where no worker is known of; of batches fewer, and some to spare for newcomers."""

    def let_go() -> int:
        return dispatcher.release(dispatching, dispatcher.look_around(dispatching))

    for _ in range(20):
        desk.file()
    assert let_go() == 8
    with desk.database.begin() as connection:
        roster.report(connection, worker="w", slots=12, bulk_slots=8, engine={})
    assert let_go() == 12 - 8
    desk.do("UPDATE shards SET state = 'done', ended_at = now()")
    with desk.database.begin() as connection:
        batch(connection, 20, tenant="large")
    assert let_go() == 8
    with desk.database.begin() as connection:
        for number in range(5):
            batch(connection, 3, tenant=f"late {number}")
    assert let_go() == (12 - 8) // 2


@pytest.mark.parametrize(("queue", "let_go"), [("interactive", let_shards_go), ("callbacks", let_callbacks_go)])
def test_hints_that_nobody_takes_do_not_pile_up(
    desk: Desk,
    dispatching: dispatcher.Desk,
    client: redis.Redis,
    queue: str,
    let_go: Callable[[Desk, dispatcher.Desk], None],
):
    """However long nobody comes for them, each stands in Redis once; those that Redis has lost come again."""
    let_go(desk, dispatching)
    for _ in range(3):
        dispatcher.sweep(dispatching)
        assert client.llen(f"nightcourt:{queue}") == 3
    client.flushall()
    dispatcher.sweep(dispatching)
    assert client.llen(f"nightcourt:{queue}") == 3
    client.lpop(f"nightcourt:{queue}")
    dispatcher.sweep(dispatching)
    assert client.llen(f"nightcourt:{queue}") == 2 + 3


@pytest.mark.parametrize("let_go", [let_shards_go, let_callbacks_go])
def test_what_redis_did_not_take_waits_again(desk: Desk, dispatching: dispatcher.Desk, let_go: Any):
    """Nothing is out that nobody can have heard of: it goes with the first turn after Redis is back."""
    app = make_celery("redis://127.0.0.1:1", name="test")
    with pytest.raises(BrokerError):
        let_go(desk, replace(dispatching, app=app))
    app.close()
    for table in ("shards", "callbacks"):
        assert desk.rows(f"SELECT id FROM {table} WHERE state = 'released'") == []  # noqa: S608


def test_a_sweep_brings_back_what_was_lost(desk: Desk, dispatching: dispatcher.Desk):
    """A shard and a callback whose workers are gone wait again, and what nobody will take is dead."""
    for number in (1, 2):
        desk.add_endpoint(f"http://127.0.0.{number}:9/")
    desk.tell()
    desk.fan_out()
    one, other = desk.release()
    desk.claim_callback(one)
    of_other = "(SELECT endpoint_id FROM callbacks WHERE id = :id)"
    desk.do(f"UPDATE callback_endpoints SET state = 'disabled' WHERE id = {of_other}", id=other)  # noqa: S608
    desk.file()
    desk.claim()
    for table in ("callbacks", "shards"):
        desk.do(f"UPDATE {table} SET lease_until = now() - interval '1 s' WHERE lease_token IS NOT NULL")  # noqa: S608
    dispatcher.sweep(dispatching)
    assert desk.rows("SELECT state, reason FROM callbacks ORDER BY state") == [
        ("dead", "endpoint_disabled"),
        ("waiting", "worker_lost"),
    ]
    assert desk.rows("SELECT state FROM shards WHERE state <> 'done'") == [("waiting",)]


def test_a_deadline_is_seen_to_where_there_are_no_batches(desk: Desk, dispatching: dispatcher.Desk):
    """A comparison whose time is up has ended after the next turn."""
    desk.file(deadline_in=0)
    dispatcher.tend(dispatching, dispatcher.look_around(dispatching))
    assert desk.rows("SELECT status FROM outcomes") == [("expired",)]


def test_cancellations_end_a_few_shards_at_a_time(desk: Desk, dispatching: dispatcher.Desk):
    """However large the batch that is called off, the next turn comes soon."""
    with desk.database.begin() as connection:
        batch(connection, 41)
    desk.do("UPDATE batches SET status = 'cancelling', open = false")
    for expected in (1, 0):
        dispatcher.tend(dispatching, dispatcher.look_around(dispatching))
        assert desk.one("SELECT count(*) FROM shards WHERE state = 'waiting'") == expected


def test_deadlines_end_a_few_shards_at_a_time(desk: Desk, dispatching: dispatcher.Desk):
    """Everybody's release waits meanwhile, as it does where shards are cancelled."""
    for _ in range(41):
        desk.file()
    desk.do("UPDATE shards SET deadline_at = now()")
    left = text("SELECT count(*) FROM shards WHERE state = 'waiting'")
    for expected in (1, 0):
        dispatcher.expire(dispatching)
        with desk.database.connect() as connection:
            assert connection.execute(left).scalar_one() == expected
