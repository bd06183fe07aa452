"""Curating preference rows: every row's fate, and the rows that trainers read."""

import hashlib
import itertools
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import trl
from support.judged import JUDGE, untraceable

from producer.cli.eval_inputs import read_preferences
from producer.cli.eval_runs import curate_file
from producer.cli.training import write_training
from producer.evals import curating
from producer.evals.curating import FATES, File, Rules, Source, decide, settle, training_rows
from producer.evals.rows import Judged, Pair, Row
from schemas.lines import BadLineError, unwrap
from schemas.problems import Problem

RULES = Rules(min_confidence=0.7, flip_confidence=0.9)
FILE = File(name="rows.jsonl", sha256="0" * 64, rows=1)


def a_row(probability: float | None, *, label: str = "A", consistent: bool | None = True, number: int = 0) -> Row:
    """A judged row."""
    winner = None if probability is None else ("A" if probability >= 0.5 else "B")
    vote_ba = winner if consistent else ("B" if winner == "A" else "A")
    return Row(
        id=str(number),
        group=str(number),
        label=label,
        winner=winner,
        probability_a=probability,
        consistent=consistent,
        vote_ab=winner,
        vote_ba=None if consistent is None else vote_ba,
    )


def a_pair(number: int, label: str = "A", *, a: object = "good", b: object = "bad", prompt: object = "Why?") -> Pair:
    """A pair with a label."""
    return Pair(id=str(number), prompt=prompt, response_a=a, response_b=b, label=label, group=str(prompt), subset="one")


class TestFates:
    @pytest.mark.parametrize(
        ("row", "fate"),
        [
            (a_row(0.7), "kept"),
            (a_row(0.69), "unsure"),
            (replace(a_row(0.8), winner="tie"), "unsure"),
            (replace(a_row(0.05), winner="tie"), "unsure"),
            (a_row(0.5), "unsure"),
            (a_row(0.49), "disagrees"),
            (a_row(0.11), "disagrees"),
            (a_row(0.1), "flipped"),
            (a_row(0.1, label="B"), "kept"),
            (a_row(0.9, label="B"), "flipped"),
            (a_row(0.99, consistent=False), "inconsistent"),
            (a_row(0.01, consistent=None), "inconsistent"),
            (a_row(None), "no_verdict"),
            (Row(id="1", group="1", label="A", winner="A", consistent=True), "no_probability"),
        ],
    )
    def test_a_judged_row(self, row: Row, fate: str):
        """Kept where the judge is sure of the label, flipped where it is surer still of the other response."""
        assert decide(row, RULES) == fate

    def test_rules_can_be_loosened(self):
        """Without flipping a wrong label is left out, and without consistency one order is enough."""
        assert decide(a_row(0.01), Rules(flip_confidence=None)) == "disagrees"
        assert decide(a_row(0.99, consistent=False), Rules(consistent=False)) == "kept"

    def test_what_no_judge_is_asked_about(self):
        """The same pair again, the same pair with the opposite label, and two equal responses cost nothing."""
        pairs = [
            a_pair(1, "A"),
            a_pair(2, "A"),
            a_pair(3, "B", a="bad", b="good"),
            a_pair(4, "B"),
            a_pair(5, "A", b="good"),
            a_pair(6, "A", prompt="How?"),
        ]
        source = Source(pairs, ["line 9"])
        expected = {"2": "duplicate", "3": "duplicate", "4": "contradiction", "5": "same_responses"}
        assert source.before_judging() == expected
        assert [pair.id for pair in source.to_judge()] == ["1", "6"]
        settled = settle(source, Judged([a_row(0.9, number=1), a_row(0.05, number=6)], [JUDGE]), RULES)
        assert {row.id: row.fate for row in settled.rows} == {
            "1": "kept", "6": "flipped", "line 9": "unreadable", **expected,
        }  # fmt: skip

    def test_every_row_is_counted_once_and_every_figure_names_its_rows(self):
        """Fates add up to all rows, whatever they are, and the columns of each figure select what it counted."""
        rows = [
            a_row(p, label=label, consistent=agree, number=number)
            for number, (p, label, agree) in enumerate(
                itertools.product([None, 0.02, 0.3, 0.55, 0.8, 0.98], ["A", "B"], [True, False])
            )
        ]
        pairs = [a_pair(int(row.id), row.label, prompt=row.id) for row in rows] + [a_pair(99, b="good")]
        judged = settle(Source(pairs, ["line 100"]), Judged(rows, [JUDGE]), RULES)
        found = curating.count(judged, RULES, source=FILE, written=FILE, form="dpo")
        assert [each.fate for each in found.fates] == list(FATES)
        assert sum(each.rows.hits for each in found.fates) == found.pairs == len(rows) + 2
        assert untraceable(found, judged.rows) == []
        assert sum(found.without_verdict.values()) == found.pairs - found.decided

    def test_the_margin_is_in_log_odds_of_the_better(self):
        """A flipped row's margin is of the response that is the better now, and certainty stays a number."""
        kept, flipped, sure = a_row(0.8), a_row(0.05), a_row(1.0)
        rows = settle(Source([a_pair(0)], []), Judged([kept], []), RULES).rows
        assert rows[0].margin == pytest.approx(math.log(4))
        rows = settle(Source([a_pair(0)], []), Judged([flipped], []), RULES).rows
        assert rows[0].margin == pytest.approx(math.log(19))
        assert rows[0].chosen == "B"
        rows = settle(Source([a_pair(0)], []), Judged([sure], []), RULES).rows
        assert 20 < rows[0].margin < 21


