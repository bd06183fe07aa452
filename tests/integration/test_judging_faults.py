"""Judging when the engine fails: nothing is computed twice, less is asked at once, and the line at fault is known."""

import pytest
from sqlalchemy import text
from structlog.testing import capture_logs
from support.court import comparison
from support.model_server import ModelServer, Trouble, impatient, serving

from infra import losses
from worker.engines.base import EngineAwayError, EngineError, EngineGoneError, EngineOutOfMemoryError


def lose_all(court) -> None:
    """Let the worker be lost with all that it holds."""
    losses.bury(court.connection, court.bench.rules.worker, max_attempts=3)
    court.end_the_pauses()


def lose_once(court) -> None:
    """File nothing new, but let what waits be lost once, so that it is worked carefully from now on."""
    court.connection.execute(text("UPDATE shards SET losses = ARRAY['attempt 1']"))


class TestWhatIsInHand:
    @pytest.mark.parametrize("kind", [EngineError, EngineGoneError])
    def test_it_is_stored_before_a_failure_is_told_of(self, court, engine, kind):
        """What the steps before had decided is not asked again after a later step fails."""
        engine.step_tokens = 1

        def fail_at_the_third(_: list[str]) -> None:
            if len(engine.asked) == 3:
                raise kind("out of order")

        engine.while_working = fail_at_the_third
        court.file(*(comparison(number, prompt=f"Question {number}?") for number in range(1, 6)))
        if kind is EngineGoneError:
            with pytest.raises(EngineGoneError):
                court.sit()
        else:
            court.sit()
        assert sorted(court.outcomes()) == [1, 2]
        court.sit_until_quiet()
        assert {row.status for row in court.outcomes().values()} == {"succeeded"}
        asked = [step[0] for step in engine.asked]
        assert len(asked) == 6  # each once, and the third twice
        assert len(set(asked)) == 5

    def test_a_lease_lost_meanwhile_hides_no_engine_that_is_gone(self, court, engine):
        """The process ends even where what it had in hand is refused."""

        def vanish(_: list[str]) -> None:
            lose_all(court)
            raise EngineGoneError("the device fell off the bus")

        engine.while_working = vanish
        court.file(comparison())
        with pytest.raises(EngineGoneError):
            court.sit()


class TestNobodyIsAnswered:
    @pytest.mark.parametrize("careful", [False, True])
    def test_no_attempt_is_counted_while_nothing_can_be_asked(self, court, engine, careful):
        """An engine that asks a server waits for it: comparisons are given back as often as that takes."""

        def answer_nobody(_: list[str]) -> None:
            raise EngineAwayError("the server has not answered")

        engine.while_working = answer_nobody
        court.file(*(comparison(number, prompt=f"Question {number}?") for number in range(1, 4)))
        if careful:
            lose_once(court)
        for _ in range(10):
            court.sit()
        assert len(engine.asked) == 10
        assert court.shards() == [("waiting", 0)]
        engine.while_working = lambda _: None
        court.sit_until_quiet()
        assert {row.status for row in court.outcomes().values()} == {"succeeded"}
        assert court.shards() == [("done", 1)]


class TestServer:
    @pytest.fixture(params=["vllm", "llamacpp"])
    def server(self, request):
        """A server of models that is well to begin with; of the second kind, one that tokenises, too."""
        with serving(ModelServer(kind=request.param)) as started:
            yield started

    @pytest.fixture
    def engine(self, server, tmp_path, monkeypatch):
        """An engine that asks it, with little patience."""
        with impatient(server, tmp_path, monkeypatch, request=1.0, patience=1.0) as opened:
            yield opened

    def test_an_outage_of_any_length_is_survived(self, court, server):
        """A server that answers 500 to everything costs what was on its way one attempt, and nothing is errored."""
        court.file(comparison())
        server.troubles.extend([Trouble(status=500)] * 10_000)
        for _ in range(6):
            court.sit()
            court.end_the_pauses()
        assert court.shards() == [("waiting", 1)]
        server.troubles.clear()
        court.sit_until_quiet()
        assert court.outcome().status == "succeeded"

    def test_a_prompt_that_the_server_fails_at_is_errored_all_the_same(self, court, server):
        """In between it answers what it answered at the start, so that each failure is the prompt's."""
        complete = server.complete
        server.complete = lambda body: (500, {}) if "alpha" in server.text_of(body) else complete(body)
        court.file(comparison())
        court.sit_until_quiet()
        assert court.outcome().error_code == "engine_failed"
        assert court.shards() == [("done", 3)]


