"""Mistakes in the use of `nightcourt eval` are told before anything is judged or written, with no service there."""

import json
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import Result
from support.rows import write
from typer.testing import CliRunner

from producer.cli.app import make_app
from producer.cli.eval_inputs import read_pairs, read_verdicts
from producer.cli.eval_judging import Given
from producer.evals.rows import Pair
from schemas.comparison import Comparison, ComparisonError, ComparisonStatus
from schemas.lines import read_line
from schemas.problems import Problem

PAIR = {"prompt": "Which?", "chosen": "this", "rejected": "that"}


def run(*arguments: object) -> Result:
    """Give a command that would have to ask a service that is not there."""
    nowhere = {"NIGHTCOURT_SERVER": "http://127.0.0.1:9"}
    return CliRunner().invoke(make_app(), ["eval", *map(str, arguments)], env=nowhere)


def said(ended: Result) -> str:
    """All that it said, without the frame that it is said in."""
    return " ".join(ended.output.replace("│", " ").split())


def problem(ended: Result) -> str:
    """The detail of the problem that a command ended with."""
    assert isinstance(ended.exception, Problem), ended.output
    return ended.exception.detail


class TestWhatIsReadIsNotWritten:
    @pytest.mark.parametrize(
        ("command", "files", "options"),
        [
            ("versus", ["rows.jsonl"], ["--output", "."]),
            ("versus", ["ours.jsonl", "annotations.json"], ["--output", "."]),
            ("tournament", ["ours.jsonl", "rows.csv"], ["--output", "."]),
            ("tournament", ["ours.jsonl", "annotations.json"], ["--output", "."]),
            ("rewardbench", ["rows.jsonl"], ["--output", "."]),
            ("gold", ["rows.jsonl"], ["--output", "."]),
            ("gold", ["ours.jsonl"], ["--output", ".", "--verdicts", "report.json"]),
            ("audit", ["rows.jsonl"], ["--output", "."]),
            ("calibrate", ["rows.jsonl"], ["--output", "."]),
            ("calibrate", ["ours.jsonl"], ["--write", "ours.jsonl"]),
            ("calibrate", ["ours.jsonl"], ["--write", "report.json", "--output", "."]),
            ("calibrate", ["ours.jsonl"], ["--write", "v.jsonl", "--verdicts", "v.jsonl"]),
            ("curate", ["ours.jsonl"], ["--write", "ours.jsonl"]),
            ("curate", ["ours.jsonl"], ["--write", "v.jsonl", "--verdicts", "v.jsonl"]),
            ("curate", ["out.jsonl.datasheet.json"], ["--write", "out.jsonl"]),
            ("curate", ["ours.jsonl"], ["--write", "rows.jsonl", "--output", "."]),
        ],
    )
    def test_no_command_writes_over_its_input(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, files: list[str], options: list[str]
    ):
        """Neither --write nor a name of the report may be a file that is read; all stay as they were."""
        monkeypatch.chdir(tmp_path)
        here = {name: write(Path(name), [PAIR]) for name in [*files, *options] if "." in name and name != "."}
        before = {name: file.read_bytes() for name, file in here.items()}
        ended = run(command, *files, *options)
        assert ended.exit_code == 2, ended.output
        assert "is the input itself" in said(ended) or "the report would be written over" in said(ended)
        assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before

    @pytest.mark.parametrize("command", ["calibrate", "curate"])
    @pytest.mark.parametrize(
        ("target", "why"), [("nowhere/out.jsonl", "there is no folder"), ("folder.jsonl", "is a folder")]
    )
    def test_where_nothing_can_be_written(self, tmp_path: Path, command: str, target: str, why: str):
        """A --write that cannot be is refused by its name before anything is judged."""
        (tmp_path / "folder.jsonl").mkdir()
        ended = run(command, write(tmp_path / "pairs.jsonl", [PAIR]), "--write", tmp_path / target)
        assert ended.exit_code == 2, ended.output
        assert why in said(ended)

    def test_a_report_needs_a_folder(self, tmp_path: Path):
        """A file where the report's folder is to be is told before anything is judged."""
        ended = run("gold", write(tmp_path / "pairs.jsonl", [PAIR]), "--output", write(tmp_path / "report", []))
        assert ended.exit_code == 2, ended.output
        assert "is no folder" in said(ended)


def outputs(file: Path, prompts: int, generator: str) -> Path:
    """AlpacaEval outputs of a system."""
    return write(
        file,
        [{"instruction": f"Do {n}", "output": f"{generator} did {n}", "generator": generator} for n in range(prompts)],
    )


