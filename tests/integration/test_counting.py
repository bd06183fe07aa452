"""What judging, dispatching and calling back count while they do it."""

import threading
from collections.abc import Iterator

import pytest
import redis
from sqlalchemy import Engine, text
from support.court import Court, ScriptedEngine, comparison
from support.desk import Desk, a_pace
from support.inbox import Inbox
from support.series import series
from support.waiting import wait_until

from infra import metrics
from infra.broker import make_celery
from infra.database import connect
from infra.local.ports import free_port
from infra.local.redis import Redis
from infra.meters import Meters
from producer import dispatcher
from worker.callbacks import deliver
from worker.engines.base import EngineError, EngineGoneError
from worker.judging import judge_shard


class TestJudging:
    def test_a_shard_that_is_judged_counts_once(self, court: Court):
        """A claim, a run that finished, and each line by how it ended."""
        court.file(comparison(1), comparison(2, response_a="<alpha> " * 2000))
        court.sit()
        read = series(court.bench.meters)
        assert read["nightcourt_claims_total", ("interactive",)] == 1
        assert read["nightcourt_shard_runs_total", ("finished", "interactive")] == 1
        assert read["nightcourt_shard_run_seconds_count", ("interactive",)] == 1
        assert read["nightcourt_outcomes_total", ("interactive", "succeeded")] == 1
        assert read["nightcourt_outcomes_total", ("interactive", "context_length_exceeded")] == 1

    def test_verdicts_that_are_used_again_are_told_apart(self, court: Court):
        """The second asking of the same is a cache hit."""
        for _ in range(2):
            court.file(comparison(1))
            court.sit()
        read = series(court.bench.meters)
        assert read["nightcourt_outcomes_total", ("interactive", "succeeded")] == 2
        assert read["nightcourt_verdicts_reused_total", ("interactive",)] == 1

    def test_a_hint_for_nothing_counts_as_one(self, court: Court):
        """Nothing was claimed."""
        judge_shard(court.bench, 12345)
        read = series(court.bench.meters)
        assert read["nightcourt_hints_without_work_total", ()] == 1
        assert read["nightcourt_claims_total", ("interactive",)] == 0

    def test_failures_count_by_what_came_of_them(self, court: Court, engine: ScriptedEngine):
        """Two lines are split; each is then tried again, and errored after its third attempt."""

        def fail(_: list[str]) -> None:
            raise EngineError("as told")

        engine.while_working = fail
        court.file(comparison(1), comparison(2))
        court.sit_until_quiet()
        read = series(court.bench.meters)
        assert read["nightcourt_failed_attempts_total", ("split",)] == 1
        assert read["nightcourt_failed_attempts_total", ("retried",)] == 4
        assert read["nightcourt_failed_attempts_total", ("errored",)] == 2
        assert read["nightcourt_outcomes_total", ("interactive", "engine_failed")] == 2
        assert read["nightcourt_shard_runs_total", ("failed", "interactive")] == 7

    def test_an_engine_that_is_gone_counts_as_a_loss(self, court: Court, engine: ScriptedEngine):
        """What the worker held goes back."""

        def go(_: list[str]) -> None:
            raise EngineGoneError("as told")

        engine.while_working = go
        court.file(comparison(1))
        with pytest.raises(EngineGoneError):
            court.sit()
        assert series(court.bench.meters)["nightcourt_losses_total", ("retried",)] == 1

    def test_a_write_that_is_refused_counts_as_stale(self, court: Court, engine: ScriptedEngine):
        """Its run ended as refused, and no outcome is counted."""
        engine.while_working = lambda _: court.connection.execute(
            text("UPDATE shards SET lease_token = nextval('lease_tokens') WHERE state = 'running'")
        )
        court.file(comparison(1))
        court.sit()
        read = series(court.bench.meters)
        assert read["nightcourt_stale_writes_refused_total", ()] == 1
        assert read["nightcourt_shard_runs_total", ("refused", "interactive")] == 1
        assert read["nightcourt_outcomes_total", ("interactive", "succeeded")] == 0

    def test_what_is_given_back_is_counted(self, court: Court, engine: ScriptedEngine):
        """A worker that is told to end between two steps gives the rest back."""
        engine.step_tokens = 10
        engine.while_working = lambda _: court.bench.draining.set()
        court.file(comparison(1), comparison(2))
        court.sit()
        read = series(court.bench.meters)
        assert read["nightcourt_shards_given_back_total", ()] == 1
        assert read["nightcourt_outcomes_total", ("interactive", "succeeded")] == 1


@pytest.fixture
def at_work(
    database: Engine, database_url: str, redis_server: Redis
) -> Iterator[tuple[dispatcher.Desk, threading.Event]]:
    """A dispatcher's desk at short times, and what ends it."""
    app = make_celery(redis_server.url, name="test")
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
    own = connect(database_url, application="dispatcher")
    pace = a_pace(poll=0.01, sweep=0.05, hint=0.2)
    yield dispatcher.Desk(own, app, pace, Meters("dispatcher")), threading.Event()
    app.close()
    own.dispose()


