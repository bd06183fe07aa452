"""Judging, from the hint to the stored outcome, with a real Postgres and an engine that says what it is told to."""

import math
import threading
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from structlog.testing import capture_logs
from support.court import LIMIT, MASS, Moody, alpha_is_first, comparison
from support.waiting import wait_until

from infra import docket, losses, roster
from infra.settings import Settings
from worker import ballots, heartbeat, judging, prompts
from worker.app import open_databases
from worker.engines.base import (
    EngineError,
    EngineGoneError,
    Generation,
    PromptTooLongError,
    Score,
    TemplateRefusesError,
)
from worker.heartbeat import beat, keep_beating
from worker.judging import judge_shard


class TestAVerdict:
    def test_both_orders_lead_to_a_verdict_that_anyone_can_recompute(self, court, engine):
        """Each order is asked, and the stored ballots alone give the stored verdict again."""
        engine.log_odds = lambda prompt: 3.0 if alpha_is_first(prompt) else -1.0
        court.file(comparison())
        court.sit()
        row = court.outcome()
        assert row.status == "succeeded"
        assert [(each["order"], each["log_odds"], each["mass"]) for each in row.tally["ballots"]] == [
            ("ab", 3.0, MASS),
            ("ba", -1.0, MASS),
        ]
        # d = (3 - -1) / 2 = 2, and P = 1 / (1 + exp(-2 / 2)).
        assert row.tally["winner"] == "A"
        assert row.tally["probability_a"] == pytest.approx(0.7310585786300049, abs=1e-15)
        assert row.tally["position_bias"] == 1.0
        assert row.tally["consistent"] is True
        assert ballots.count(row.tally["ballots"], temperature=2.0, tie_margin=None) == row.tally

    def test_both_orders_are_asked_together(self, court, engine):
        """One step of the engine holds both orders of a comparison, response A first and then response B."""
        court.file(comparison())
        court.sit()
        [step] = engine.asked
        assert [alpha_is_first(prompt) for prompt in step] == [True, False]
        assert all(prompt.endswith("[[") for prompt in step)

    @pytest.mark.parametrize(("order", "winner"), [("ab", "A"), ("ba", "B")])
    def test_a_single_order_is_asked_alone(self, court, engine, order, winner):
        """With a single order the leaning to the first slot stays in the verdict, and nothing is said of it."""
        court.file(comparison(orders=order))
        court.sit()
        tally = court.outcome().tally
        assert len(engine.asked[0]) == 1
        assert (tally["winner"], tally["consistent"], tally["position_bias"]) == (winner, None, None)

    def test_a_tie_is_called_within_the_margin_that_was_asked_for(self, court, engine):
        """The same opinion is a tie for a comparison with a wide margin, and a winner without one."""
        engine.log_odds = lambda prompt: 0.1 if alpha_is_first(prompt) else -0.1
        court.file(comparison(1, tie_margin=0.05), comparison(2))
        court.sit()
        assert {number: row.tally["winner"] for number, row in court.outcomes().items()} == {1: "tie", 2: "A"}

    def test_what_it_was_made_with_is_stored(self, court):
        """An outcome names its judge, its tokens, what of them was cached, and the engine's time."""
        court.file(comparison())
        court.sit()
        row = court.outcome()
        assert row.judge_id == court.bench.judges["card"]
        assert row.prompt_tokens > 2 * len(prompts.CARD)
        assert (row.cached_tokens, row.gpu_seconds, row.attempt) == (6, 1.0, 1)

    def test_prompts_that_share_a_beginning_follow_each_other(self, court, engine):
        """Comparisons of the same question are asked one after the other, in whatever order they were filed."""
        questions = ["Why?", "How?", "Why?", "When?", "How?", "Why?"]
        court.file(*(comparison(number, prompt=question) for number, question in enumerate(questions, 1)))
        court.sit()
        asked = [prompt.split("[User Question]\n")[1].split("\n")[0] for prompt in engine.asked[0]]
        assert asked == ["How?"] * 4 + ["When?"] * 2 + ["Why?"] * 6
        assert all(row.status == "succeeded" for row in court.outcomes().values())

    def test_a_large_shard_is_judged_in_steps_and_stored_between_them(self, court, engine, monkeypatch):
        """Nothing that a step has decided waits for long while the next steps are judged."""
        monkeypatch.setattr(judging, "_RECORD_SECONDS", 0.0)
        engine.step_tokens = 1
        stored = []
        engine.while_working = lambda _: stored.append(len(court.outcomes()))
        court.file(*(comparison(number) for number in (1, 2, 3)))
        court.sit()
        assert stored == [0, 1, 2]
        assert court.shards() == [("done", 1)]


