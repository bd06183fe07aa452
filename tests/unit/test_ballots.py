"""From log-odds to verdict, with numbers worked out by hand and with properties that hold for all numbers."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.verdict import Ballot, Tally
from worker import ballots
from worker.ballots import ballot, sigmoid, vote_only

FINITE = st.floats(allow_nan=False, allow_infinity=False)
# Sixteenths within the reach of a model: their sums and halves are exact, so that "equal" can mean equal.
EXACT = st.integers(-800, 800).map(lambda sixteenths: sixteenths / 16)
MARGINS = st.none() | st.floats(0, 0.4999)
MIRROR = {"A": "B", "B": "A", "tie": "tie"}


def count(cast: list[ballots.Ballot], *, temperature: float, tie_margin: float | None) -> Tally:
    """Add ballots up, and read the tally as whoever asks for it does."""
    return Tally.model_validate(ballots.count(cast, temperature=temperature, tie_margin=tie_margin))


def both(s1: float, s2: float, *, temperature: float = 1.0, tie_margin: float | None = None) -> Tally:
    """Count the two orders of a comparison."""
    return count(
        [ballot("ab", s1, 0.9), ballot("ba", s2, 0.9)],
        temperature=temperature,
        tie_margin=tie_margin,
    )


class TestTheFormulas:
    @pytest.mark.parametrize(
        ("s1", "s2", "winner", "probability", "consistent", "bias"),
        [
            # d = (s1 - s2) / 2, P = 1 / (1 + exp(-d)), b = (s1 + s2) / 2
            (2.0, -2.0, "A", 0.8807970779778823, True, 0.0),  # d = 2
            (-2.0, 2.0, "B", 0.11920292202211755, True, 0.0),  # d = -2
            (3.0, -1.0, "A", 0.8807970779778823, True, 1.0),  # d = 2, leaning to the first slot
            (3.0, 1.0, "A", 0.7310585786300049, False, 2.0),  # d = 1, the first slot twice
            (-1.0, -4.0, "A", 0.8175744761936437, False, -2.5),  # d = 1.5, the second slot twice
            (1.0, 3.0, "B", 0.2689414213699951, False, 2.0),  # d = -1
            (2.0, 0.0, "A", 0.7310585786300049, False, 1.0),  # d = 1; no preference is not the same preference
        ],
    )
    def test_two_orders(self, s1, s2, winner, probability, consistent, bias):
        """Preference, probability, consistency and position bias of two orders are as worked out by hand."""
        tally = both(s1, s2)
        assert tally.winner == winner
        assert tally.probability_a == pytest.approx(probability, rel=1e-15)
        assert tally.consistent is consistent
        assert tally.position_bias == bias

    def test_the_temperature_divides_the_preference(self):
        """At temperature 2 a preference of 2 is as much as a preference of 1 at temperature 1."""
        assert both(3.0, -1.0, temperature=2.0).probability_a == pytest.approx(0.7310585786300049, rel=1e-15)

    @pytest.mark.parametrize(
        ("order", "winner", "probability"),
        [("ab", "A", 0.8175744761936437), ("ba", "B", 0.18242552380635635)],
    )
    def test_a_single_order(self, order, winner, probability):
        """With one order the preference is that ballot's, and nothing is known of bias or consistency."""
        tally = count([ballot(order, 1.5, 0.9)], temperature=1.0, tie_margin=None)
        assert tally.winner == winner
        assert tally.probability_a == pytest.approx(probability, rel=1e-15)
        assert (tally.consistent, tally.position_bias) == (None, None)

    def test_a_ballot_is_what_the_model_said_in_that_order(self):
        """Log-odds are stored as they were said, and the vote names a slot, not a response."""
        assert Ballot.model_validate(ballot("ba", 1.5, 0.9)) == Ballot(order="ba", log_odds=1.5, mass=0.9, vote="A")
        assert Ballot.model_validate(ballot("ab", -1.5, 0.9)) == Ballot(order="ab", log_odds=-1.5, mass=0.9, vote="B")

    def test_of_two_slots_exactly_as_likely_the_first_has_the_vote(self):
        """As greedy decoding would write it: published accuracies count what the model wrote in one order."""
        assert ballot("ab", 0.0, 0.9)["vote"] == "A"

    @pytest.mark.parametrize(
        ("x", "value"), [(0.0, 0.5), (1.0, 0.7310585786300049), (-1.0, 0.2689414213699951), (710.0, 1.0)]
    )
    def test_the_sigmoid(self, x, value):
        """The sigmoid is as the tables have it."""
        assert sigmoid(x) == pytest.approx(value, rel=1e-15)

    def test_the_sigmoid_does_not_overflow(self):
        """At the far ends the sigmoid is 0 and 1, where a naive one overflows."""
        assert sigmoid(-1e308) == 0.0
        assert sigmoid(1e308) == 1.0


class TestTies:
    def test_without_a_margin_the_smallest_preference_decides(self):
        """Nobody asked for ties, so the least of preferences makes a winner."""
        assert both(1e-12, -1e-12).winner == "A"

    @pytest.mark.parametrize(
        ("margin", "winner"),
        [(0.0, "A"), (0.04, "A"), (0.05, "tie"), (0.4, "tie")],
    )
    def test_a_margin_makes_ties(self, margin, winner):
        """At d = 0.2 the probability is 0.5498, which is within 0.05 of a half and not within 0.04."""
        assert both(0.2, -0.2, tie_margin=margin).winner == winner

    def test_the_margin_itself_is_a_tie(self):
        """A probability exactly at the margin's edge is within it."""
        edge = sigmoid(1.0) - 0.5
        assert both(1.0, -1.0, tie_margin=edge).winner == "tie"
        assert both(-1.0, 1.0, tie_margin=edge).winner == "tie"
        assert both(1.0, -1.0, tie_margin=math.nextafter(edge, 0)).winner == "A"

    def test_orders_that_cancel_exactly_are_a_tie_even_without_a_margin(self):
        """With d = 0 there is nothing left to tell the responses apart by."""
        tally = both(1.5, 1.5)
        assert (tally.winner, tally.probability_a, tally.consistent) == ("tie", 0.5, False)