class TestDispatching:
    def test_turns_and_hints_are_counted(
        self, at_work: tuple[dispatcher.Desk, threading.Event], court: Court, redis_server: Redis
    ):
        """A hint that is lost is sent again, a lease that runs out is a loss, and a deadline that passes is told."""
        desk, stop = at_work
        court.file(comparison(1))
        thread = threading.Thread(target=dispatcher.run, args=(desk, stop))
        thread.start()
        try:
            with redis.Redis.from_url(redis_server.url) as client:
                wait_until(lambda: client.delete("nightcourt:interactive"), within=20, what="the hint is lost")
            wait_until(
                lambda: series(desk.meters)["nightcourt_hints_total", ("interactive", "again")] > 0,
                within=20,
                what="the hint is sent again",
            )
            court.connection.execute(
                text("""UPDATE shards SET state = 'running', attempt = 1, lease_token = 1, lease_owner = 'w',
                        lease_until = now() - interval '1 s'""")
            )
            wait_until(
                lambda: series(desk.meters)["nightcourt_losses_total", ("retried",)] > 0,
                within=20,
                what="the lease is found to have run out",
            )
            court.connection.execute(text("UPDATE shards SET deadline_at = now()"))
            wait_until(
                lambda: series(desk.meters)["nightcourt_expired_comparisons_total", ()] == 1,
                within=20,
                what="the deadline is found to have passed",
            )
        finally:
            stop.set()
            thread.join(timeout=20)
        read = series(desk.meters)
        assert read["nightcourt_hints_total", ("interactive", "release")] >= 1
        assert read["nightcourt_leases_lapsed_total", ("shard",)] == 1
        assert read["nightcourt_dispatcher_turn_seconds_count", ()] >= 2

    def test_the_time_without_redis_is_counted(self, at_work: tuple[dispatcher.Desk, threading.Event], court: Court):
        """From the turn that missed it, to the next."""
        desk, stop = at_work
        away = make_celery(f"redis://127.0.0.1:{free_port()}/0", name="test")
        without = dispatcher.Desk(desk.database, away, desk.pace, desk.meters)
        court.file(comparison(1))
        thread = threading.Thread(target=dispatcher.run, args=(without, stop))
        thread.start()
        try:
            wait_until(
                lambda: series(desk.meters)["nightcourt_unreachable_seconds_total", ("redis",)] >= 1,
                within=20,
                what="Redis is missed",
            )
        finally:
            stop.set()
            thread.join(timeout=20)
            away.close()
        assert series(desk.meters)["nightcourt_unreachable_seconds_total", ("postgres",)] == 0
        assert court.shards() == [("waiting", 0)]


class TestCallingBack:
    def test_attempts_count_by_how_they_ended(self, desk: Desk, inbox: Inbox):
        """With how long the first try was in coming, which a second or a replay is not."""
        desk.add_endpoint(inbox.url)
        inbox.answer = lambda _: 503 if len(inbox.messages) == 1 else 204
        desk.tell()
        courier = desk.courier()
        desk.fan_out()
        for shift in (0.0, 60.0):
            for callback in desk.release(shift):
                deliver(courier, callback)
        read = series(courier.meters)
        assert read["nightcourt_callback_attempts_total", ("bad_status",)] == 1
        assert read["nightcourt_callback_attempts_total", ("delivered",)] == 1
        assert read["nightcourt_callback_attempt_seconds_count", ()] == 2
        assert read["nightcourt_callback_first_try_seconds_count", ()] == 1
        assert 0 <= read["nightcourt_callback_first_try_seconds_sum", ()] < 30

    def test_what_our_own_rules_refuse_is_told_apart(self, desk: Desk):
        """An address that callbacks may not go to is `refused`, and nothing was connected to."""
        endpoint = desk.add_endpoint("http://127.0.0.1:9/")
        desk.do("UPDATE callback_endpoints SET url = 'http://169.254.169.254/' WHERE id = :id", id=endpoint)
        desk.tell()
        desk.fan_out()
        courier = desk.courier()
        for callback in desk.release():
            deliver(courier, callback)
        assert series(courier.meters)["nightcourt_callback_attempts_total", ("refused",)] == 1

    def test_a_receiver_that_is_gone_is_disabled_and_its_callback_dead(self, desk: Desk, inbox: Inbox):
        """Both are counted."""
        desk.add_endpoint(inbox.url)
        inbox.answer = lambda _: 410
        desk.tell()
        desk.fan_out()
        courier = desk.courier()
        for callback in desk.release():
            deliver(courier, callback)
        read = series(courier.meters)
        assert read["nightcourt_callback_attempts_total", ("gone",)] == 1
        assert read["nightcourt_callbacks_dead_total", ()] == 1
        assert read["nightcourt_callback_endpoints_disabled_total", ()] == 1
        assert metrics.CALLBACKS_DEAD.processes == ("callbacks",)