class TestNoVerdict:
    def test_a_prompt_too_long_is_never_asked(self, court, engine):
        """The outcome names both lengths, nothing is cut silently, and the others are judged."""
        longer = comparison(1, response_b="<beta>" + "x" * LIMIT)
        length = len(engine.encode(prompts.build(longer, "ab")))
        court.file(longer, comparison(2))
        court.sit()
        row = court.outcomes()[1]
        assert (row.status, row.error_code) == ("errored", "context_length_exceeded")
        assert row.error_message == f"the prompt is {length} tokens long, the judge takes {LIMIT}"
        assert len(engine.asked[0]) == 2
        assert court.outcomes()[2].status == "succeeded"

    def test_a_shard_of_nothing_but_prompts_too_long_needs_no_engine(self, court, engine):
        """Where no line can be asked, the shard ends all the same."""
        court.file(comparison(response_a="<alpha>" + "x" * LIMIT))
        court.sit()
        assert engine.asked == []
        assert court.outcome().error_code == "context_length_exceeded"
        assert court.shards() == [("done", 1)]

    def test_a_model_that_says_neither_a_nor_b_is_not_guessed_at(self, court, engine):
        """Too little probability on A and B is no verdict, and the message says how little it was."""
        engine.mass = 0.25
        court.file(comparison())
        court.sit()
        row = court.outcome()
        assert (row.status, row.error_code, row.tally) == ("errored", "unparseable", None)
        assert row.error_message == (
            "order ab: the model put 0.25 of its probability on A and B, under the threshold of 0.5"
        )
        assert row.gpu_seconds == 1.0

    def test_the_threshold_itself_is_enough(self, court, engine):
        """Probability of just the threshold is taken."""
        engine.mass = 0.5
        court.file(comparison())
        court.sit()
        assert court.outcome().status == "succeeded"

    def test_a_comparison_without_a_profile_is_put_as_the_judge_was_made_for(self, court, engine):
        """The pocket critic is asked in its own words unless a comparison asks for others, and the judge says which."""
        court.bench = replace(court.bench, rules=replace(court.bench.rules, profile="pocket"))
        court.file(comparison(1, profile="own"), comparison(2, profile="card"))
        court.sit()
        profiles = {line: row.judge_id for line, row in court.outcomes().items()}
        assert profiles == {1: court.bench.judges["pocket"], 2: court.bench.judges["card"]}
        asked = [prompt for step in engine.asked for prompt in step]
        assert [prompt.startswith(prompts.POCKET_SYSTEM) for prompt in asked].count(True) == 2

    def test_a_shape_that_the_profile_has_no_form_for_is_told_so(self, court, engine):
        """The message says which profile to use instead, and the others are judged."""
        turns = [{"role": "user", "content": each} for each in ("One?", "Two?")]
        court.file(comparison(1, profile="rewardbench", prompt=turns), comparison(2))
        court.sit()
        row = court.outcomes()[1]
        assert (row.status, row.error_code) == ("errored", "profile_unfit")
        assert "use profile card" in row.error_message
        assert court.outcomes()[2].status == "succeeded"

    @pytest.mark.parametrize(
        ("error", "code"),
        [
            (PromptTooLongError("the prompt is at least 9 tokens long"), "context_length_exceeded"),
            (TemplateRefusesError("the chat template refuses a conversation of ('system',)"), "profile_unfit"),
        ],
    )
    def test_what_the_engine_refuses_to_tokenise_is_no_failure_of_it(self, court, error, code):
        """It is errored with the reason, and nothing beside it."""
        encode = court.bench.engine.encode

        def refuse(prompt):
            if "Two?" in str(prompt):
                raise error
            return encode(prompt)

        court.bench.engine.encode = refuse
        court.file(comparison(1), comparison(2, prompt="Two?"))
        court.sit()
        found = court.outcomes()
        assert found[1].status == "succeeded"
        assert (found[2].error_code, found[2].error_message, found[2].attempt) == (code, str(error), 1)


