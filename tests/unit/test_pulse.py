"""The pulse: what a process leaves behind as it gets on, and what a probe makes of it."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from support.waiting import wait_until

from infra import pulse


def probe(file: Path, seconds: float) -> subprocess.CompletedProcess:
    """Run the probe as a container does: from anywhere, with nothing in the environment."""
    return subprocess.run(
        [sys.executable, "-m", "infra.pulse", str(file), str(seconds)],
        cwd="/",
        env={"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )


class TestProbe:
    def test_a_process_that_has_just_beaten_is_alive(self, tmp_path):
        """A file touched within the time allowed is a success, and nothing is said."""
        pulse.beat(tmp_path / "pulse")
        ended = probe(tmp_path / "pulse", 60)
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")

    def test_a_process_that_has_stopped_getting_on_is_not(self, tmp_path):
        """A file touched too long ago is a failure that says how long."""
        pulse.beat(tmp_path / "pulse")
        os.utime(tmp_path / "pulse", (1, 1))
        ended = probe(tmp_path / "pulse", 60)
        assert ended.returncode == 1
        assert "60 s are allowed" in ended.stderr

    def test_a_process_that_has_not_begun_is_not(self, tmp_path):
        """Without a file nothing has begun its work yet."""
        ended = probe(tmp_path / "pulse", 60)
        assert ended.returncode == 1
        assert "not begun" in ended.stderr

    def test_a_probe_needs_only_the_standard_library(self):
        """It is run every few seconds, so it loads no library that takes its time."""
        ended = subprocess.run(
            [sys.executable, "-I", "-S", str(Path(pulse.__file__)), "/nowhere", "1"], capture_output=True, check=False
        )
        assert ended.returncode == 1
        assert b"not there" in ended.stderr


class TestBeat:
    def test_without_a_file_there_is_nothing_to_do(self):
        """A process that nothing watches over leaves nothing behind."""
        pulse.beat(None)

    def test_a_file_that_cannot_be_touched_ends_nothing(self, tmp_path):
        """Work goes on where the pulse cannot be left; the probe tells."""
        pulse.beat(tmp_path / "no" / "pulse")
        assert probe(tmp_path / "no" / "pulse", 60).returncode == 1

    def test_a_process_that_starts_has_no_pulse_yet(self, tmp_path):
        """What the process before it left is taken away, so that loading a model for minutes is not taken for work."""
        pulse.beat(tmp_path / "pulse")
        pulse.begin(tmp_path / "pulse")
        assert probe(tmp_path / "pulse", 60).returncode == 1
        pulse.begin(tmp_path / "pulse")
        pulse.begin(None)


class TestAWorkersPulse:
    @pytest.fixture
    def stop(self):
        """What ends the pulse, whatever the test found."""
        event = threading.Event()
        yield event
        event.set()

    @pytest.fixture
    def start(self, tmp_path, stop):
        """Keep a pulse that asks something first, and hand back its file."""

        def start(well: Callable[[], bool]) -> Path:
            pulse.keep(tmp_path / "pulse", every=0.01, stop=stop, well=well)
            return tmp_path / "pulse"

        return start

    def test_it_beats_while_the_engine_would_take_a_prompt(self, start):
        """The file is touched again and again."""
        file = start(lambda: True)
        for _ in range(2):
            wait_until(file.exists, within=60, every=0.01, what="a beat")
            os.utime(file, (1, 1))
            wait_until(lambda: file.stat().st_mtime > 1, within=60, every=0.01, what="another beat")

    def test_an_engine_that_takes_no_prompt_has_none(self, start, stop):
        """An engine that says no is asked again, and beats once it says yes."""
        asked = threading.Semaphore(0)
        recovered = threading.Event()

        def well() -> bool:
            asked.release()
            return recovered.is_set()

        file = start(well)
        for _ in range(3):
            assert asked.acquire(timeout=60)
        assert not file.exists()
        recovered.set()
        wait_until(file.exists, within=60, every=0.01, what="the engine is well again")

    def test_an_engine_that_hangs_has_none(self, start, stop):
        """An engine that does not answer the question stops the pulse."""
        asked = threading.Event()

        def well() -> bool:
            asked.set()
            stop.wait(30)
            return False

        file = start(well)
        assert asked.wait(60)
        assert not file.exists()
