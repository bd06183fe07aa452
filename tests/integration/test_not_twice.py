"""The same comparison under the same judge is not computed twice."""

import json
import math
from dataclasses import replace

import pytest
from sqlalchemy import text
from support.court import alpha_is_first, comparison
from support.dockets import batch

from infra import docket
from worker import judging
from worker.cases import digest, reuse
from worker.engines.base import Generation, Score


class TestNotTwice:
    def test_the_same_comparison_is_answered_from_the_stored_verdict(self, court, engine):
        """A second filing of the same comparison asks the engine nothing, and has the same verdict."""
        engine.log_odds = lambda prompt: 2.0 if alpha_is_first(prompt) else -1.0
        court.file(comparison(1))
        court.sit()
        asked = len(engine.asked)
        court.file(comparison(1))
        court.sit()
        assert len(engine.asked) == asked
        rows = court.connection.execute(
            text("SELECT reused, tally ->> 'winner' AS winner FROM outcomes ORDER BY reused")
        )
        assert [tuple(row) for row in rows] == [(False, "A"), (True, "A")]

    @pytest.mark.parametrize(("odds", "threshold", "judged"), [(1.0, 0.6, 0), (1.0, 0.61, 1), (math.inf, 0.61, 0)])
    def test_a_verdict_under_a_raised_threshold_is_not_used_again(self, court, engine, odds, threshold, judged):
        """What would be no verdict today is none by having been one; of a vote without odds no mass is known."""
        engine.log_odds = lambda _: odds
        engine.mass = 0.6
        court.file(comparison(1))
        court.sit()
        asked = len(engine.asked)
        court.bench = replace(court.bench, rules=replace(court.bench.rules, mass_threshold=threshold))
        court.file(comparison(1))
        court.sit()
        assert len(engine.asked) == asked + judged
        found = court.connection.execute(text("SELECT error_code FROM outcomes WHERE status = 'errored'"))
        assert found.scalars().all() == ["unparseable"] * judged

    def test_nobody_is_answered_from_anothers_verdicts(self, court, engine):
        """Whoever pays for a judging has it, and learns nothing of what other tenants have asked."""
        court.file(comparison(1))
        court.sit()
        court.connection.execute(text("UPDATE outcomes SET tenant = 'other'"))
        court.file(comparison(1))
        court.sit()
        assert len(engine.asked) == 2

    def test_each_judge_has_verdicts_of_its_own(self, court, engine):
        """Another judge is asked what one has answered, and each finds its own answer again beside the other's."""
        judges = court.bench.judges
        for judge, judged in (("card", 1), ("pocket", 1), ("pocket", 0), ("card", 0)):
            court.bench = replace(court.bench, judges=judges | {"card": judges[judge]})
            asked = len(engine.asked)
            filing = court.file(comparison(1))
            court.sit()
            assert len(engine.asked) == asked + judged
            said = text("SELECT judge_id FROM outcomes WHERE filing_id = :filing")
            assert court.connection.execute(said, {"filing": filing}).scalar_one() == judges[judge]

    def test_a_verdict_stands_by_each_of_its_ballots(self):
        """It takes one that is under the threshold of today to have both judged again."""
        asked, judges = comparison(1), {"card": "jdg_test"}
        for masses, stands in (((0.9, 0.9), True), ((0.9, 0.6), False), ((0.6, 0.9), False), ((None, None), True)):
            found = {(b"asked", "jdg_test"): json.dumps({"ballots": [{"mass": mass} for mass in masses]})}
            outcomes, fresh = reuse([asked], {1: b"asked"}, judges, found, 0.7)
            assert (len(outcomes), len(fresh)) == ((1, 0) if stands else (0, 1))

    @pytest.mark.parametrize("odds", [None, Score(3.0, 0.1, cached_tokens=0, seconds=0.0)])
    def test_what_the_model_wrote_is_used_again(self, court, engine, odds):
        """A verdict in writing is one whatever its odds, on the first day and later."""
        engine.writes = lambda _: Generation("[[A]]", odds, generated_tokens=3, cached_tokens=0, seconds=1.0)
        court.file(comparison(1, profile="rewardbench"))
        court.sit()
        asked = len(engine.asked)
        court.file(comparison(1, profile="rewardbench"))
        court.sit()
        assert len(engine.asked) == asked

    def test_twins_in_one_shard_are_judged_once(self, court, engine):
        """Of comparisons that ask the same in one shard, one is judged, and the others cost nothing."""
        engine.log_odds = lambda prompt: 2.0 if alpha_is_first(prompt) else -1.0
        twin = comparison(1)
        court.file(twin, comparison(2), replace(twin, line=3), replace(twin, line=4))
        court.sit()
        assert sum(len(prompts) for prompts in engine.asked) == 4
        took = "ARRAY[prompt_tokens, cached_tokens, gpu_seconds]"
        rows = court.connection.execute(text(f"SELECT line, reused, tally::text, {took} AS took FROM outcomes"))  # noqa: S608
        outcomes = {row.line: row for row in rows}
        assert [line for line, row in outcomes.items() if row.reused] == [3, 4]
        assert outcomes[1].tally == outcomes[3].tally == outcomes[4].tally
        assert all(outcomes[1].took)
        assert outcomes[3].took == [0, 0, 0]

    @pytest.mark.parametrize("change", [{"profile": "pocket"}, {"tie_margin": 0.1}])
    def test_who_asks_in_another_way_is_no_twin(self, court, engine, change):
        """The same two answers under another profile, or with another margin, are another question beside the first."""
        twin = comparison(1)
        court.file(twin, replace(twin, line=2, **change))
        court.sit()
        assert sum(len(prompts) for prompts in engine.asked) == 4

    @pytest.mark.parametrize("careful", [False, True])
    def test_none_is_forgotten_that_is_answered_beside_others(self, court, engine, monkeypatch, careful):
        """Of a shard that is stored step by step or line by line, twins and known questions have their outcomes too."""
        monkeypatch.setattr(judging, "_RECORD_SECONDS", 0.0)
        engine.step_tokens = 1
        known = comparison(1, prompt="Known?")
        court.file(known)
        court.sit()
        twin = comparison(2, prompt="Again?")
        filing = court.file(known, twin, replace(twin, line=3), comparison(4, prompt="Zuletzt?"))
        if careful:
            court.connection.execute(text("UPDATE shards SET losses = ARRAY['attempt 1'] WHERE state = 'waiting'"))
        court.sit()
        decided = text("SELECT line, reused FROM outcomes WHERE filing_id = :filing ORDER BY line")
        rows = court.connection.execute(decided, {"filing": filing})
        assert [tuple(row) for row in rows] == [(1, True), (2, False), (3, True), (4, False)]

    @pytest.mark.parametrize(("options", "asked"), [("{}", 1), ('{"reuse": false}', 4)])
    def test_a_batch_may_have_all_judged_anew(self, court, engine, options, asked):
        """Where it says so, neither an earlier verdict nor that of the same question beside it will do."""
        for _ in range(2):
            batch(court.connection, 2)
            court.connection.execute(text("UPDATE shards SET last_line = 2 WHERE first_line = 1"))
            court.connection.execute(text("DELETE FROM shards WHERE first_line = 2"))
            change = text("UPDATE batches SET options = options || CAST(:options AS jsonb)")
            court.connection.execute(change, {"options": options})
            [shard] = docket.release_bulk(court.connection, room=1, limit=1)
            judging.judge_shard(court.bench, shard)
        assert sum(len(step) for step in engine.asked) == asked
        assert court.connection.execute(text("SELECT count(*) FROM outcomes WHERE tally IS NOT NULL")).scalar_one() == 4

    def test_twins_fail_together(self, court, engine):
        """Where the one that is judged has no verdict, its twin has the same reason."""
        engine.mass = 0.001
        court.file(comparison(1), replace(comparison(1), line=2))
        court.sit()
        rows = court.connection.execute(text("SELECT status, error_code, reused FROM outcomes")).all()
        assert [tuple(row) for row in rows] == [("errored", "unparseable", False)] * 2

    @pytest.mark.parametrize("change", [{"response_b": "<beta>!"}, {"orders": "ab"}, {"tie_margin": 0.1}])
    def test_another_question_is_asked(self, court, engine, change):
        """What differs in anything that the verdict depends on is judged."""
        court.file(comparison(1))
        court.sit()
        asked = len(engine.asked)
        court.file(comparison(1, **change))
        court.sit()
        assert len(engine.asked) == asked + 1

    def test_where_a_text_ends_is_part_of_the_question(self):
        """Words that stand at the end of a prompt ask something else than at the beginning of an answer."""
        asked = comparison(prompt="Which?", response_a="this", response_b="that")
        for change in ({"prompt": "Which", "response_a": "?this"}, {"response_a": "thist", "response_b": "hat"}):
            assert digest(asked) != digest(replace(asked, **change))

    def test_a_conversation_is_not_the_text_that_spells_it(self):
        """Whoever asks of a text that looks like a conversation is not answered with the conversation's verdict."""
        asked = comparison(prompt=[{"role": "user", "content": "Which?"}])
        assert digest(asked) != digest(replace(asked, prompt=repr(asked.prompt)))
