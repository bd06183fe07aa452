"""Judging, from the hint to the stored outcome, with a real Postgres and an engine that says what it is told to."""

import math
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from sqlalchemy import text
from structlog.testing import capture_logs
from support.court import LIMIT, MASS, alpha_is_first, comparison

from worker import ballots, judging, prompts
from worker.engines.base import (
    EngineError,
    EngineGoneError,
    Generation,
    PromptTooLongError,
    Score,
    TemplateRefusesError,
)


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

    @pytest.mark.parametrize("first", [True, False])
    def test_a_prompt_too_long_in_either_order_is_never_asked(self, court, engine, first):
        """The same words may be more tokens in one order than in the other, and both have to be asked."""
        encode = engine.encode

        def encode_one_longer(prompt):
            ids = encode(prompt)
            return [*ids, *[32] * LIMIT] if alpha_is_first("".join(map(chr, ids))) is first else ids

        court.bench.engine.encode = encode_one_longer
        court.file(comparison())
        court.sit()
        assert engine.asked == []
        assert court.outcome().error_code == "context_length_exceeded"

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

    def test_no_pause_is_longer_than_a_minute(self, court, engine):
        """However many attempts there are, somebody who mends the engine is not kept waiting for the next one."""

        def fail(_: list[str]) -> None:
            raise EngineError("out of memory")

        engine.while_working = fail
        court.bench = replace(court.bench, rules=replace(court.bench.rules, max_attempts=20))
        court.file(comparison())
        court.connection.execute(text("UPDATE shards SET attempt = 9"))
        court.sit()
        assert court.shards() == [("waiting", 10)]
        assert court.connection.execute(text("SELECT due_at <= now() + interval '60 s' FROM shards")).scalar_one()

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

    @pytest.mark.parametrize(
        ("odds", "mass"), [(math.nan, math.nan), (math.nan, MASS), (1.0, math.nan), (1.0, math.inf)]
    )
    def test_an_opinion_that_is_no_number_is_no_verdict(self, court, engine, odds, mass):
        """An engine whose arithmetic broke down has said nothing that could be stored, and is not guessed at."""
        engine.log_odds = lambda _: odds
        engine.mass = mass
        court.file(comparison())
        court.sit_until_quiet()
        assert (court.outcome().status, court.outcome().error_code) == ("errored", "unparseable")

    @pytest.mark.parametrize(("odds", "vote"), [(math.inf, "A"), (-math.inf, "B")])
    def test_odds_beyond_all_numbers_are_a_vote(self, court, engine, odds, vote):
        """A model that is certain has said which slot it prefers, and JSON has no word for how much."""
        engine.log_odds = lambda _: odds
        court.file(comparison(orders="ab"))
        court.sit()
        [ballot] = court.outcome().tally["ballots"]
        assert (ballot["vote"], ballot["log_odds"], ballot["mass"]) == (vote, None, None)

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
