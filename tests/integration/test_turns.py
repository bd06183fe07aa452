"""The dispatcher's turns: what it sees to at once, and what it leaves alone."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from support.desk import Desk, a_pace
from support.dockets import batch
from support.waiting import wait_until

from infra import docket, roster
from infra.broker import make_celery
from infra.local.redis import Redis
from infra.meters import Meters
from producer import dispatcher, lifecycle


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the moves that the dispatcher makes, as it makes them; what it does by the clock it does once."""
    made: list[str] = []

    def record(module, name: str) -> None:
        real = getattr(module, name)

        def call(*arguments, **named):
            made.append(name)
            return real(*arguments, **named)

        monkeypatch.setattr(module, name, call)

    for module, name in ((lifecycle, "tend"), (docket, "release"), (docket, "release_bulk"), (docket, "expire")):
        record(module, name)
    monkeypatch.setattr(dispatcher, "_TEND_SECONDS", 3600)
    return made


@contextmanager
def running(desk: Desk, redis_server: Redis) -> Iterator[None]:
    """A dispatcher that looks a hundred times a second, and does not sweep."""
    app, stop = make_celery(redis_server.url, name="test"), threading.Event()
    pace = a_pace(poll=0.01, sweep=3600, hint=3600)
    thread = threading.Thread(
        target=dispatcher.run, args=(dispatcher.Desk(desk.database, app, pace, Meters("dispatcher")), stop)
    )
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=20)
        app.close()


def add_batch(desk: Desk) -> None:
    """Make a batch of one shard, which is not open yet."""
    with desk.database.begin() as connection:
        batch(connection, 1, is_open=False)


def add_worker(desk: Desk) -> None:
    """Put a worker on the roster."""
    with desk.database.begin() as connection:
        roster.report(connection, worker="w", slots=8, bulk_slots=4, engine={})


def states(desk: Desk) -> list[str]:
    """The states of all shards that have not ended."""
    return [row.state for row in desk.rows("SELECT state FROM shards WHERE state <> 'done' ORDER BY id")]


def end_shards(desk: Desk) -> None:
    """Have all shards judged."""
    desk.do("UPDATE shards SET state = 'done', succeeded = 1, ended_at = now()")


class TestBatches:
    def test_each_begins_and_ends_at_once(self, desk: Desk, redis_server: Redis, calls: list[str]):
        """The first batch after none is let go, and ends with its last shard, and so is and does the next."""
        add_worker(desk)
        with running(desk, redis_server):
            for _ in range(3):
                add_batch(desk)
                wait_until(lambda: "released" in states(desk), within=20, what="its shard is let go")
                end_shards(desk)
                wait_until(
                    lambda: not desk.one("SELECT count(*) FROM batches WHERE status = 'in_progress'"),
                    within=20,
                    what="it has ended",
                )
                desk.file()
                wait_until(lambda: states(desk) == ["released"], within=20, what="a turn without a batch")
                end_shards(desk)
        assert calls.count("tend") >= 6

    def test_what_is_out_is_waited_for(self, desk: Desk, redis_server: Redis, calls: list[str]):
        """While all of a batch is out, nothing more is asked of Postgres than whether there is something to do."""
        add_worker(desk)
        with running(desk, redis_server):
            add_batch(desk)
            wait_until(lambda: "released" in states(desk), within=20, what="its shard is let go")
            made = list(calls)
            desk.file()
            wait_until(lambda: states(desk) == ["released"] * 2, within=20, what="another is let go after it")
        assert calls[len(made) :] == ["release"]

    def test_without_a_worker_nothing_is_let_go(self, desk: Desk, redis_server: Redis, calls: list[str]):
        """A batch is opened, and waits for somebody who has room for it."""
        with running(desk, redis_server):
            add_batch(desk)
            desk.file()
            wait_until(lambda: "released" in states(desk), within=20, what="the comparison is let go")
            assert sorted(states(desk)) == ["released", "waiting"]
            assert "release_bulk" not in calls
            add_worker(desk)
            wait_until(lambda: states(desk) == ["released"] * 2, within=20, what="the batch has begun")


def test_an_idle_dispatcher_asks_and_does_nothing(desk: Desk, redis_server: Redis, calls: list[str]):
    """Where nothing is due no move is made."""
    with running(desk, redis_server):
        desk.file()
        wait_until(lambda: states(desk) == ["released"], within=20, what="it has had a turn")
    assert calls == ["release"]
