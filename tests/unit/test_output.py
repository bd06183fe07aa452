"""What is printed is what there is: no text of a user's is rewritten on its way to the screen or into a pipe.

But for what a terminal would obey instead of showing it.
"""

import io
import json
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.markup import escape
from rich.table import Table

from producer.cli import eval_show
from producer.cli.output import Screen, console, fail, is_stream, local_time, progress, screen, write_lines
from producer.cli.pairs import Pair
from producer.cli.submit import print_filed
from producer.cli.verdicts import Decided, print_line
from schemas.comparison import Comparison, ComparisonError, ComparisonRequest
from schemas.problems import BAD_INPUT_FILE, Problem

NAMED = "eval:cat:1"
"""What a terminal's library may take for a picture of a cat."""
NOW = datetime(2026, 1, 31, tzinfo=UTC)
ERRORED = Comparison(
    id=f"cmp_{7:032x}_1",
    status="errored",
    created_at=NOW,
    decided_at=NOW,
    custom_id=NAMED,
    metadata={"of": "[bold]"},
    verdict=None,
    error=ComparisonError(code="engine_error", message="It would not."),
)
PAIR = Pair(ComparisonRequest(prompt="Which?", response_a="this", response_b="that"), label=None, subset=None)


def table() -> None:
    """Show a table in which it stands."""
    shown = eval_show._table("system")
    shown.add_row(escape(NAMED))
    screen(console).print(shown)


def problem() -> None:
    """End with a problem that names it."""
    with pytest.raises(SystemExit):
        fail(Problem(BAD_INPUT_FILE, f"{NAMED}: there is nothing in it.").document())


@pytest.mark.parametrize(
    "say",
    [
        lambda: print_filed([ERRORED], as_json=True),
        lambda: print_line(Decided(PAIR, ERRORED)),
        table,
        problem,
        lambda: console.print(NAMED, markup=False),
        lambda: progress.print(NAMED),
    ],
    ids=["JSON", "a verdict", "a table", "a problem", "results", "progress"],
)
def test_a_name_stays_as_it_is(say: Callable[[], None], capsys: pytest.CaptureFixture[str]):
    """A word between colons is no picture."""
    say()
    said = capsys.readouterr()
    assert NAMED in said.out + said.err


@pytest.mark.parametrize("terminal", [True, False], ids=["a terminal", "a pipe"])
def test_a_name_commands_no_terminal(terminal: bool):
    """Of a row's name or column only a pipe gets control characters; on a screen they are seen and do nothing."""
    out = Screen(file=io.StringIO(), force_terminal=terminal, no_color=True, highlight=False)
    name = "\x1b]52;c;eA==\x1b\\ \x9b2J\x7fé"
    out.print(f"[bold]{escape(name)}[/]", soft_wrap=True)
    (table := Table.grid()).add_row(escape(name))
    out.print(table)
    said = out.file.getvalue()  # type: ignore[attr-defined]
    assert said.count("é") == 2
    assert (name in said) is not terminal
    assert ("\x1b]52" in said, "\x9b" in said, "\x7f" in said) == (not terminal,) * 3
    assert ("\u241b]52;c;eA==\u241b\\ \ufffd2J\ufffdé" in said) is terminal
    assert ("\x1b[1m" in said) is terminal


def test_what_cannot_be_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A file is replaced, whether it is there or not; a pipe, a device and standard output by any name are not."""
    os.mkfifo(pipe := tmp_path / "pipe")
    (there := tmp_path / "there").touch()
    with there.open("w") as out:
        names = [Path("-"), pipe, Path("/dev/null"), there, tmp_path / "none"]
        assert [is_stream(each) for each in names] == [True, True, True, False, False]
        monkeypatch.setattr("sys.stdout", out)
        assert is_stream(there)


def test_standard_output_that_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Files are written all the same, and what was to go there is told."""
    monkeypatch.setattr("sys.stdout", None)
    write_lines([b"a"], file := tmp_path / "out")
    assert file.read_bytes() == b"a\n"
    with pytest.raises(Problem, match="Standard output is closed"):
        write_lines([b"a"], Path("-"))


def test_what_was_filed_reads_back(capsys: pytest.CaptureFixture[str]):
    """Each line for a program is the object itself."""
    print_filed([ERRORED, ERRORED], as_json=True)
    lines = capsys.readouterr().out.splitlines()
    assert [Comparison.model_validate_json(line) for line in lines] == [ERRORED, ERRORED]
    assert json.loads(lines[0])["object"] == "comparison"


def test_a_time_says_how_far_it_is_from_utc(monkeypatch: pytest.MonkeyPatch):
    """Nobody takes the clock here for UTC, or the other way round, and it is read back as the moment that it was."""
    with monkeypatch.context() as there:
        there.setenv("TZ", "Asia/Kolkata")
        time.tzset()
        said = local_time(NOW), local_time(int(NOW.timestamp()))
    time.tzset()
    assert said == ("2026-01-31 05:30:00+05:30",) * 2
    assert datetime.fromisoformat(said[0]) == NOW
