"""A plan is a function of its seed, and meets everything that can be met."""

import pytest
from chaos.plan import PROCESSES, make_plan

COUNTS = {"api": 2, "dispatcher": 2, "worker": 3, "callbacks": 2}


def plan(seed: int, *, faults: int = 44, seconds: float = 600.0):
    """A plan for a long storm."""
    return make_plan(seed, seconds=seconds, faults=faults, counts=COUNTS, lease_seconds=6.0)


def test_the_same_seed_is_the_same_plan():
    """A storm can be seen again, and another seed is another storm."""
    assert plan(7) == plan(7)
    assert plan(7) != plan(8)


@pytest.mark.parametrize("seed", range(20))
def test_a_round_meets_everything(seed: int):
    """Seven faults meet each kind of process, both stores and a link; 44 meet each in every way that it can be hurt."""
    short = {fault.target.split("-")[0] for fault in plan(seed, faults=7, seconds=30.0) if ">" not in fault.target}
    assert short == {*PROCESSES, "postgres", "redis"}
    met = {(fault.kind, "link" if ">" in fault.target else fault.target.split("-")[0]) for fault in plan(seed)}
    assert {(kind, process) for process in PROCESSES for kind in ("kill", "freeze", "end")} <= met
    assert {("kill", "redis"), ("freeze", "redis"), ("flush", "redis")} <= met
    assert {("crash", "postgres"), ("kill", "postgres"), ("end", "postgres")} <= met
    assert {("cut", "link"), ("hole", "link"), ("slow", "link")} <= met


@pytest.mark.parametrize("seed", range(20))
def test_faults_come_in_order_and_within_the_storm(seed: int):
    """All of it is bounded: begins within the storm's time, lasts a few leases at most, freezes for longer than one."""
    faults = plan(seed)
    assert [fault.at for fault in faults] == sorted(fault.at for fault in faults)
    assert all(0 <= fault.at < 600 and fault.seconds < 12 for fault in faults)
    assert all(fault.seconds > 6.0 for fault in faults if fault.kind == "freeze")
    targets = {name for process, count in COUNTS.items() for name in (f"{process}-{n + 1}" for n in range(count))}
    assert {fault.target.partition(">")[0] for fault in faults} <= targets | {"postgres", "redis"}
