"""`nightcourt` as a program: started, heard, signalled and ended by tests."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from infra.environment import child_environment
from infra.local.ports import free_port
from support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
BATCH_ID = re.compile(r"batch_[0-9a-f]{32}")

OF_THE_CALLER = re.compile(r"NIGHTCOURT_|XDG_|FORCE_COLOR|NO_COLOR|PY_COLORS|GITHUB_ACTIONS|COLUMNS|TERM")
"""What the environment of the test run must not bring into ours."""


@dataclass
class Ended:
    """What a command said, and how it ended."""

    status: int
    out: str
    err: str

    @property
    def objects(self) -> list[dict]:
        """The JSON objects on standard output, one a line."""
        return [json.loads(line) for line in self.out.splitlines()]


class Cli:
    """`nightcourt` with no settings but those given, and a user's data folder of the test's own."""

    def __init__(self, home: Path) -> None:
        inherited = child_environment({})
        self.environment = {name: value for name, value in inherited.items() if not OF_THE_CALLER.match(name)}
        self.environment |= {
            "XDG_DATA_HOME": str(home),
            "XDG_STATE_HOME": str(home / "state"),
            "NIGHTCOURT_PORT": str(free_port()),
        }

    def start(self, *arguments: object, out: int | IO[bytes], err: int | IO[bytes], **settings: object):
        """Start a command and do not wait for it."""
        return subprocess.Popen(
            [sys.executable, "-m", "producer.cli", *map(str, arguments)],
            cwd=ROOT,
            env=self.environment | {f"NIGHTCOURT_{name.upper()}": str(value) for name, value in settings.items()},
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )

    within = 120.0
    """Seconds in which a command has to come to its end."""

    def __call__(self, *arguments: object, given: str = "", **settings: object) -> Ended:
        """Run a command to its end. What it says into a pipe is plain text, and never a trace."""
        process = self.start(*arguments, out=subprocess.PIPE, err=subprocess.PIPE, **settings)
        out, err = process.communicate(given.encode(), timeout=self.within)
        ended = Ended(process.returncode, out.decode(), err.decode())
        assert "\x1b" not in ended.out + ended.err
        assert "Traceback" not in ended.out + ended.err
        return ended


def program_of(data: Path, home: Path) -> Cli:
    """Make the program, told by its environment which service to use: the one that runs on a folder."""
    program = Cli(home)
    program.environment["NIGHTCOURT_DATA_DIR"] = str(data)
    return program


@dataclass
class Running:
    """A command that runs, and what it has said so far."""

    process: subprocess.Popen
    said: Path

    def until(self, words: str, *, within: float = 180) -> str:
        """Wait until it says something; returns all of what it said."""

        def heard() -> str | None:
            text = self.said.read_text()
            assert self.process.poll() is None or words in text, text
            return text if words in text else None

        return wait_until(heard, within=within, what=f"the command says {words!r}")

    def end(self, number: signal.Signals) -> tuple[int, str]:
        """Signal it, see that it takes all of its processes with it, and return its status and what it said."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(number)
        status = self.process.wait(timeout=60)
        _, left = psutil.wait_procs(family, timeout=10)
        assert left == []
        return status, self.said.read_text()


@contextmanager
def running(cli: Cli, folder: Path, *arguments: object, **settings: object) -> Iterator[Running]:
    """Run a command until the block ends."""
    said = folder / "said"
    with said.open("wb") as file:
        process = cli.start(*arguments, out=file, err=file, **settings)
    try:
        yield Running(process, said)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stdin.close()
