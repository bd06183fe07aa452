"""How what takes hints hears that it is to end: by SIGTERM, by a terminal that is closed, by both at once."""

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
from support.waiting import wait_until

from infra.broker import make_celery
from infra.environment import child_environment
from infra.local.child import Child, start_child
from infra.local.redis import Redis
from schemas.message import CALLBACK_QUEUE, CALLBACK_TASK

# A script, so that what would start itself again could do so; a hint is worked on until the test has seen enough.
PROGRAM = """
import os, signal, sys, threading, time
from pathlib import Path
from infra.broker import make_celery, run_worker
from schemas.message import CALLBACK_QUEUE, CALLBACK_TASK

url, folder, again = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
lock = threading.Lock()  # as what is told to drain has one

def work(**_):
    (folder / "begun").touch()
    while not (folder / "enough").exists():
        time.sleep(0.01)
    (folder / "done").touch()

def drain():
    with lock:
        (folder / "drains").touch()
        for name in again:
            os.kill(os.getpid(), signal.Signals[name])

def turn():
    (folder / "turning").touch()

with (folder / "lives").open("a") as lives:
    lives.write("one more\\n")
app = make_celery(url, name="test")
app.task(work, name=CALLBACK_TASK)
how = {"name": "test", "slots": 1, "queues": [CALLBACK_QUEUE], "log_level": "info"}
sys.exit(run_worker(app, **how, on_drain=drain, on_turn=turn))
"""


@dataclass(frozen=True)
class Worker:
    """A process that takes hints, and what it leaves behind."""

    child: Child
    folder: Path
    redis_url: str

    def left(self, name: str) -> bool:
        """Whether it came to that."""
        return (self.folder / name).exists()

    def begin(self) -> None:
        """Give it a hint, and wait until it works on that."""
        make_celery(self.redis_url, name="test").send_task(CALLBACK_TASK, kwargs={}, queue=CALLBACK_QUEUE)
        wait_until(lambda: self.left("begun"), within=60, what="the hint is worked on")

    def end(self) -> int | None:
        """Let it finish its work, and tell how it ended."""
        (self.folder / "enough").touch()
        return self.child.wait(60)


@pytest.fixture
def start(redis_server: Redis, tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    """Start a worker that takes hints, after the shell's words, and told again at once when it is told to end."""
    begun = []

    def start(before: str = "", again: Sequence[str] = ()) -> Worker:
        with redis.from_url(redis_server.url) as client:
            client.flushdb()  # what another test left there would be taken first
        program = tmp_path / "program.py"
        program.write_text(PROGRAM)
        command = ["/bin/sh", "-c", f'{before} exec "$@"', "sh", sys.executable, str(program)]
        begun.append(
            start_child(
                "worker",
                [*command, redis_server.url, str(tmp_path), *again],
                log=tmp_path / "log",
                environment=child_environment({}),
            )
        )
        worker = Worker(begun[-1], tmp_path, redis_server.url)
        wait_until(lambda: worker.left("turning"), within=60, what="it takes hints")
        return worker

    yield start
    for child in begun:
        child.kill()


@pytest.mark.parametrize(
    "numbers", [(signal.SIGTERM,), (signal.SIGHUP,), (signal.SIGHUP, signal.SIGTERM), (signal.SIGTERM, signal.SIGHUP)]
)
def test_it_finishes_what_is_begun_and_does_not_come_back(start, numbers: tuple[signal.Signals, ...]):
    """A terminal that is closed is the word to end: it drains, ends well, and never starts itself again."""
    worker = start()
    worker.begin()
    for number in numbers:
        worker.child.send(number)
    wait_until(lambda: worker.left("drains"), within=60, what="it begins nothing more")
    assert not worker.left("done")
    assert worker.end() == 0, worker.child.tail()
    assert worker.left("done")
    assert (worker.folder / "lives").read_text().count("\n") == 1


def test_who_is_to_outlive_its_terminal_does(start):
    """Under nohup a closed terminal means nothing."""
    worker = start("trap '' HUP;")
    worker.child.send(signal.SIGHUP)
    worker.begin()
    worker.child.send(signal.SIGHUP)
    assert not worker.left("drains")
    worker.child.send(signal.SIGTERM)
    wait_until(lambda: worker.left("drains"), within=60, what="it begins nothing more")
    assert worker.end() == 0, worker.child.tail()


def test_a_word_that_comes_while_another_is_heard_keeps_it_from_nothing(start):
    """What is told to drain has a lock, for which the handler of a second signal must not wait."""
    worker = start(again=["SIGTERM", "SIGHUP"])
    worker.begin()
    worker.child.send(signal.SIGTERM)
    wait_until(lambda: worker.left("drains"), within=60, what="it begins nothing more")
    assert worker.end() == 0, worker.child.tail()
