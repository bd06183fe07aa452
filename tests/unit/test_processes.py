"""What a process of the service becomes, and how it hears that it is to end."""

import subprocess
import sys
from pathlib import Path

import pytest

from infra.environment import child_environment

LISTENING = """
import os, signal, sys, threading, time
from producer.cli.processes import told_to_end

sys.setswitchinterval(0.0001)

def tell():
    time.sleep(0.001)
    os.kill(os.getpid(), number)

for number in (signal.SIGTERM, signal.SIGINT) * 25:
    stop = told_to_end()
    threading.Thread(target=tell).start()
    while not stop.wait(0):
        pass
"""


def test_a_signal_ends_a_process_whatever_it_interrupts():
    """Each of fifty signals is heard that come while their process does nothing but look whether one has come."""
    ended = subprocess.run([sys.executable, "-c", LISTENING], check=False, timeout=60)
    assert ended.returncode == 0


@pytest.mark.parametrize(
    ("command", "says"), [("worker", "engine_refused"), ("callbacks-worker", "NIGHTCOURT_SECRET_KEYS")]
)
def test_it_becomes_ours_wherever_it_is_started(command: str, says: str, tmp_path: Path):
    """A program named `worker.py` in the current folder, as anybody may have one, is let alone."""
    (tmp_path / "worker.py").write_text("raise SystemExit('not ours')")
    model = tmp_path / "model.gguf"
    model.write_text("not a model")  # so that it ends before anything is started
    told = child_environment({"NIGHTCOURT_MODEL": str(model)})
    ended = subprocess.run(
        [sys.executable, "-P", "-m", "producer.cli", command],
        cwd=tmp_path,
        env=told,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    said = ended.stdout + ended.stderr
    assert "not ours" not in said
    assert says in said
    assert ended.returncode in {1, 2}
