"""What the engine for OpenAI-compatible servers asks, and how it reads what it is told."""

import math

import pytest
from support.model_server import ASKED, Trouble, odds

from worker.engines.base import VERDICT_OPENING, EngineError, EngineGoneError, Prompt


class TestScores:
    def test_scores_come_in_the_order_of_the_prompts(self, start, open_engine):
        """However the answers overtake each other, and with no more under way than allowed."""
        server = start()
        engine = open_engine(server, requests=3)
        server.likes = lambda text: int(text.split("#")[1]) / 100
        server.troubles.extend(Trouble(late=0.05) for _ in range(20))
        prompts = [engine.encode(Prompt((("user", f"#{at}#"),), VERDICT_OPENING)) for at in range(10, 30)]
        found = [score.log_odds for score in engine.score(prompts)]
        assert found == pytest.approx([odds(server, at / 100)[0] for at in range(10, 30)])
        assert server.busiest == 3

    @pytest.mark.parametrize(("share", "sign"), [(1.0, math.inf), (0.0, -math.inf)])
    def test_a_verdict_outside_the_list_is_a_vote(self, start, open_engine, share, sign):
        """A server that can only list the likeliest may leave one out, and then the odds are not known."""
        server = start(kind="sglang", most_alternatives=5)
        engine = open_engine(server)
        server.likes = lambda _: share
        [score] = engine.score([engine.encode(ASKED)])
        assert score.log_odds == sign
        assert score.mass == pytest.approx(0.9)

    def test_two_verdicts_outside_the_list_are_no_vote(self, start, open_engine):
        """Their mass as far as seen is none, which no threshold lets through."""
        server = start(kind="sglang", most_alternatives=5)
        engine = open_engine(server)
        server.mass = 1e-9
        [score] = engine.score([engine.encode(ASKED)])
        assert math.isnan(score.log_odds)
        assert score.mass == 0

    def test_a_prompt_too_long_is_refused_before_it_is_sent(self, start, open_engine):
        """Both numbers are in the message."""
        server = start(context=100)
        engine = open_engine(server)
        with pytest.raises(EngineError, match="100 tokens; this engine takes 1 to 99"):
            engine.score([[1] * 100])
        assert server.asked == []

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda answer: answer["choices"][0].pop("logprobs") and answer, "no log-probabilities"),
            (lambda answer: answer["usage"].update(prompt_tokens=3) or answer, "cut or changed the prompt"),
            (lambda _: {"nonsense": 1}, "unknown shape"),
        ],
    )
    def test_an_answer_that_cannot_be_trusted_is_an_error(self, start, open_engine, change, words):
        """Missing log-probabilities, a prompt that was cut, and other shapes are each said."""
        server = start()
        engine = open_engine(server)
        server.troubles.append(Trouble(answer=change))
        with pytest.raises(EngineError, match=words) as caught:
            engine.score([engine.encode(ASKED)])
        assert not isinstance(caught.value, EngineGoneError)


class TestGenerating:
    def test_the_verdict_is_read_where_it_was_written(self, start, open_engine):
        """The odds are those of the token after the last opening."""
        server = start(writes="Hm. [[B]]")
        engine = open_engine(server)
        written = engine.generate(engine.encode(Prompt((("user", "Which?"),))), 50)
        assert written.text == "Hm. [[B]]"
        assert written.generated_tokens == 9
        assert written.verdict.log_odds == pytest.approx(odds(server, 0.8)[0])
        assert server.asked[0]["max_tokens"] == 50
        assert server.asked[0]["logprobs"] == 5

    def test_odds_that_are_not_known_are_left_out(self, start, open_engine):
        """A vote comes from the text then."""
        server = start(writes="[[A]]")
        engine = open_engine(server)
        server.likes = lambda _: 1.0
        assert engine.generate(engine.encode(ASKED), 5).verdict is None
        server.writes = "nothing"
        assert engine.generate(engine.encode(ASKED), 7).verdict is None

    def test_generation_ends_at_the_end_of_the_context(self, start, open_engine):
        """No more is asked for than there is room for."""
        server = start(context=100)
        engine = open_engine(server)
        engine.generate([1] * 90, 2048)
        assert server.asked[0]["max_tokens"] == 10
