"""A worker that is told to end: it begins nothing more, and gives the rest back at no attempt's cost."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from sqlalchemy import text
from support.court import comparison
from support.desk import a_pace
from support.dockets import batch
from support.waiting import wait_until

from infra import docket, roster
from infra.broker import make_celery
from infra.meters import Meters
from producer import dispatcher
from schemas.states import Lane
from worker.heartbeat import keep_beating


class TestAWorkerThatIsToEnd:
    def test_it_claims_nothing_more(self, court, engine):
        """A hint that arrives after the word to end is left to others."""
        court.bench.draining.set()
        court.file(comparison())
        court.sit()
        assert engine.asked == []
        assert court.shards() == [("released", 0)]

    def test_it_finishes_the_step_in_hand_and_gives_the_rest_back(self, court, engine):
        """What was judged is stored, the rest waits again, and no attempt is burnt."""
        engine.step_tokens = 1
        engine.while_working = lambda _: court.bench.draining.set()
        court.file(*(comparison(number, prompt=f"Which of {number}?") for number in (1, 2, 3)))
        court.sit()
        assert sorted(court.outcomes()) == [1]
        assert court.shards() == [("waiting", 0)]
        court.bench.draining.clear()
        engine.while_working = lambda _: None
        court.sit()
        assert sorted(court.outcomes()) == [1, 2, 3]
        assert len(engine.asked) == 3

    def test_a_shard_in_its_last_step_is_finished(self, court, engine):
        """There is nothing to give back of a shard whose last step is being judged."""
        engine.while_working = lambda _: court.bench.draining.set()
        court.file(comparison())
        court.sit()
        assert court.outcome().status == "succeeded"
        assert court.shards() == [("done", 1)]

    def test_a_careful_one_gives_the_rest_back(self, court, engine):
        """A drain between two lines burns no attempt and leaves no note."""
        engine.while_working = lambda _: court.bench.draining.set()
        court.file(*(comparison(number, prompt=f"Question {number}?") for number in (1, 2, 3)))
        work_carefully(court)
        court.sit()
        assert sorted(court.outcomes()) == [1]
        assert state(court) == ("waiting", 0, None)

    @pytest.mark.parametrize("careful", [False, True])
    def test_whoever_stands_in_line_for_the_engine_begins_nothing(self, court, engine, careful):
        """A turn at the engine that comes after the word to end is not taken, so that a drain is one step long."""
        gate = court.bench.gate
        court.file(comparison())
        if careful:
            work_carefully(court)
        with ThreadPoolExecutor(1) as pool:
            with gate.alone(Lane.INTERACTIVE):
                sitting = pool.submit(court.sit)
                wait_until(lambda: any(gate._lines.values()), within=60, every=0.005, what="it stands in line")
                court.bench.draining.set()
            sitting.result(60)
        assert engine.asked == []
        assert state(court) == ("waiting", 0, None)


class TestItsRoom:
    def test_it_leaves_the_roster_at_once_and_keeps_its_leases(self, court, engine):
        """Nothing is let go any more for a worker that is to end, long before its next beat."""

        def drain(_: list[str]) -> None:
            stop = threading.Event()
            with ThreadPoolExecutor(1) as pool:
                rest = {"slots": 4, "bulk_slots": 3, "every": 3600, "stop": stop}
                pool.submit(keep_beating, court.bench, court.bench.database, **rest)
                try:
                    wait_until(lambda: present(court) == 1, within=60, what="it is on the roster")
                    court.connection.execute(text("UPDATE shards SET lease_until = now()"))
                    court.bench.draining.set()
                    wait_until(lambda: present(court) == 0, within=60, what="it has left the roster")
                finally:
                    stop.set()
                    court.bench.draining.set()
            renewed.append(court.connection.execute(text("SELECT lease_until > now() FROM shards")).scalar_one())

        renewed: list[bool] = []
        engine.while_working = drain
        court.file(comparison())
        court.sit()
        assert renewed == [True]

    def test_what_it_gives_back_does_not_fill_the_others(self, connection, database, redis_server):
        """A batch has no more shards out than the workers that stay have bulk slots."""
        batch(connection, 12)
        for worker in ("leaves", "stays"):
            roster.report(connection, worker=worker, slots=8, bulk_slots=4, engine={})
        pace = a_pace(poll=0.01, sweep=60, hint=60, worker=60)
        with closing(make_celery(redis_server.url, name="test")) as app:
            desk = dispatcher.Desk(database, app, pace, Meters("dispatcher"))
            stop = threading.Event()
            with ThreadPoolExecutor(1) as pool:
                pool.submit(dispatcher.run, desk, stop)
                try:
                    wait_until(lambda: len(released(connection)) == 8, within=60, what="both have all they may")
                    roster.leave(connection, worker="leaves")
                    for shard in released(connection):
                        claim = docket.claim(connection, shard, worker="leaves", lease_seconds=60)
                        docket.give_back(connection, claim.lease)
                    wait_until(lambda: len(released(connection)) >= 4, within=60, what="the one that stays has more")
                finally:
                    stop.set()
        assert len(released(connection)) == 4


def released(connection) -> list[int]:
    """Name the shards that are let go."""
    return list(connection.execute(text("SELECT id FROM shards WHERE state = 'released' ORDER BY id")).scalars())


def present(court) -> int:
    """Count the workers on the roster."""
    return roster.capacity(court.connection, within=60).workers


def work_carefully(court) -> None:
    """Have what is filed worked line by line, as after the loss of a worker."""
    court.connection.execute(text("UPDATE shards SET losses = ARRAY['attempt 1']"))


def state(court) -> tuple[str, int, int | None]:
    """Read where the only shard stands, after how many attempts, and which line is noted."""
    return tuple(court.connection.execute(text("SELECT state, attempt, at_work FROM shards")).one())