TEXTS = [a_pair(0), a_pair(1, "B", prompt="How?")]
TURNS = [a_pair(0), a_pair(1, "B", prompt=[{"role": "user", "content": "How?"}])]
JUDGED = [a_row(0.9, number=0), a_row(0.95, label="B", number=1)]


def test_the_datasheet_is_of_the_rows_that_were_read(tmp_path: Path):
    """The file may be another by the time that all is judged, a night later."""
    file, written = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    file.write_text('{"prompt": "Q", "chosen": "same", "rejected": "same"}\n{no json\n')
    before = hashlib.sha256(file.read_bytes()).hexdigest()

    @contextmanager
    def judge(*_: object) -> Iterator[None]:
        file.write_text("")
        yield

    asked = SimpleNamespace(judge=judge, as_json=True, output=None)
    curate_file(asked, file, written, "dpo", RULES, skip=True)
    source = json.loads((tmp_path / "out.jsonl.datasheet.json").read_text())["source"]
    assert (source["sha256"], source["rows"]) == (before, 2)


class TestTrainingRows:
    @pytest.mark.parametrize("form", trl.FORMATS)
    @pytest.mark.parametrize("pairs", [TEXTS, TURNS], ids=["text", "conversations"])
    def test_rows_have_the_form_that_trl_documents(self, form: str, pairs: list[Pair]):
        """DPO, KTO and reward rows validate against the documented formats, and a set has one form."""
        source = Source(pairs, [])
        rows = settle(source, Judged(JUDGED, []), RULES).rows
        written = list(training_rows(rows, source, form))
        assert len(written) == (4 if form == "kto" else 2)
        trl.check(written, form, conversational=pairs is TURNS)

    def test_a_flipped_row_has_its_responses_changed_over(self):
        """The label of the second says the worse answer; written out, the better is chosen, in every form."""
        source = Source(TEXTS, [])
        rows = settle(source, Judged(JUDGED, []), RULES).rows
        assert [row.fate for row in rows] == ["kept", "flipped"]
        assert list(training_rows(rows, source, "dpo")) == [
            {"prompt": "Why?", "chosen": "good", "rejected": "bad", "flipped": False},
            {"prompt": "How?", "chosen": "good", "rejected": "bad", "flipped": True},
        ]
        completions = [(row["completion"], row["label"]) for row in training_rows(rows, source, "kto")]
        assert completions == [("good", True), ("bad", False)] * 2

    @pytest.mark.parametrize("form", trl.FORMATS)
    def test_other_columns_are_kept_as_they_were(self, tmp_path: Path, form: str):
        """By them a row is found again; what the form has of its own, or would be another form's, is not among them."""
        beside = {"id": 7, "score_chosen": 9.5, "score_rejected": None, "metadata": {"k": "v"}, "order": "ab"}
        others = {"label": "?", "messages": [], "completion": "", "margin": 3, "flipped": "no"}
        texts = {"prompt": "Q", "chosen": "g", "rejected": "b"}
        (file := tmp_path / "rows.jsonl").write_text(
            json.dumps({**others, **beside, **texts})
            + "\n"
            + json.dumps({"prompt": "P", "response_a": "g", "response_b": "b", "label": "B", "subset": "s"})
        )
        source = read_preferences(file)
        rows = [
            replace(a_row(0.9, label=pair.label), id=pair.id, fate=fate)
            for pair, fate in zip(source.pairs, ["kept", "flipped"], strict=True)
        ]
        written = list(training_rows(rows, source, form))
        trl.check(written, form)
        fields = trl.FORMATS[form][0].model_fields
        rest = [{name: value for name, value in row.items() if name not in fields} for row in written]
        kept = beside | ({} if form == "reward" else {"margin": 3}) | {"flipped": False}
        flipped = {"subset": "s", "flipped": True}
        assert rest == ([kept, kept, flipped, flipped] if form == "kto" else [kept, flipped])

    def test_columns_of_parquet_are_those_of_all_rows(self, tmp_path: Path):
        """One that not every row has is not lost; one that has no one type is JSON, and the others are as they were."""
        parquet = pytest.importorskip("pyarrow.parquet")
        rows = [
            {"prompt": "Q", "mixed": 1, "empty": {}, "large": 2**70, "number": 1},
            {"prompt": "P", "mixed": [{"a": "é"}], "empty": {}, "late": {"k": [1]}, "number": 2.5},
        ]
        write_training(rows, tmp_path / "out.parquet")
        assert parquet.read_table(tmp_path / "out.parquet").to_pylist() == [
            {"prompt": "Q", "mixed": "1", "empty": "{}", "large": str(2**70), "number": 1.0, "late": None},
            {"prompt": "P", "mixed": '[{"a": "é"}]', "empty": "{}", "large": None, "number": 2.5, "late": {"k": [1]}},
        ]

    @pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
    def test_files_are_the_same_bytes_and_read_back(self, tmp_path: Path, suffix: str):
        """What is written twice is the same file, and Arrow, by which data sets are loaded, reads it as it was."""
        pyarrow_json = pytest.importorskip("pyarrow.json")
        pyarrow_parquet = pytest.importorskip("pyarrow.parquet")
        rows = [{"prompt": [{"role": "user", "content": f"é {n}"}], "margin": n / 7} for n in range(50)]
        one, other = (write_training(rows, tmp_path / f"{name}.{suffix}") for name in ("one", "other"))
        assert one.sha256 == other.sha256
        assert (tmp_path / f"one.{suffix}").read_bytes() == (tmp_path / f"other.{suffix}").read_bytes()
        read = pyarrow_json.read_json if suffix == "jsonl" else pyarrow_parquet.read_table
        assert read(tmp_path / f"one.{suffix}").to_pylist() == rows


