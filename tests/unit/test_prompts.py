"""How a comparison is put to the judge, held against the published prompts byte for byte."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.docket import Filed
from worker import prompts
from worker.prompts import PROFILES, ProfileUnfitError, build

REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "reference"


def reference(name: str) -> str:
    """Read a published prompt, or skip the test where the folder of references is not beside the checkout."""
    path = REFERENCE / name
    if not path.is_file():
        pytest.skip(f"the published prompt shared/reference/{name} is not beside this checkout")
    return path.read_bytes().decode()


def a_comparison(prompt: Any = "Q", a: Any = "first", b: Any = "second", *, profile: str = "card") -> Filed:
    """Make a comparison to be put to the judge."""
    return Filed(
        line=0,
        custom_id=None,
        prompt=prompt,
        response_a=a,
        response_b=b,
        orders="both",
        profile=profile,
        tie_margin=None,
        metadata={},
    )


def turns(*contents: str, first: str = "user") -> list[dict[str, str]]:
    """Make turns that alternate between the user and the assistant."""
    roles = ["user", "assistant"] if first == "user" else ["assistant", "user"]
    return [{"role": roles[index % 2], "content": content} for index, content in enumerate(contents)]


def user_text(prompt: prompts.Prompt) -> str:
    """Read the user's message of a prompt."""
    return dict(prompt.messages)["user"]


class TestTheCard:
    def test_it_is_the_published_prompt_byte_for_byte(self):
        """The model card's prompt, white space at the ends of its lines included, with the texts put in."""
        published = reference("skywork_critic_prompt.txt")
        expected = published.replace("{input}", "Why?").replace("{response_a}", "one").replace("{response_b}", "two")
        assert user_text(build(a_comparison("Why?", "one", "two"), "ab")) == expected

    def test_two_lines_end_in_a_space_and_the_text_in_a_newline(self):
        """The bytes that an editor would clean away are there."""
        text = user_text(build(a_comparison(), "ab"))
        assert [index for index, each in enumerate(text.split("\n")) if each.endswith(" ")] == [0, 1]
        assert text.endswith("[The End of Assistant B's Answer]\n")

    def test_it_is_one_user_turn_with_the_verdict_opened(self):
        """There is no system message, and the assistant's turn begins at the verdict."""
        prompt = build(a_comparison(), "ab")
        assert [role for role, _ in prompt.messages] == ["user"]
        assert prompt.opening == "[["

    def test_the_orders_swap_the_responses_and_nothing_else(self):
        """Order "ba" of a comparison is order "ab" of the same with its responses the other way round."""
        assert build(a_comparison(a="one", b="two"), "ba") == build(a_comparison(a="two", b="one"), "ab")
        text = user_text(build(a_comparison(a="one", b="two"), "ba"))
        assert text.index("\ntwo\n") < text.index("\none\n")

    @pytest.mark.parametrize(
        "hostile",
        ["{question}", "{first}", "{second}", "{", "}", "{}", "{0}", "{{first}}", "{question", "%s", "$first", "\\{"],
    )
    def test_braces_and_slot_names_in_anyone_s_text_are_text(self, hostile):
        """Nothing that a producer files is filled in, doubled or dropped."""
        text = user_text(build(a_comparison(hostile, f"a {hostile} a", f"b {hostile} b"), "ab"))
        assert f"[User Question]\n{hostile}\n\n" in text
        assert f"[The Start of Assistant A's Answer]\na {hostile} a\n[The End" in text
        assert f"[The Start of Assistant B's Answer]\nb {hostile} b\n[The End" in text

    @given(question=st.text(), a=st.text(), b=st.text())
    def test_any_text_arrives_as_it_is(self, question, a, b):
        """Whatever the texts are, the prompt is the frame with these very texts in it."""
        head, rest = prompts.CARD.split("{question}")
        middle, rest = rest.split("{first}")
        between, tail = rest.split("{second}")
        expected = head + question + middle + a + between + b + tail
        assert user_text(build(a_comparison(question, a, b), "ab")) == expected

    def test_an_empty_response_stays_empty(self):
        """A system that said nothing is shown saying nothing."""
        text = user_text(build(a_comparison(a=""), "ab"))
        assert "[The Start of Assistant A's Answer]\n\n[The End of Assistant A's Answer]" in text


class TestThePocketProfile:
    def test_it_is_short_with_a_system_message_of_its_own(self):
        """The words that the pocket critic was trained with, and the verdict opened: one forward pass decides."""
        prompt = build(a_comparison("Why?", "one", "two", profile="pocket"), "ba")
        assert prompt.messages == (
            ("system", "Say which of two answers serves the question better."),
            ("user", "Question: Why?\n\nAnswer A: two\n\nAnswer B: one\n\nWhich answer is better?"),
        )
        assert prompt.opening == "[["


