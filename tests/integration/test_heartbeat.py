"""The heartbeat of a worker: it keeps the leases in hand and the worker's place on the roster."""

import threading
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from structlog.testing import capture_logs
from support.court import comparison
from support.waiting import wait_until

from infra import docket, losses, roster
from infra.settings import Settings
from worker import heartbeat
from worker.app import open_databases
from worker.heartbeat import beat, keep_beating


class TestTheHeartbeat:
    def test_it_renews_what_is_in_hand(self, court, engine):
        """A beat while the engine works prolongs the lease, so that the sweep leaves the shard alone."""

        def lapse_and_beat(_: list[str]) -> None:
            court.connection.execute(text("UPDATE shards SET lease_until = now() - interval '1 s'"))
            beat(court.bench, court.bench.database, slots=4, bulk_slots=3)
            assert losses.reclaim(court.connection, max_attempts=3, limit=9).total() == 0

        engine.while_working = lapse_and_beat
        court.file(comparison())
        court.sit()
        assert court.outcome().status == "succeeded"
        assert court.bench.leases == set()

    def test_it_reports_the_worker(self, court):
        """The roster counts a worker once, however often it beats, with what it can take."""
        beat(court.bench, court.bench.database, slots=4, bulk_slots=3)
        beat(court.bench, court.bench.database, slots=4, bulk_slots=3)
        assert roster.capacity(court.connection, within=60) == roster.Capacity(workers=1, slots=4, bulk_slots=3)
        [present] = roster.present(court.connection, within=60)
        assert (present["id"], present["engine"]["engine"]) == ("w1", "scripted")

    def test_it_says_which_lease_does_not_hold(self, court, engine):
        """A lease that was lost is logged at the next beat, and the work goes on to be refused."""
        filing_id = court.file(comparison())

        def cancel_and_beat(_: list[str]) -> None:
            docket.cancel(court.connection, tenant="default", filing_id=filing_id)
            beat(court.bench, court.bench.database, slots=4, bulk_slots=3)

        engine.while_working = cancel_and_beat
        with capture_logs() as logs:
            court.sit()
        assert [each["event"] for each in logs] == ["lease_not_renewed", "stale_write_refused"]

    def test_it_waits_for_no_slot(self, court, database_url):
        """Many slots share few connections, and where all of these are taken the heart has its own."""
        slots, own = open_databases(Settings(database_url=database_url, slots=80))
        bench = replace(court.bench, database=slots)
        with ExitStack() as taken:
            for _ in range(13):
                taken.enter_context(slots.connect())
            beat(bench, own, slots=80, bulk_slots=64)
            there = text("""
                SELECT count(*) FROM pg_stat_activity
                WHERE datname = current_database() AND application_name = 'nightcourt-worker'
            """)
            assert court.connection.execute(there).scalar_one() == 14
            with pytest.raises(PoolTimeoutError):
                slots.connect()
        slots.dispose()
        own.dispose()

    def test_it_goes_on_until_it_is_told_to_stop(self, court):
        """The worker is seen again and again, and the thread ends when it is asked to."""
        stop = threading.Event()
        heart = threading.Thread(
            target=keep_beating,
            args=(court.bench, court.bench.database),
            kwargs={"slots": 4, "bulk_slots": 3, "every": 0.01, "stop": stop},
        )
        heart.start()
        try:
            moments = set()
            wait_until(
                lambda: (
                    moments.update(each["seen_at"] for each in roster.present(court.connection, within=60))
                    or len(moments) > 2
                ),
                within=60,
                every=0.01,
                what="three beats",
            )
        finally:
            stop.set()
            heart.join(60)
        assert not heart.is_alive()

    def test_a_missed_beat_is_not_the_last(self, court, monkeypatch):
        """Where Postgres is away for one beat, the next one is tried all the same."""
        stop = threading.Event()
        beats = []

        def beat_badly(*_: Any, **__: Any) -> None:
            beats.append("tried")
            if len(beats) == 2:
                stop.set()
            raise OperationalError("INSERT", {}, Exception("connection refused"))

        monkeypatch.setattr(heartbeat, "beat", beat_badly)
        with capture_logs() as logs:
            keep_beating(court.bench, court.bench.database, slots=4, bulk_slots=3, every=0.001, stop=stop)
        assert [each["event"] for each in logs] == ["heartbeat_failed", "heartbeat_failed"]
