"""Each protection is needed: with one of them taken out, the checker finds something broken, and says what."""

import signal
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from chaos import history
from chaos.producers import Load, Producers
from chaos.stage import Stage
from chaos.storm import tell
from support.waiting import wait_until

COUNTS = {"api": 1, "dispatcher": 1, "worker": 2}
# The engine takes about three seconds for a comparison: time enough to hurt whoever is at it.
SETTINGS = {"lease_seconds": 3.0, "hint_seconds": 2.0, "simulated_tokens_per_second": 250}
PATIENCE = 12.0
"""How long a comparison may take when all goes well, losses included."""


def ended(stage: Stage) -> bool:
    """Whether the comparison has its outcome."""
    return stage.rows("SELECT count(*) FROM outcomes") == [(1,)]


def holder(stage: Stage) -> str | None:
    """The worker that is at the comparison, if one is."""
    owners = [owner for (owner,) in stage.rows("SELECT lease_owner FROM shards WHERE state = 'running'")]
    return next((name for name in stage.names("worker") if any(f"-{stage.pid(name)}-" in o for o in owners)), None)


def freeze_the_holder(stage: Stage) -> None:
    """Freeze whoever is at it until another has done it, and wait for what it does when it wakes."""
    name = wait_until(partial(holder, stage), within=60, what="a worker is at it")
    child = stage.actors[name].child
    child.send(signal.SIGSTOP)
    wait_until(partial(ended, stage), within=60, what="another has done it")
    moves = stage.rows("SELECT count(*) FROM chaos_moves")
    child.send(signal.SIGCONT)
    wait_until(
        lambda: (
            "stale_write_refused" in child.log.read_text() or stage.rows("SELECT count(*) FROM chaos_moves") != moves
        ),
        within=60,
        what="it is refused, or writes",
    )


def kill_the_holder(stage: Stage) -> None:
    """Kill whoever is at it, and give the others time to do it."""
    name = wait_until(partial(holder, stage), within=60, what="a worker is at it")
    stage.end(name, signal.SIGKILL, down_seconds=0)
    with suppress(AssertionError):
        wait_until(partial(ended, stage), within=PATIENCE, what="another has done it")


def wait_for_deaths(stage: Stage) -> None:
    """Let it end one worker after another, until it is given up or has ended more than it may."""
    wait_until(lambda: ended(stage) or len(stage.ends) > 3, within=120, what="it has ended many workers")


Fault = Callable[[Stage], None]
FREEZE = ("fence", freeze_the_holder, 0, {"holders_write"})
KILL = ("sweeper", kill_the_holder, 0, {"nothing_lost", "none_stuck"})
POISON = ("attempts", wait_for_deaths, 1, {"attempts_counted", "processes_live"})


def names_of_broken(folder: Path, without: str | None, fault: Fault, poison: int) -> set[str]:
    """File one comparison, let the fault come over it, and name the invariants that its history breaks."""
    # Nobody can prove that a worker died, so that the sweep alone brings back what it held; poison needs no sweep.
    with Stage(
        folder / "stage", counts=COUNTS, settings=SETTINGS, proved=lambda _: bool(poison), without=without
    ) as stage:
        load = Load(seconds=0, singles=1, batches=0, lines=0, poison=poison, callbacks=0)
        producers = Producers(stage.apis, load, 1, stage.headers, "")
        producers.start(singles=1)
        fault(stage)
        producers.join(30)
        findings = history.check(tell(stage, producers.history))
    print(f"without {without or 'nothing'}:\n{history.table(findings)}")  # noqa: T201 - to be seen with -s
    return {history.INVARIANTS[name].__name__ for name in history.broken(findings)}


@pytest.mark.slow
@pytest.mark.parametrize(("without", "fault", "poison", "broken"), [FREEZE, KILL, POISON])
def test_without_it_the_suite_fails(tmp_path: Path, without: str, fault: Fault, poison: int, broken: set[str]):
    """The real processes, with one condition of the docket's SQL taken out, break what that one is for."""
    assert broken <= names_of_broken(tmp_path, without, fault, poison)


@pytest.mark.slow
@pytest.mark.parametrize(("without", "fault", "poison", "broken"), [FREEZE, KILL, POISON])
def test_with_it_the_same_breaks_nothing(tmp_path: Path, without: str, fault: Fault, poison: int, broken: set[str]):
    """It was not the fault that broke it."""
    assert names_of_broken(tmp_path, None, fault, poison) == set()
