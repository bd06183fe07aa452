"""Reading servers' answers: both forms of them, and what may be said where a verdict token is missing."""

import math

import pytest
from support.court import comparison

from schemas.problems import OutcomeError
from schemas.verdict import Tally
from worker import verdicts
from worker.bench import Rules
from worker.cases import Case
from worker.engines import completions
from worker.engines.base import EngineError, Score, VerdictTokens
from worker.engines.completions import Position

TOKENS = VerdictTokens(a=32, b=33)


def older(tokens, chosen, listed, *, prompt_tokens=7, **usage):
    """An answer in the form of OpenAI's older interface."""
    return {
        "choices": [
            {"text": "x", "logprobs": {"tokens": tokens, "token_logprobs": chosen, "top_logprobs": listed}},
        ],
        "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": len(tokens)} | usage,
    }


class TestForms:
    def test_tokens_named_by_id(self):
        """Where vLLM was asked for ids, they are the keys."""
        answer = older(["token_id:32"], [-0.1], [{"token_id:32": -0.1, "token_id:33": -2.4}])
        [position] = completions.read(answer, expected_tokens=7).positions
        assert position.likeliest == {32: -0.1, 33: -2.4}

    def test_tokens_named_by_text(self):
        """Elsewhere their texts are; what was written counts among the likeliest, listed or not."""
        answer = older(["A"], [-0.1], [{"B": -2.4}])
        [position] = completions.read(answer, expected_tokens=7).positions
        assert position == Position("A", {"A": -0.1, "B": -2.4})

    def test_a_text_that_looks_like_an_id_and_is_none(self):
        """Only digits after the mark make an id."""
        assert completions._key("token_id:x") == "token_id:x"

    def test_entries_with_ids(self):
        """llama.cpp's server lists entries, each with its id."""
        entry = {"id": 32, "token": "A", "bytes": [65], "logprob": -0.1}
        answer = {
            "choices": [{"text": "A", "logprobs": {"content": [entry | {"top_logprobs": [entry]}]}}],
            "usage": {
                "prompt_tokens": 7,
                "completion_tokens": 1,
                "prompt_tokens_details": {"cached_tokens": 4},
            },
        }
        found = completions.read(answer, expected_tokens=7)
        assert found.positions == [Position("A", {32: -0.1})]
        assert (found.generated_tokens, found.cached_tokens) == (1, 4)

    @pytest.mark.parametrize(("said", "kept"), [(0, 0), (7, 7), (8, 7), (10**12, 7), (-1, 0), (None, 0)])
    def test_no_more_of_a_prompt_came_from_the_cache_than_it_has(self, said, kept):
        """What is said of the cache is added up and stored, so a number without sense is cut to size."""
        answer = older(["A"], [-0.1], [{"B": -2.4}], prompt_tokens_details={"cached_tokens": said})
        assert completions.read(answer, expected_tokens=7).cached_tokens == kept

    def test_an_impossible_token_has_a_finite_floor(self):
        """Servers write a probability of nothing as null or as -9999; both become what a float can hold."""
        answer = older(["A"], [0.0], [{"A": 0.0, "B": -9999.0, "C": None}])
        [position] = completions.read(answer, expected_tokens=7).positions
        assert position.likeliest == {"A": 0.0, "B": -104.0, "C": -104.0}

    def test_an_answer_without_log_probabilities_has_no_positions(self):
        """That is for the caller to refuse."""
        answer = older([], [], []) | {"choices": [{"text": "A"}]}
        assert completions.read(answer, expected_tokens=7).positions == []

    @pytest.mark.parametrize(
        "answer",
        [
            [],
            {},
            {"choices": []},
            {"choices": [{"text": "A"}], "usage": None},
            older(["A"], [-0.1], []),
            older(["A"], ["x"], [{}]),
            {"choices": [{"text": "A", "logprobs": {"content": [{"token": "A"}]}}], "usage": {}},
        ],
    )
    def test_any_other_shape_is_an_error_in_words(self, answer):
        """What cannot be read is not guessed at, and is not quoted."""
        with pytest.raises(EngineError, match="unknown shape"):
            completions.read(answer, expected_tokens=7)

    @pytest.mark.parametrize("listed", [{"A": 17.5, "B": 12.0}, {"A": -0.1, "B": -0.1}, {"A": math.nan}])
    def test_logits_are_not_taken_for_log_probabilities(self, listed):
        """A server that was set to give raw logits shows it: its probabilities make more than 1."""
        with pytest.raises(EngineError, match="no log-probabilities"):
            completions.read(older(["A"], [-0.2], [listed]), expected_tokens=7)

    def test_a_prompt_that_was_cut_is_never_scored(self):
        """The server says how many tokens it read, and they must be all of them."""
        with pytest.raises(EngineError, match="read 7 prompt tokens of 9"):
            completions.read(older(["A"], [-0.1], [{}]), expected_tokens=9)