class TestTheProfileThatWrites:
    @staticmethod
    def written(verdict: str, odds: float | None = None) -> Generation:
        """Make an answer of twelve tokens."""
        opinion = None if odds is None else Score(odds, MASS, cached_tokens=0, seconds=0)
        return Generation(
            text=f"One is better. {verdict}",
            verdict=opinion,
            generated_tokens=12,
            cached_tokens=2,
            seconds=4.0,
        )

    def test_the_verdict_is_read_from_what_the_model_wrote(self, court, engine):
        """Without odds the votes decide, and the probability stays unknown."""
        engine.writes = lambda prompt: self.written("[[A]]" if alpha_is_first(prompt) else "[[B]]")
        court.file(comparison(profile="rewardbench"))
        court.sit()
        row = court.outcome()
        assert [(each["vote"], each["log_odds"]) for each in row.tally["ballots"]] == [("A", None), ("B", None)]
        assert (row.tally["winner"], row.tally["probability_a"], row.tally["consistent"]) == ("A", None, True)
        assert (row.judge_id, row.gpu_seconds, row.cached_tokens) == (court.bench.judges["rewardbench"], 8.0, 4)

    def test_what_it_wrote_counts_as_used(self, court, engine):
        """At the engine's gate a tenant whose model writes has used more than its prompts."""
        engine.writes = lambda _: Generation("[[A]]", None, generated_tokens=2000, cached_tokens=0, seconds=1.0)
        court.file(comparison(profile="rewardbench"))
        court.sit()
        assert court.bench.gate._used["default"] > 10 * sum(len(prompt) for [prompt] in engine.asked)

    def test_votes_that_cancel_are_a_tie(self, court, engine):
        """A model that chose the first slot in both orders has told nothing of the responses."""
        engine.writes = lambda _: self.written("[[A]]")
        court.file(comparison(profile="rewardbench"))
        court.sit()
        tally = court.outcome().tally
        assert (tally["winner"], tally["consistent"]) == ("tie", False)

    def test_odds_are_kept_where_the_engine_gives_them(self, court, engine):
        """Odds at the verdict that was parsed make a probability."""
        engine.writes = lambda prompt: (
            self.written("[[A]]", 3.0) if alpha_is_first(prompt) else self.written("[[B]]", -1.0)
        )
        court.file(comparison(profile="rewardbench"))
        court.sit()
        tally = court.outcome().tally
        assert [each["log_odds"] for each in tally["ballots"]] == [3.0, -1.0]
        assert tally["probability_a"] == pytest.approx(0.7310585786300049, abs=1e-15)

    def test_odds_of_another_verdict_do_not_count(self, court, engine):
        """Where the odds speak against the verdict that was parsed, the vote alone is kept."""
        engine.writes = lambda _: self.written("[[A]] or rather [[B]]", -2.0)
        court.file(comparison(profile="rewardbench", orders="ab"))
        court.sit()
        [ballot] = court.outcome().tally["ballots"]
        assert (ballot["vote"], ballot["log_odds"], ballot["mass"]) == ("A", None, None)

    @pytest.mark.parametrize("odds", [math.nan, -math.inf])
    def test_odds_that_are_no_number_do_not_count(self, court, engine, odds):
        """JSON has no word for them, so the vote alone is kept."""
        engine.writes = lambda _: self.written("[[B]]", odds)
        court.file(comparison(profile="rewardbench"))
        court.sit()
        row = court.outcome()
        assert [(each["vote"], each["log_odds"]) for each in row.tally["ballots"]] == [("B", None), ("B", None)]

    def test_an_answer_without_a_verdict_is_unparseable(self, court, engine):
        """A model that wrote no verdict is not asked in the other order, and its text is not repeated."""
        engine.writes = lambda _: self.written("Both are fine.")
        court.file(comparison(profile="rewardbench"))
        court.sit()
        row = court.outcome()
        assert row.error_code == "unparseable"
        assert row.error_message == "order ab: no [[A]] or [[B]] in the 12 tokens the model wrote"
        assert len(engine.asked) == 1

    def test_an_answer_that_the_context_cut_short_says_so(self, court, engine):
        """A prompt that leaves room for twelve tokens alone is why there is no verdict in them."""
        engine.writes = lambda _: self.written("Both are fine.")
        short = comparison(profile="rewardbench")
        space = LIMIT - 12 - len(engine.encode(prompts.build(short, "ab")))
        court.file(replace(short, response_b=short.response_b + "x" * space))
        court.sit()
        assert court.outcome().error_message.endswith(
            f"in the 12 tokens the model wrote; then its context of {LIMIT} tokens was full"
        )

    def test_tokens_that_were_never_asked_are_not_counted(self, court, engine):
        """An outcome costs what was put to the model, and not the order that the first answer made needless."""
        engine.writes = lambda _: self.written("Both are fine.")
        court.file(comparison(profile="rewardbench"))
        court.sit()
        [[asked]] = engine.asked
        assert court.outcome().prompt_tokens == len(asked)

    def test_each_writing_case_is_a_step_of_its_own(self, court, engine):
        """Comparisons of both profiles travel together and are asked apart."""
        engine.writes = lambda _: self.written("[[B]]")
        court.file(comparison(1), comparison(2, profile="rewardbench"), comparison(3))
        court.sit()
        assert [len(step) for step in engine.asked] == [2, 1, 1, 2]
        assert {row.status for row in court.outcomes().values()} == {"succeeded"}