class TestTooLittleMemory:
    def test_the_step_is_halved_until_it_fits(self, court, engine):
        """A step that is too much for the engine's memory is asked in parts, at no attempt's cost."""

        def hold_three(texts: list[str]) -> None:
            if len(texts) > 3:
                raise EngineOutOfMemoryError("no room")

        engine.while_working = hold_three
        court.file(*(comparison(number) for number in range(1, 6)))
        with capture_logs() as logs:
            court.sit()
        assert court.shards() == [("done", 1)]
        assert {row.status for row in court.outcomes().values()} == {"succeeded"}
        assert [len(step) for step in engine.asked] == [10, 5, 2, 3, 5, 2, 3]
        assert [each["prompts"] for each in logs if each["event"] == "step_halved"] == [10, 5, 5]

    def test_a_prompt_that_fits_nowhere_fails_alone(self, court, engine):
        """Where one prompt is too much by itself, it is tried to its last attempt and the others are judged."""

        def choke(texts: list[str]) -> None:
            if any("huge" in each for each in texts):
                raise EngineOutOfMemoryError("no room")

        engine.while_working = choke
        court.file(*(comparison(n, prompt="huge" if n == 2 else f"Question {n}?") for n in (1, 2, 3)))
        court.sit_until_quiet()
        ends = {n: row.error_code or row.status for n, row in court.outcomes().items()}
        assert ends == {1: "succeeded", 2: "engine_failed", 3: "succeeded"}


class TestWorkingCarefully:
    def test_each_line_is_alone_and_noted_before_it_is_tried(self, court, engine):
        """After a loss a shard is asked line by line: the row says which, and its outcome is stored before the next."""
        seen = []

        def look(texts: list[str]) -> None:
            row = court.connection.execute(text("SELECT at_work FROM shards")).one()
            seen.append((row.at_work, len(texts), sorted(court.outcomes())))

        engine.while_working = look
        court.file(*(comparison(number, prompt=f"Question {number}?") for number in (1, 2, 3)))
        lose_once(court)
        court.sit()
        assert seen == [(1, 2, []), (2, 2, [1]), (3, 2, [1, 2])]
        assert court.shards() == [("done", 1)]

    def test_usually_nothing_is_noted(self, court, engine):
        """A shard that no worker was lost over is asked in steps of the engine's size, and its row is left alone."""
        seen = []
        engine.while_working = lambda texts: seen.append(
            (court.connection.execute(text("SELECT at_work FROM shards")).scalar_one(), len(texts))
        )
        court.file(*(comparison(number) for number in (1, 2, 3)))
        court.sit()
        assert seen == [(None, 6)]

    def test_its_prompts_are_made_under_the_note_too(self, court, engine):
        """A text that ends the process as it is tokenised is found like one that ends it in the engine."""
        seen = []
        encode = engine.encode

        def look_and_encode(prompt):
            seen.append(court.connection.execute(text("SELECT at_work FROM shards")).scalar_one())
            return encode(prompt)

        court.bench.engine.encode = look_and_encode
        court.file(comparison(1, prompt="One?"), comparison(2, prompt="Two?"))
        lose_once(court)
        court.sit()
        assert seen == [1, 1, 2, 2]

    def test_nobody_else_is_in_the_engine_meanwhile(self, court, engine):
        """While a line is noted, work of other shards waits at the gate."""
        inside = []

        def look(_: list[str]) -> None:
            with court.bench.gate._turns:
                inside.append(court.bench.gate._fits(1))

        engine.while_working = look
        court.file(comparison())
        lose_once(court)
        court.sit()
        assert inside == [False]

    def test_an_engine_that_goes_names_its_line(self, court, engine):
        """Where the engine says itself that it is gone, the line in it is set apart at once."""

        def vanish(texts: list[str]) -> None:
            if any("poison" in each for each in texts):
                raise EngineGoneError("the device fell off the bus")

        engine.while_working = vanish
        court.file(*(comparison(n, prompt="poison" if n == 2 else f"Question {n}?") for n in (1, 2, 3)))
        lost = 0
        for _ in range(20):
            try:
                court.sit_until_quiet()
            except EngineGoneError:
                lost += 1
        ends = {n: row.error_code or row.status for n, row in court.outcomes().items()}
        assert ends == {1: "succeeded", 2: "engine_crashed", 3: "succeeded"}
        assert lost == 3

    def test_twins_are_answered_together(self, court, engine):
        """A line that asks the same as one before it costs no second judging, here as elsewhere."""
        court.file(comparison(1), comparison(2, response_a=comparison(1).response_a), comparison(3))
        lose_once(court)
        court.sit()
        assert len(engine.asked) == 2
        assert {row.status for row in court.outcomes().values()} == {"succeeded"}
