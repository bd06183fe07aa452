"""What the pocket critic learns from: nothing that it is measured on, and worse answers that are worse."""

import importlib.util
import random
from pathlib import Path

import numpy as np
import pytest

from producer.evals.numbers import wilson

SCRIPT = Path(__file__).resolve().parents[2] / "infra" / "pocket-critic" / "data.py"
spec = importlib.util.spec_from_file_location("pocket_critic_data", SCRIPT)
assert spec is not None
assert spec.loader is not None
data = importlib.util.module_from_spec(spec)
spec.loader.exec_module(data)

LONG = "Whisk three eggs with salt and stir them slowly in warm butter until they are just set"


def rows(*prompts: str) -> list[dict[str, str]]:
    """Make rows with these prompts."""
    return [{"prompt": prompt, "id": str(index)} for index, prompt in enumerate(prompts)]


class TestWhatIsLeftOut:
    @pytest.mark.parametrize(
        "prompt",
        [
            "Name five benefits of exercising daily.",
            "name five benefits of exercising daily",
            "Please name five benefits of exercising daily, and explain each.",
            "Name five benefits of exercising weekly.",
        ],
    )
    def test_a_prompt_nearly_the_same_as_one_to_avoid(self, prompt):
        """Case, marks, a frame around it or one changed word do not hide a prompt that is measured on."""
        kept, dropped = data.without_near(rows(prompt), ["Name five benefits of exercising daily."])
        assert (kept, dropped) == ([], 1)

    @pytest.mark.parametrize("prompt", ["Name five rivers of Asia.", "Why?", ""])
    def test_another_prompt_stays(self, prompt):
        """A few words in common are no likeness."""
        kept, dropped = data.without_near(rows(prompt), ["Name five benefits of exercising daily.", "Who?"])
        assert (len(kept), dropped) == (1, 0)


class TestSplitting:
    def test_no_prompt_is_on_both_sides(self):
        """All rows of a prompt, and of prompts near it, are on one side; the shares are about those asked for."""
        many = rows(*[f"question number {n} about subject {n} and nothing else" for n in range(40) for _ in range(5)])
        train, kept_out = data.split(many, 0.3)
        assert len(train) + len(kept_out) == 200
        assert not {row["prompt"] for row in train} & {row["prompt"] for row in kept_out}
        assert 0.25 < len(kept_out) / 200 < 0.35

    def test_it_is_the_same_every_time(self):
        """What is kept out today was kept out yesterday."""
        many = rows(*[f"{word} one two three" for word in "abcdefghij"])
        assert data.split(many, 0.5) == data.split(many, 0.5)


class TestWorseAnswers:
    @pytest.mark.parametrize("kind", data.KINDS)
    def test_each_kind_differs_from_the_answer(self, kind):
        """Whatever is done to a good answer, it is no longer that answer."""
        worse = data.worsen(kind, "How?", LONG, "A cactus wants little water and much light", random.Random(1))
        assert worse is not None
        assert worse != LONG

    @pytest.mark.parametrize("kind", ["cut", "shuffled", "repetition", "appended", "blend"])
    def test_a_very_short_answer_cannot_be_garbled(self, kind):
        """Two words cut or shuffled may still be right, so no such pair is made."""
        assert data.worsen(kind, "Which?", "Mercury does", "Another answer", random.Random(1)) is None

    def test_the_better_answer_stands_first_and_is_the_question_s_own(self):
        """Every pair made has the question's own good answer as its better one."""
        sources = [
            (f"question {word}?", f"{word} is an answer of rather more than eight words in all") for word in "abcdef"
        ]
        pairs = data.synthetic(sources, 60, random.Random(1))
        assert len(pairs) == 60
        assert all((pair.question, pair.better) in sources and pair.worse != pair.better for pair in pairs)
        assert {pair.kind for pair in pairs} > {"other", "near", "cut"}

    def test_an_answer_to_a_harmful_request_is_no_good_answer(self, tmp_path):
        """The preferred answer to a harmful request is a refusal: it serves as a judged pair, not as a good answer."""
        own = tmp_path / "own.tsv"
        own.write_text("Which?\tThat one.\\nNo other.\n")
        row = {"prompt": "p", "response_a": "No.", "response_b": "Yes", "label": "A", "subset": "safety-refuse|hard"}
        assert data.good_answers([row], own) == [("Which?", "That one.\nNo other.")]


class TestPairsThatNobodyJudged:
    SOURCES = tuple(
        (f"question {word}?", f"{word} is answer {number} of two") for word in "abcdef" for number in (1, 2)
    )

    def test_even_pairs_are_two_good_answers_or_two_answers_to_other_questions(self):
        """What is to teach nothing but that the order makes no difference never has one plainly better answer."""
        pairs = data.even(self.SOURCES, 40, random.Random(1))
        own = {
            question: {answer for asked, answer in self.SOURCES if asked == question} for question, _ in self.SOURCES
        }
        shares = [len({pair.better, pair.worse} & own[pair.question]) for pair in pairs]
        assert len(pairs) == 40
        assert shares.count(2) == 6
        assert {pair.kind for pair in pairs} == {"even"}
        assert all(pair.better != pair.worse for pair in pairs)

    def test_what_the_model_wrote_is_paired_with_itself_and_with_good_answers(self):
        """Of two answers written to a question come three pairs, and none where one is empty or says the same."""
        lines = [
            {"question": "question a?", "answers": ["one", "two"]},
            {"question": "question b?", "answers": ["", "two"]},
            {"question": "question c?", "answers": ["one", "one"]},
        ]
        pairs = data.written(lines, self.SOURCES, random.Random(1))
        assert [pair.question[9] for pair in pairs] == ["a", "a", "a", "b", "c", "c"]
        assert (pairs[0].better, pairs[0].worse) == ("one", "two")
        assert all(pair.better[0] == pair.question[9] for pair in pairs[1:])
        assert {pair.kind for pair in pairs} == {"written"}


def test_the_interval_is_that_of_every_other_figure(monkeypatch: pytest.MonkeyPatch):
    """What the evaluation says of an accuracy is Wilson's interval as evals have it, each row being a prompt."""
    pytest.importorskip("xllamacpp", reason="needs the wheel xllamacpp: install the extra 'embedded'")
    monkeypatch.syspath_prepend(SCRIPT.parent)
    evaluate = importlib.import_module("evaluate")
    found = evaluate.figures([(1.0, -1.0)] * 7 + [(1.0, 1.0)] * 2 + [(-1.0, 1.0)])
    assert found.accuracy == 0.8
    assert (found.low, found.high) == wilson([f"{n}" for n in range(10)], np.array([1.0] * 7 + [0.5] * 2 + [0.0]))
