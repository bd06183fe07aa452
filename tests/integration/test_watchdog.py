"""How a worker whose engine is of no more use ends itself, wherever it runs."""

import os
import subprocess
import sys

import pytest

END = """
from sqlalchemy import create_engine
from worker.judging import Bench, Rules
from worker.watchdog import give_up

rules = Rules(worker="w1", lease_seconds=60, max_attempts=3, mass_threshold=0.5, temperature=1.0)
nowhere = create_engine("postgresql+psycopg://nobody@127.0.0.1:1/none")
give_up(Bench(engine=None, gate=None, database=nowhere, rules=rules, judges={}))
print("it goes on")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become the first process of a container")
def test_the_first_process_of_a_container_ends_too():
    """The kernel lets process 1 ignore its own SIGKILL; a worker without an init in front of it ends all the same."""
    command = ["unshare", "--pid", "--fork", sys.executable, "-c", END]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", "")