class TestAnEngineThatFails:
    def test_each_failure_counts_and_the_last_one_ends_it(self, court, engine):
        """A comparison is tried three times, with pauses between, and then errored with the engine's reason."""
        failed: list[datetime] = []

        def fail(_: list[str]) -> None:
            failed.append(court.connection.execute(text("SELECT clock_timestamp()")).scalar_one())
            raise EngineError("out of memory")

        engine.while_working = fail
        court.file(comparison())
        for attempt in (1, 2):
            with capture_logs() as logs:
                court.sit()
            assert [each["reason"] for each in logs] == ["out of memory"]
            assert court.shards() == [("waiting", attempt)]
            due_at = court.connection.execute(text("SELECT due_at FROM shards")).scalar_one()
            assert due_at - failed[-1] >= timedelta(seconds=2 ** (attempt - 1))
            court.end_the_pauses()
        court.sit()
        row = court.outcome()
        assert (row.status, row.error_code, row.attempt) == ("errored", "engine_failed", 3)
        assert row.error_message == "the engine failed at each of 3 attempts: out of memory"
        assert court.shards() == [("done", 3)]
        assert len(engine.asked) == 3

    def test_an_engine_that_recovers_is_forgiven(self, court, engine):
        """After a failure the next attempt may succeed, and says which one it was."""

        def fail_once(_: list[str]) -> None:
            if len(engine.asked) == 1:
                raise EngineError("a moment of weakness")

        engine.while_working = fail_once
        court.file(comparison())
        court.sit_until_quiet()
        assert (court.outcome().status, court.outcome().attempt) == ("succeeded", 2)

    def test_one_poisonous_line_leaves_the_others_alone(self, court, engine):
        """Of eight lines the one that the engine dies of is errored, and seven never notice."""

        def choke(texts: list[str]) -> None:
            if any("poison" in each for each in texts):
                raise EngineError("it tastes bitter")

        engine.while_working = choke
        court.file(*(comparison(n, prompt="poison" if n == 6 else f"Question {n}") for n in range(1, 9)))
        court.sit_until_quiet()
        ends = {number: (row.status, row.error_code) for number, row in court.outcomes().items()}
        assert ends == {n: ("errored", "engine_failed") if n == 6 else ("succeeded", None) for n in range(1, 9)}

    def test_an_opinion_that_is_no_number_is_no_verdict(self, court, engine):
        """An engine whose arithmetic broke down has said nothing that could be stored."""
        engine.log_odds = lambda _: float("nan")
        engine.mass = float("nan")
        court.file(comparison())
        court.sit_until_quiet()
        assert court.outcome().status == "errored"

    def test_an_engine_that_is_gone_ends_the_process_and_returns_the_work(self, court, engine):
        """The error goes on to whoever ends the process, and the comparison is back on the docket."""

        def vanish(_: list[str]) -> None:
            raise EngineGoneError("the device fell off the bus")

        engine.while_working = vanish
        court.file(comparison())
        with pytest.raises(EngineGoneError):
            court.sit()
        assert court.shards() == [("waiting", 1)]
        assert court.bench.leases == set()


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
