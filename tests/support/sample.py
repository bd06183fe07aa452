"""The sample receiver, run as its text says."""

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

from infra.environment import child_environment
from infra.local.ports import free_port
from support.program import ROOT
from support.waiting import wait_until


@dataclass
class Sample:
    """A running sample receiver."""

    port: int
    file: Path

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}/"

    def effects(self) -> list[tuple[str, str]]:
        """What events have had for effects: the object and the type, one each time."""
        with closing(sqlite3.connect(self.file)) as database:
            return database.execute("SELECT object, type FROM effects").fetchall()

    def listens(self) -> bool:
        """Whether it is there, and refuses what is not signed."""
        try:
            return httpx2.post(self.url, content=b"{}", trust_env=False).status_code == 400
        except httpx2.TransportError:
            return False


@contextmanager
def sample_receiver(secret: str, folder: Path) -> Iterator[Sample]:
    """Run it until the block ends."""
    sample = Sample(free_port(), folder / "seen.sqlite")
    program = subprocess.Popen(
        [sys.executable, ROOT / "examples" / "receiver.py", str(sample.port), sample.file],
        env=child_environment({"NIGHTCOURT_SECRET": secret, "PYTHONPATH": str(ROOT)}),
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(sample.listens, within=60, what="the sample receiver listens")
        yield sample
    finally:
        program.terminate()
        program.wait()