class TestWhatDoesNotFit:
    @pytest.mark.parametrize(
        "option",
        [
            ("--profile", "card"),
            ("--tie-margin", "0.2"),
            ("--server", "http://127.0.0.1:9"),
            ("--data-dir", "."),
            ("--fresh",),
        ],
        ids=lambda option: option[0],
    )
    def test_options_of_judging_with_verdicts(self, tmp_path: Path, option: tuple[str, ...]):
        """What says how or where to judge is refused where verdicts are given, and not ignored."""
        file = write(tmp_path / "pairs.jsonl", [PAIR])
        ended = run("gold", file, "--verdicts", tmp_path / "v.jsonl", *option)
        assert ended.exit_code == 2, ended.output
        assert option[0] in said(ended)
        assert "goes not with --verdicts" in said(ended)

    def test_a_target_without_rounds(self, tmp_path: Path):
        """Only an adaptive tournament can stop at a target."""
        files = [outputs(tmp_path / f"{name}.jsonl", 2, name) for name in "ab"]
        ended = run("tournament", *files, "--target", "40")
        assert ended.exit_code == 2, ended.output
        assert "goes with --schedule adaptive" in said(ended)

    def test_a_part_of_the_baseline(self, tmp_path: Path):
        """Three of thirty instructions are no comparison of two systems on the same set."""
        ours, theirs = outputs(tmp_path / "a.jsonl", 3, "a"), outputs(tmp_path / "b.jsonl", 30, "b")
        ended = run("versus", ours, theirs)
        assert ended.exit_code == 1
        assert f"{theirs}: the instruction of row 4 is not in {ours}; it lacks 27 of 30 rows" in problem(ended)

    def test_two_systems_of_one_name(self, tmp_path: Path):
        """A report could not tell them apart."""
        ended = run("versus", *[outputs(tmp_path / f"{name}.jsonl", 3, "m") for name in "ab"])
        assert "its system is called m as that of" in problem(ended)

    @pytest.mark.parametrize("content", ["[]", "", "\n"])
    @pytest.mark.parametrize("command", ["versus", "tournament"])
    @pytest.mark.parametrize("first", [True, False])
    def test_outputs_of_nothing(self, tmp_path: Path, command: str, content: str, *, first: bool):
        """A file with no rows is named, whichever it is."""
        (empty := tmp_path / "empty.json").write_text(content)
        files = [empty, outputs(tmp_path / "a.jsonl", 3, "a")]
        assert f"{empty}: there is nothing in it" in problem(run(command, *(files if first else reversed(files))))


def answer(custom_id: str) -> Comparison:
    """A comparison that came back, under the name that it was sent by."""
    now = datetime.now(UTC)
    return Comparison(
        id=f"cmp_{7:032x}_1",
        status=ComparisonStatus.ERRORED,
        created_at=now,
        decided_at=now,
        custom_id=custom_id,
        metadata={},
        verdict=None,
        error=ComparisonError(code="engine_error", message="It would not."),
    )


class TestVerdictsOfOtherTexts:
    PAIRS = tuple(
        Pair(id=f"{n}:0-1", prompt=f"Do {n}", response_a="this", response_b=f"that {n}", options={"order": "ab"})
        for n in range(3)
    )

    def verdicts(self, pairs: Iterable[Pair], name: str = "custom_id") -> Given:
        """Verdicts as they come back from a service that was sent these pairs."""
        return Given(
            Path("v.jsonl"),
            {getattr(pair, name): answer(custom_id=getattr(pair, name)) for pair in pairs},
        )

    def test_the_same_texts(self):
        """Each pair finds its own."""
        rows = self.verdicts(self.PAIRS)(list(self.PAIRS)).rows
        assert [row.id for row in rows] == [pair.id for pair in self.PAIRS]

    def test_files_in_another_order(self):
        """The verdicts of swapped responses are refused, and not taken for their opposites."""
        swapped = [replace(pair, response_a=pair.response_b, response_b=pair.response_a) for pair in self.PAIRS]
        with pytest.raises(Problem, match=r"of other texts, or the files were given in another order: of 3 pairs 3"):
            self.verdicts(self.PAIRS)(swapped)

    def test_plain_names_go_by_position(self):
        """Verdicts of `batch run` have no mark, and are taken at their word."""
        assert len(self.verdicts(self.PAIRS, "id")(list(self.PAIRS)).rows) == 3

    def test_two_verdicts_of_one_pair(self, tmp_path: Path):
        """Of results of two batches in one file, neither is taken for the other; the same line twice is one."""
        file = write(tmp_path / "v.jsonl", [(one := answer("x").model_dump(mode="json")), one])
        assert list(read_verdicts(file)) == ["x"]
        write(file, [one, one | {"error": {"code": "unparseable", "message": "It said neither."}}])
        with pytest.raises(Problem, match="line 2: another line has a different verdict of x"):
            read_verdicts(file)

    def test_a_pair_that_has_none(self):
        """What was never judged is told as such."""
        with pytest.raises(Problem, match="of 3 pairs 1 have no line here, the first is 2:0-1"):
            self.verdicts(self.PAIRS[:2])(list(self.PAIRS))

    @pytest.mark.parametrize("length", [1, 243, 244, 256])
    def test_every_name_can_be_sent(self, length: int):
        """A mark takes no name over what a comparison's may be."""
        line = replace(self.PAIRS[0], id="x" * length).line()
        assert read_line(json.dumps(line).encode()).custom_id.startswith("x" * length)

    def test_what_a_line_says_of_its_judging(self, tmp_path: Path):
        """Order, margin and profile of a line are sent with it, as `batch run` sends them."""
        says = {"order": "ab", "tie_margin": 0.25, "profile": "card"}
        [pair] = read_pairs(write(tmp_path / "pairs.jsonl", [PAIR | says]))
        assert read_line(json.dumps(pair.line()).encode()).request.items() >= says.items()