class TestTranscripts:
    def test_one_turn_is_its_text(self):
        """A conversation of one turn is put as the bare text would be."""
        as_turns = a_comparison(turns("Why?"), turns("one", first="assistant"), turns("two", first="assistant"))
        assert build(as_turns, "ab") == build(a_comparison("Why?", "one", "two"), "ab")

    def test_several_turns_name_their_speakers(self):
        """A conversation is written with a speaker before each turn and an empty line between."""
        conversation = [{"role": "system", "content": "Be brief."}, *turns("Hi", "Hello", "Why?")]
        text = user_text(build(a_comparison(conversation), "ab"))
        assert "[User Question]\nSystem: Be brief.\n\nUser: Hi\n\nAssistant: Hello\n\nUser: Why?\n\n[The Start" in text

    def test_a_response_may_be_a_conversation(self):
        """Responses of several turns are written in the same way."""
        longer = turns("one", "More?", "uno", first="assistant")
        text = user_text(build(a_comparison(a=longer, b="two"), "ab"))
        assert "Answer]\nAssistant: one\n\nUser: More?\n\nAssistant: uno\n[The End" in text


class TestRewardBench:
    def test_a_single_turn_is_the_published_prompt(self):
        """System and user message are RewardBench's own, and nothing opens the assistant's turn."""
        published = json.loads(reference("rewardbench_prompts.json"))["single_turn"]
        user = published["user"].replace("{question}", "Why?").replace("{answer_a}", "one")
        prompt = build(a_comparison("Why?", "one", "two", profile="rewardbench"), "ab")
        assert prompt.messages == (("system", published["system"]), ("user", user.replace("{answer_b}", "two")))
        assert prompt.opening == ""

    def test_two_turns_are_the_published_prompt(self):
        """A response that asks and answers again is put in RewardBench's form for two turns."""
        published = json.loads(reference("rewardbench_prompts.json"))["two_turns"]
        user = published["user"]
        for slot, value in {
            "question_1": "Why?",
            "answer_a_1": "one",
            "answer_b_1": "two",
            "question_2": "More?",
            "answer_a_2": "uno",
            "answer_b_2": "dos",
        }.items():
            user = user.replace(f"{{{slot}}}", value)
        one = turns("one", "More?", "uno", first="assistant")
        two = turns("two", "More?", "dos", first="assistant")
        prompt = build(a_comparison("Why?", one, two, profile="rewardbench"), "ab")
        assert prompt.messages == (("system", published["system"]), ("user", user))

    def test_text_and_turns_of_one_are_the_same(self):
        """It does not matter in which of the two forms a single turn was filed."""
        as_turns = a_comparison(
            turns("Why?"), turns("one", first="assistant"), turns("two", first="assistant"), profile="rewardbench"
        )
        assert build(as_turns, "ba") == build(a_comparison("Why?", "one", "two", profile="rewardbench"), "ba")

    def test_the_orders_swap_both_turns(self):
        """In order "ba" the second response's conversation stands first, whole."""
        one = turns("one", "More?", "uno", first="assistant")
        two = turns("two", "More?", "dos", first="assistant")
        swapped = build(a_comparison("Why?", one, two, profile="rewardbench"), "ba")
        assert swapped == build(a_comparison("Why?", two, one, profile="rewardbench"), "ab")

    @pytest.mark.parametrize(
        ("prompt", "a", "b"),
        [
            pytest.param(turns("Hi", "Hello", "Why?"), "one", "two", id="a conversation as the prompt"),
            pytest.param(
                [{"role": "system", "content": "Be brief."}, *turns("Why?")], "one", "two", id="a system turn"
            ),
            pytest.param(
                "Why?", turns("one", "More?", "uno", first="assistant"), "two", id="responses of different lengths"
            ),
            pytest.param(
                "Why?",
                turns("one", "More?", "uno", first="assistant"),
                turns("two", "Else?", "dos", first="assistant"),
                id="a different second question",
            ),
            pytest.param(
                "Why?",
                turns("1", "q", "2", "q", "3", first="assistant"),
                turns("1", "q", "2", "q", "3", first="assistant"),
                id="three turns",
            ),
        ],
    )
    def test_other_shapes_are_refused(self, prompt, a, b):
        """What RewardBench has no form for is refused with the shapes it has, never bent to fit."""
        for order in ("ab", "ba"):
            with pytest.raises(ProfileUnfitError, match="profile rewardbench takes a prompt of one user turn"):
                build(a_comparison(prompt, a, b, profile="rewardbench"), order)


class TestHashes:
    def test_each_profile_has_its_own(self):
        """Two profiles are never taken for one another."""
        assert len({profile.sha256 for profile in PROFILES.values()}) == len(PROFILES)
        assert all(name == profile.name for name, profile in PROFILES.items())

    @pytest.mark.parametrize(
        ("name", "sha256"),
        [
            ("card", "sha256:b05148583300f0359f4ccb055eacf3f0479e76e18aadd1ec518e3e853fe59be5"),
            ("pocket", "sha256:979e8851893b56702ab67e7517165fc3f0bfd1197416c217831339d037d366e0"),
            ("rewardbench", "sha256:d066c27c3825976ce1ed78ee619ce9d91c6538c61cff27af042e556ddcf0e24a"),
        ],
    )
    def test_they_stay_what_they_are(self, name, sha256):
        """A changed prompt is a changed judge: whoever changes one changes this line too, and knows it."""
        assert PROFILES[name].sha256 == sha256

    def test_only_rewardbench_writes(self):
        """The card decides in one forward pass."""
        assert {name for name, profile in PROFILES.items() if profile.writes} == {"rewardbench"}