class TestOpinions:
    def test_both_verdicts_listed(self):
        """The odds are the difference, the mass the sum."""
        found = completions.opinion({32: math.log(0.6), 33: math.log(0.2)}, TOKENS, by_text=False)
        assert found.log_odds == pytest.approx(math.log(3))
        assert found.mass == pytest.approx(0.8)

    @pytest.mark.parametrize(("there", "odds"), [(32, math.inf), (33, -math.inf)])
    def test_one_missing_is_a_vote_without_odds(self, there, odds):
        """The missing one is less likely than all that are listed; by how much is not made up."""
        found = completions.opinion({there: math.log(0.7), 5: math.log(0.2)}, TOKENS, by_text=False)
        assert found.log_odds == odds
        assert found.mass == pytest.approx(0.7)

    def test_both_missing_is_no_vote(self):
        """Nothing is known, and the mass that was seen is none."""
        found = completions.opinion({5: -0.01}, TOKENS, by_text=False)
        assert math.isnan(found.log_odds)
        assert found.mass == 0

    def test_texts_count_only_where_they_are_unmistakable(self):
        """Several tokens may be written "A"; then a text says nothing."""
        listed = {"A": math.log(0.6), "B": math.log(0.2)}
        assert completions.opinion(listed, TOKENS, by_text=True).log_odds == pytest.approx(math.log(3))
        assert math.isnan(completions.opinion(listed, TOKENS, by_text=False).log_odds)


class TestWrittenVerdicts:
    @pytest.mark.parametrize(
        ("pieces", "at"),
        [
            (["so", " [[", "A", "]]"], 2),
            (["[", "[", "A"], 2),
            (["[[", "B", "]] or", " [[", "A"], 4),
            (["x[[A", "]]"], None),
            (["so [["], None),
            (["no"], None),
            ([], None),
        ],
    )
    def test_the_verdict_is_the_token_after_the_last_opening(self, pieces, at):
        """Merged with the opening, or not written any more, it has no odds."""
        positions = [Position(piece, {number: -1.0}) for number, piece in enumerate(pieces)]
        assert completions.verdict_position(positions) == (None if at is None else positions[at])


class TestBallots:
    """What judging makes of odds that are not known."""

    RULES = Rules(worker="w", lease_seconds=60, max_attempts=3, mass_threshold=0.5)
    CASE = Case(comparison=comparison(), orders=("ab", "ba"), prompts=((1,), (2,)), tokens=2, digest=None)

    def outcome(self, *scores):
        """What comes of two scores, each odds and mass."""
        return verdicts.scored(
            self.RULES, {"card": "jdg_test"}, self.CASE, [Score(odds, mass, 0, 0.1) for odds, mass in scores]
        )

    def test_known_signs_make_a_verdict_of_votes(self):
        """Both orders agree, so the winner is sure; there is no probability, as none is known."""
        tally = Tally.model_validate_json(self.outcome((math.inf, 0.9), (-2.0, 0.9)).tally)
        assert (tally.winner, tally.probability_a, tally.consistent) == ("A", None, True)
        assert [(each.vote, each.log_odds) for each in tally.ballots] == [("A", None), ("B", -2.0)]

    def test_votes_that_cancel_are_a_tie(self):
        """Where the orders contradict each other, odds that are not known decide nothing."""
        tally = Tally.model_validate_json(self.outcome((math.inf, 0.9), (1.0, 0.9)).tally)
        assert (tally.winner, tally.consistent) == ("tie", False)

    def test_the_mass_decides_first(self):
        """A vote of a model that was not answering the question does not count."""
        outcome = self.outcome((math.inf, 0.3), (-2.0, 0.9))
        assert outcome.error_code == OutcomeError.UNPARSEABLE
        assert "0.3 of its probability" in outcome.error_message

    def test_no_vote_is_no_verdict(self):
        """With neither verdict in sight the message gives the mass, which is what one can act on."""
        outcome = self.outcome((math.nan, 0.0), (1.0, 0.9))
        assert outcome.error_code == OutcomeError.UNPARSEABLE
        assert "put 0 of its probability on A and B" in outcome.error_message
