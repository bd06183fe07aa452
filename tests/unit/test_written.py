"""Where results go: into a file whole or not at all, and into what is no file without taking its place."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.program import ROOT

from producer.cli.output import write_bytes, write_lines
from schemas.problems import Problem


def cut() -> Iterator[bytes]:
    """Lines whose source ends early."""
    yield b"one"
    raise KeyboardInterrupt


def test_all_or_nothing(tmp_path: Path):
    """What was there stays until all of the new is there, and nothing else is left behind."""
    file = tmp_path / "results.jsonl"
    file.write_text("before")
    with pytest.raises(KeyboardInterrupt):
        write_lines(cut(), file)
    assert file.read_text() == "before"
    write_lines([b"one", b"two"], file)
    assert file.read_text() == "one\ntwo\n"
    assert list(tmp_path.iterdir()) == [file]


def test_a_pipe_by_name_is_written_to(tmp_path: Path):
    """So is any device: in its place there would be a file, and /dev/null would be gone for the whole machine."""
    os.mkfifo(pipe := tmp_path / "pipe")
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_bytes(b"results", pipe)
        assert stat.S_ISFIFO(pipe.stat().st_mode)
        assert os.read(reading, 100) == b"results"
    finally:
        os.close(reading)
    assert list(tmp_path.iterdir()) == [pipe]


def test_a_pipe_of_the_shell_is_written_to():
    """`>(command)` is a name under /dev/fd, beside which no file can be made."""
    reading, writing = os.pipe()
    try:
        write_lines([b"one"], Path(f"/dev/fd/{writing}"))
        assert os.read(reading, 100) == b"one\n"
    finally:
        os.close(reading)
        os.close(writing)


def test_a_link_stays_one(tmp_path: Path):
    """The file that it leads to is written, or made there, and the link still leads to it."""
    (folder := tmp_path / "folder").mkdir()
    (link := tmp_path / "link").symlink_to(folder / "results.jsonl")
    for text in (b"first", b"second"):
        write_bytes(text, link)
        assert link.is_symlink()
        assert (folder / "results.jsonl").read_bytes() == text
    assert [each.name for each in folder.iterdir()] == ["results.jsonl"]


def test_standard_output_by_another_name(tmp_path: Path):
    """What is printed besides comes before or behind the results, and not over them."""
    program = (
        "import pathlib; from producer.cli.output import console, write_lines; "
        "write_lines([b'one', b'two'], pathlib.Path('/dev/fd/1')); console.print('summary')"
    )
    with (file := tmp_path / "said").open("wb") as out:
        subprocess.run([sys.executable, "-c", program], cwd=ROOT, stdout=out, check=True)
    assert file.read_text() == "one\ntwo\nsummary\n"


def test_what_cannot_be_written_is_told(tmp_path: Path):
    """The problem names the file and says why."""
    with pytest.raises(Problem, match="nowhere/results: No such file or directory"):
        write_bytes(b"", tmp_path / "nowhere" / "results")
