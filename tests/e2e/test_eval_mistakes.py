"""Mistakes in the use of `nightcourt eval` are told before anything is judged or written, with no service there."""

import json
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from producer.cli.app import make_app

PAIR = {"prompt": "Which?", "chosen": "this", "rejected": "that"}


def run(*arguments: object) -> Result:
    """Give a command that would have to ask a service that is not there."""
    return CliRunner().invoke(make_app(), ["eval", *map(str, arguments), "--server", "http://127.0.0.1:9"])


def said(ended: Result) -> str:
    """All that it said, without the frame that it is said in."""
    return " ".join(ended.output.replace("│", " ").split())


def write(file: Path, *rows: dict) -> Path:
    """Write rows as JSON lines."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


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
        here = {name: write(Path(name), PAIR) for name in [*files, *options] if "." in name and name != "."}
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
        ended = run(command, write(tmp_path / "pairs.jsonl", PAIR), "--write", tmp_path / target)
        assert ended.exit_code == 2, ended.output
        assert why in said(ended)

    def test_a_report_needs_a_folder(self, tmp_path: Path):
        """A file where the report's folder is to be is told before anything is judged."""
        ended = run("gold", write(tmp_path / "pairs.jsonl", PAIR), "--output", write(tmp_path / "report"))
        assert ended.exit_code == 2, ended.output
        assert "is no folder" in said(ended)