class TestVotesWithoutOdds:
    @pytest.mark.parametrize(
        ("ab", "ba", "winner", "consistent"),
        [("A", "B", "A", True), ("B", "A", "B", True), ("A", "A", "tie", False), ("B", "B", "tie", False)],
    )
    def test_two_votes(self, ab, ba, winner, consistent):
        """Votes for the same response make it the winner; votes for the same slot cancel."""
        tally = count([vote_only("ab", ab), vote_only("ba", ba)], temperature=1.0, tie_margin=None)
        assert (tally.winner, tally.consistent) == (winner, consistent)
        assert (tally.probability_a, tally.position_bias) == (None, None)

    @pytest.mark.parametrize(
        ("order", "vote", "winner"),
        [("ab", "A", "A"), ("ab", "B", "B"), ("ba", "A", "B"), ("ba", "B", "A")],
    )
    def test_one_vote(self, order, vote, winner):
        """A single vote is turned to the response that stood in that slot."""
        tally = count([vote_only(order, vote)], temperature=1.0, tie_margin=None)
        assert (tally.winner, tally.probability_a, tally.consistent) == (winner, None, None)

    def test_one_vote_beside_odds_makes_both_of_them_votes(self):
        """Odds and a bare vote cannot be averaged, so the odds count as the vote that they are."""
        tally = count([ballot("ab", 9.0, 0.9), vote_only("ba", "A")], temperature=1.0, tie_margin=None)
        assert (tally.winner, tally.probability_a, tally.position_bias) == ("tie", None, None)

    def test_a_margin_makes_no_tie_of_votes(self):
        """Without a probability there is nothing to hold against a margin."""
        tally = count([vote_only("ab", "A"), vote_only("ba", "B")], temperature=1.0, tie_margin=0.49)
        assert tally.winner == "A"


class TestForAllNumbers:
    @given(s1=FINITE, s2=FINITE, temperature=st.floats(0.01, 100), margin=MARGINS)
    def test_swapping_the_responses_mirrors_the_verdict(self, s1, s2, temperature, margin):
        """Had the responses been filed the other way round, each order's odds would have been the other's."""
        one = both(s1, s2, temperature=temperature, tie_margin=margin)
        other = both(s2, s1, temperature=temperature, tie_margin=margin)
        assert other.probability_a == pytest.approx(1 - one.probability_a, abs=1e-15)
        assert other.consistent == one.consistent
        assert other.position_bias == one.position_bias
        # At a margin's very edge the two probabilities may round to different sides of it.
        if margin is None or abs(abs(one.probability_a - 0.5) - margin) > 1e-12:
            assert other.winner == MIRROR[one.winner]

    @given(s1=FINITE, s2=FINITE, margin=MARGINS)
    def test_the_order_of_the_ballots_does_not_matter(self, s1, s2, margin):
        """It is the same verdict whichever order was asked first."""
        cast = [ballot("ab", s1, 0.9), ballot("ba", s2, 0.9)]
        one = count(cast, temperature=1.0, tie_margin=margin)
        other = count(cast[::-1], temperature=1.0, tie_margin=margin)
        assert other.model_dump(exclude={"ballots"}) == one.model_dump(exclude={"ballots"})

    @given(s1=FINITE, s2=FINITE, temperature=st.floats(0.01, 100))
    def test_the_probability_is_always_one(self, s1, s2, temperature):
        """Whatever finite odds a model gives, the probability is a number from 0 to 1."""
        for tally in (
            both(s1, s2, temperature=temperature),
            count([ballot("ba", s1, 0.9)], temperature=temperature, tie_margin=None),
        ):
            assert 0.0 <= tally.probability_a <= 1.0

    @given(s1=EXACT, s2=EXACT, bias=EXACT)
    def test_a_leaning_to_one_slot_cancels_exactly(self, s1, s2, bias):
        """Adding the same to both orders' odds moves the position bias by it, and the preference not at all."""
        fair, leaning = both(s1, s2), both(s1 + bias, s2 + bias)
        assert leaning.probability_a == fair.probability_a
        assert leaning.winner == fair.winner
        assert leaning.position_bias == fair.position_bias + bias

    @given(s1=EXACT, s2=EXACT)
    def test_consistent_means_that_the_signs_differ(self, s1, s2):
        """Both orders prefer the same response just when their odds have opposite signs."""
        assert both(s1, s2).consistent is (s1 * s2 < 0)

    @given(s1=EXACT, s2=EXACT)
    def test_without_a_margin_the_winner_is_the_probable_one(self, s1, s2):
        """The winner is on the side of the preference, and a tie means that there is none."""
        assert both(s1, s2).winner == ("A" if s1 > s2 else "B" if s1 < s2 else "tie")

    @given(s1=EXACT, s2=EXACT, narrow=st.floats(0, 0.4999), wide=st.floats(0, 0.4999))
    def test_a_wider_margin_never_makes_fewer_ties(self, s1, s2, narrow, wide):
        """What is a tie at one margin is a tie at each wider one, and no margin turns a winner round."""
        narrow, wide = sorted((narrow, wide))
        winners = [both(s1, s2, tie_margin=margin).winner for margin in (None, narrow, wide)]
        for one, other in pairwise(winners):
            assert other in {one, "tie"}
