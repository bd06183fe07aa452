"""The storm: whatever is killed, frozen or cut off, nothing is lost, nothing is done twice, and nothing is stuck."""

from pathlib import Path

import pytest
from chaos import history, storm
from chaos.stage import Stage

SEEDS = (7, 1931, 40_487)
"""Of the long storm."""


def ride_and_check(folder: Path, seed: int, size: storm.Size, capsys: pytest.CaptureFixture[str]) -> None:
    """Ride out a storm, print its plan and its table, and hold its history to every invariant."""
    said = []
    with Stage(folder, settings={"simulated_tokens_per_second": size.tokens_per_second}) as stage:
        plan = storm.plan_of(seed, size, stage.counts)

        def say(line: str) -> None:
            said.append(line)
            with capsys.disabled():
                print(line, flush=True)  # noqa: T201 - whoever runs a storm wants to see it

        say(f"\nstorm of seed {seed}: {len(plan)} faults in {size.seconds:g} s, {size.load.comparisons} comparisons")
        told = storm.ride(stage, plan, size, seed, say=say)
    findings = history.check(told)
    say(history.table(findings))
    assert history.broken(findings) == []
    assert all(finding.checked for finding in findings)


@pytest.mark.timeout(900)
def test_a_short_storm(tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest):
    """A storm of half a minute with a fault of every kind of process, both stores and a link."""
    ride_and_check(tmp_path / "stage", request.config.getoption("--storm-seed") or 1, storm.SHORT, capsys)


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_long_storm(tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest, seed: int):
    """Ten minutes, 44 faults, 20,000 comparisons."""
    ride_and_check(tmp_path / "stage", request.config.getoption("--storm-seed") or seed, storm.LONG, capsys)