USER, GOOD, BAD = (
    {"role": role, "content": text} for role, text in (("user", "Q"), ("assistant", "g"), ("assistant", "b"))
)


class TestForms:
    @pytest.mark.parametrize(
        ("row", "prompt", "better"),
        [
            ({"prompt": "Q", "chosen": "g", "rejected": "b"}, "Q", "g"),
            ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, [USER], [GOOD]),
            ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, [USER], [GOOD]),
            ({"prompt": "Q", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, [USER], [GOOD]),
            ({"chosen": "The sky is blue.", "rejected": "The sky is green."}, "The sky is", " blue."),
            ({"chosen": "Of cars and carts", "rejected": "Of cars and cartons"}, "Of cars and", " carts"),
            (
                {"chosen": "\n\nHuman: Hi\n\nAssistant: I say yes", "rejected": "\n\nHuman: Hi\n\nAssistant: I say no"},
                "\n\nHuman: Hi\n\nAssistant:",
                " I say yes",
            ),
            (
                {
                    "chosen": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: So?\n\nAssistant: Yes",
                    "rejected": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: So?\n\nAssistant: No",
                },
                "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: So?\n\nAssistant:",
                " Yes",
            ),
            ({"chosen": [USER, GOOD], "rejected": [USER, GOOD, USER, BAD]}, [USER], [GOOD]),
            ({"prompt": "Q", "chosen": "g", "rejected": "b", "body": "of a mail"}, "Q", "g"),
        ],
    )
    def test_explicit_implicit_conversational(self, row: dict, prompt: object, better: object):
        """Each of the forms of preference rows is a prompt and two responses, whose better one is known."""
        line = unwrap(row)
        assert line.request["prompt"] == prompt
        assert line.request["response_a" if line.label == "A" else "response_b"] == better

    def test_either_response_may_be_the_better_one(self):
        """Which slot it gets is as good as tossed up, so that a judge that leans to one gains nothing; it stays so."""
        rows = [{"prompt": f"Q{number}", "chosen": "g", "rejected": "b"} for number in range(400)]
        labels = [unwrap(row).label for row in rows]
        assert 150 < labels.count("A") < 250
        assert labels == [unwrap(row | {"split": "train"}).label for row in rows]

    @pytest.mark.parametrize(
        "row",
        [
            {"chosen": "Yes", "rejected": "No"},
            {"chosen": " a", "rejected": " b"},
            {"chosen": [GOOD], "rejected": [BAD]},
            {"chosen": [USER, GOOD], "rejected": "b"},
        ],
    )
    def test_without_a_shared_beginning_the_prompt_is_missed(self, row: dict):
        """Rows without a prompt that do not begin alike are refused, by the name of the field."""
        with pytest.raises(BadLineError, match="prompt: is missing"):
            unwrap(row)

    def test_bad_lines_are_refused_or_noted(self, tmp_path: Path):
        """A file with lines that say no preference is refused by the first of them, or read without them."""
        file = tmp_path / "rows.jsonl"
        rows = [
            {"id": 1, "prompt": "Q", "chosen": "g", "rejected": "b"},
            {"id": 2, "prompt": "Q", "response_a": "g", "response_b": "b"},
            {"id": 1, "prompt": "Q", "chosen": "g", "rejected": "b"},
            {"prompt": "Q", "response_a": "g", "response_b": "b", "label": "B"},
        ]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{no json\n")
        with pytest.raises(Problem, match=r"line 2: it does not say which response is the better.*--on-bad-line skip"):
            read_preferences(file)
        source = read_preferences(file, skip=True)
        assert [pair.id for pair in source.pairs] == ["1", "4"]
        assert source.unreadable == ["line 2", "line 3", "line 5"]
