"""Presence: who can be proved dead, and who cannot."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from infra import presence

HOLD = "import sys, pathlib; from infra import presence; presence.hold(pathlib.Path(sys.argv[1]), sys.argv[2]); {then}"


def start(folder: Path, name: str, then: str) -> subprocess.Popen[str]:
    """Start a process that is present, and wait until it says so."""
    command = [sys.executable, "-c", HOLD.format(then=f"print('here', flush=True); {then}"), str(folder), name]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    return process


def test_the_killed_are_seen_to_once(tmp_path: Path) -> None:
    """A process that was killed is told of to the first who looks, and to nobody after."""
    with start(tmp_path, "w1", "sys.stdin.read()") as process:
        process.kill()
    seen: list[str] = []
    assert presence.bury(tmp_path, seen.append) == ["w1"]
    assert presence.bury(tmp_path, seen.append) == []
    assert seen == ["w1"]


def test_the_living_are_left_alone(tmp_path: Path) -> None:
    """A process that runs is not dead, nor is one that is frozen."""
    with start(tmp_path, "w1", "import time; time.sleep(60)") as process:
        try:
            assert presence.bury(tmp_path, pytest.fail) == []
            process.send_signal(signal.SIGSTOP)
            os.waitpid(process.pid, os.WUNTRACED)
            assert presence.bury(tmp_path, pytest.fail) == []
        finally:
            process.kill()


def test_who_left_is_not_told_of(tmp_path: Path) -> None:
    """A process that ended of its own will took its name away."""
    with start(tmp_path, "w1", "presence.leave(pathlib.Path(sys.argv[1]), sys.argv[2])"):
        pass
    assert presence.bury(tmp_path, pytest.fail) == []


def test_a_name_stays_where_it_could_not_be_seen_to(tmp_path: Path) -> None:
    """Where Postgres is away when the dead are found, the next one to look finds them again."""
    with start(tmp_path, "w1", "pass"):
        pass

    def fail(_: str) -> None:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        presence.bury(tmp_path, fail)
    seen: list[str] = []
    presence.bury(tmp_path, seen.append)
    assert seen == ["w1"]


def test_there_may_be_no_folder_yet(tmp_path: Path) -> None:
    """The first worker of a machine finds nobody, and nothing in its way."""
    assert presence.bury(tmp_path / "none", pytest.fail) == []
