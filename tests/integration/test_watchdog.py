"""How a worker ends itself whose engine is of no more use, or that does not come to its end, wherever it runs."""

import json
import os
import signal
import subprocess
import sys

import pytest

END = """
from sqlalchemy import create_engine
from worker.bench import Bench, Rules
from worker.watchdog import give_up

rules = Rules(worker="w1", lease_seconds=60, max_attempts=3, mass_threshold=0.5)
nowhere = create_engine("postgresql+psycopg://nobody@127.0.0.1:1/none")
give_up(Bench(engine=None, gate=None, database=nowhere, rules=rules, judges={}))
print("it goes on")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become the first process of a container")
def test_the_first_process_of_a_container_ends_too():
    """The kernel lets process 1 ignore its own SIGKILL; a worker without an init in front of it ends all the same."""
    command = ["unshare", "--pid", "--fork", sys.executable, "-c", END]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stdout.count("\n"), ended.stderr) == (1, 1, "")
    assert "database_unreachable" in ended.stdout


WATCH = """
import threading
from types import SimpleNamespace
from sqlalchemy import create_engine
from infra import logs
from worker.bench import Bench, Rules
from worker.watchdog import keep_watch

class Lease:  # of a worker at work: whenever one is looked at, another has come
    def __init__(self, shard):
        self.number = shard
    @property
    def shard(self):
        bench.leases.add(Lease(100 + len(bench.leases)))
        return self.number

logs.configure(process="worker", level="info", style="json")
rules = Rules(worker="w1", lease_seconds=60, max_attempts=3, mass_threshold=0.5)
nowhere = create_engine("postgresql+psycopg://nobody@127.0.0.1:1/none")
engine = SimpleNamespace(longest_call=lambda: HANGS)
bench = Bench(engine=engine, gate=None, database=nowhere, rules=rules, judges={})
bench.leases.update(Lease(number) for number in range(50))
bench.draining.set()
keep_watch(bench, engine_deadline=60, drain=0.01, stop=threading.Event())
"""


@pytest.mark.parametrize(
    ("hangs", "status", "event"), [(90.0, -signal.SIGKILL, "engine_hangs"), (0.0, 0, "drain_cut_short")]
)
def test_slots_that_go_on_keep_it_from_nothing(hangs, status, event):
    """Shards that are claimed and ended while the watchdog looks at what is in hand do not end the watchdog."""
    command = [sys.executable, "-c", WATCH.replace("HANGS", str(hangs))]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == status, ended.stderr
    said, tried = [json.loads(line) for line in (ended.stdout + ended.stderr).splitlines()]
    assert (said["event"], said["shards"]) == (event, list(range(50)))
    assert tried["event"] == "database_unreachable"
