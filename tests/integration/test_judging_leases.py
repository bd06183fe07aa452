"""What a worker does where its hint, its lease or Postgres is not what it was."""

from dataclasses import replace

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import OperationalError
from structlog.testing import capture_logs
from support.court import Moody, comparison

from infra import docket
from worker.engines.base import (
    EngineError,
    EngineGoneError,
)
from worker.judging import judge_shard


class TestHintsAndLeases:
    def test_a_hint_for_nothing_does_nothing(self, court, engine):
        """A hint that is late, doubled or made up finds nothing to claim, which is no error."""
        court.file(comparison())
        [shard] = court.release()
        with capture_logs() as logs:
            judge_shard(court.bench, shard)
            judge_shard(court.bench, shard)
            judge_shard(court.bench, 10**12)
        assert [each["event"] for each in logs] == ["shard_ended", "hint_without_work", "hint_without_work"]
        assert len(engine.asked) == 1

    def test_a_claim_lost_while_the_engine_works_stores_nothing(self, court, engine):
        """A comparison that is cancelled while it is judged stays cancelled: the refusal is logged, not raised."""
        filing_id = court.file(comparison(1), comparison(2))
        engine.while_working = lambda _: docket.cancel(court.connection, tenant="default", filing_id=filing_id)
        with capture_logs() as logs:
            court.sit()
        assert [(each["event"], each["log_level"]) for each in logs] == [("stale_write_refused", "warning")]
        assert {row.status for row in court.outcomes().values()} == {"cancelled"}
        assert court.bench.leases == set()

    def test_a_failure_after_the_claim_was_lost_changes_nothing(self, court, engine):
        """An engine that fails at what was cancelled meanwhile cannot bring it back."""
        filing_id = court.file(comparison(1), comparison(2))

        def cancel_and_fail(_: list[str]) -> None:
            docket.cancel(court.connection, tenant="default", filing_id=filing_id)
            raise EngineError("too late")

        engine.while_working = cancel_and_fail
        with capture_logs() as logs:
            court.sit()
        assert [each["event"] for each in logs] == ["attempt_failed", "stale_write_refused"]
        assert court.shards() == [("done", 1)]

    def test_no_transaction_is_open_while_the_engine_works(self, court, engine):
        """However long a step takes, Postgres is left alone."""
        seen = []

        def look(_: list[str]) -> None:
            seen.append(self.open_transactions(court.connection))

        engine.while_working = look
        engine.step_tokens = 1
        court.file(comparison(1), comparison(2))
        with court.bench.database.begin() as transaction:
            transaction.execute(text("SELECT 1"))
            assert self.open_transactions(court.connection) == 1  # it would be seen
        court.sit()
        assert seen == [0, 0]

    @staticmethod
    def open_transactions(connection: Connection) -> int:
        """Count the transactions that the worker has open."""
        count = text("""
            SELECT count(*) FROM pg_stat_activity
            WHERE datname = current_database() AND application_name = 'nightcourt-bench' AND xact_start IS NOT NULL
        """)
        return int(connection.execute(count).scalar_one())


class TestAPostgresThatGoesAway:
    def test_a_result_in_hand_waits_for_it(self, court, engine):
        """Where Postgres is away when a shard is to be finished, the result is kept and stored later."""
        moody = Moody(court.bench.database, ["well", "well", "away"])
        court.file(comparison())
        [shard] = court.release()
        with capture_logs() as logs:
            judge_shard(replace(court.bench, database=moody), shard)
        assert [each["event"] for each in logs] == ["database_unreachable", "shard_ended"]
        assert court.outcome().status == "succeeded"
        assert len(engine.asked) == 1

    def test_a_shard_in_hand_waits_for_it(self, court):
        """Where Postgres goes away between the claim and the look at what was claimed, no attempt is lost over it."""
        moody = Moody(court.bench.database, ["well", "away"])
        court.file(comparison())
        [shard] = court.release()
        judge_shard(replace(court.bench, database=moody), shard)
        assert court.shards() == [("done", 1)]

    def test_a_shard_that_is_somebody_elses_by_then_is_not_begun(self, court, engine):
        """Where the lease ran out while Postgres was away, the engine is asked nothing of what it was for."""
        moody = Moody(court.bench.database, ["well", "too late"])
        court.file(comparison())
        [shard] = court.release()
        with capture_logs() as logs:
            judge_shard(replace(court.bench, database=moody), shard)
        assert [each["event"] for each in logs] == ["stale_write_refused"]
        assert engine.asked == []

    def test_a_commit_whose_answer_was_lost_is_safe_to_repeat(self, court):
        """What was stored without our knowing is stored once."""
        moody = Moody(court.bench.database, ["well", "well", "hangs up"])
        court.file(comparison())
        [shard] = court.release()
        judge_shard(replace(court.bench, database=moody), shard)
        assert court.outcome().status == "succeeded"
        assert court.shards() == [("done", 1)]

    def test_patience_ends(self, court):
        """After the time that the rules allow the work is left to its lease, which brings it back."""
        moody = Moody(court.bench.database, ["well", "well", *["away"] * 9])
        bench = replace(court.bench, database=moody, rules=replace(court.bench.rules, patience_seconds=0.05))
        court.file(comparison())
        [shard] = court.release()
        with pytest.raises(OperationalError):
            judge_shard(bench, shard)
        assert court.shards() == [("running", 1)]
        assert bench.leases == set()

    def test_it_hides_no_engine_that_is_gone(self, court, engine):
        """The process ends even where neither what it had in hand nor its loss can be stored."""

        def vanish(_: list[str]) -> None:
            raise EngineGoneError("the device fell off the bus")

        engine.while_working = vanish
        moody = Moody(court.bench.database, ["well", "well", *["away"] * 9])
        bench = replace(court.bench, database=moody, rules=replace(court.bench.rules, patience_seconds=0.05))
        court.file(comparison())
        [shard] = court.release()
        with capture_logs() as logs, pytest.raises(EngineGoneError):
            judge_shard(bench, shard)
        assert [each["event"] for each in logs] == ["outcomes_not_stored", "attempt_failed", "shard_left_to_its_lease"]
        assert court.shards() == [("running", 1)]
