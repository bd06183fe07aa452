"""Workers on machines of their own, cut off from one store, the other and both: nothing is lost, nothing done twice."""

import json
from contextlib import ExitStack
from pathlib import Path

import pytest
from chaos import history, storm
from chaos.hosts import machine, why_not
from chaos.plan import STORES, Fault
from chaos.producers import Load
from chaos.stage import Stage
from support.waiting import wait_until

SECONDS = 9.0
"""Longer than a lease."""
CUTS = (
    Fault(3.0, "hole", "worker-1>redis", SECONDS),
    Fault(5.0, "hole", "worker-2>postgres", SECONDS),
    Fault(7.0, "hole", "worker-3>redis", SECONDS),
    Fault(7.0, "hole", "worker-3>postgres", SECONDS),
)
SIZE = storm.Size(
    seconds=17.0,
    faults=len(CUTS),
    # Enough for all of them to have shards in hand from before the first cut until after the last.
    load=Load(seconds=6, singles=60, batches=12, lines=20, poison=0),
    tokens_per_second=2_000,
)


def events(log: Path) -> set[str]:
    """What a process has logged, by name."""
    return {json.loads(line)["event"] for line in log.read_text().splitlines() if line.startswith("{")}


@pytest.mark.slow
def test_machines_cut_off_and_joined_again(tmp_path: Path):
    """One worker loses Redis, one Postgres, one both, for longer than a lease; all of them work again afterwards."""
    if (reason := why_not()) is not None:
        pytest.skip(f"no machines of our own: {reason}")
    counts = {"api": 1, "dispatcher": 1, "callbacks": 1}
    settings = {"simulated_tokens_per_second": SIZE.tokens_per_second}
    # Machines share no disk, so that nobody can prove that a worker of another died.
    with (
        ExitStack() as ends,
        Stage(tmp_path / "stage", counts=counts, settings=settings, proved=lambda _: False) as stage,
    ):
        workers = [stage.add_process("worker", n, at=ends.enter_context(machine(n, STORES))).name for n in (1, 2, 3)]
        wait_until(lambda: stage.rows("SELECT count(*) FROM workers") == [(3,)], within=180, what="they are all there")
        told = storm.ride(stage, CUTS, SIZE, seed=1)
        logs = {name: events(stage.folder / "logs" / f"{name}.log") for name in workers}
        [(lost,)] = stage.rows("SELECT count(*) FROM shards WHERE cardinality(losses) > 0")
    findings = history.check(told)
    print(history.table(findings))  # noqa: T201 - to be seen with -s
    assert history.broken(findings) == []
    assert all(finding.checked for finding in findings)
    assert not told.deaths
    assert all("shard_ended" in said for said in logs.values())
    assert lost, "no lease ran out: nobody was cut off with work in hand"
