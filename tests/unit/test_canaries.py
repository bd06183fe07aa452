"""The search for what must not be told finds it: a search that finds nothing anywhere would pass every run."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.canaries import MARK, canary, in_logs, leaks
from support.program import ROOT

from infra.environment import child_environment

KEY = f"nck_{'0123456789abcdef' * 2}_{'s3cret-_' * 5}abc"
PASSWORD = "Kp4-_" * 8 + "xyz"


@pytest.fixture
def aside() -> Iterator[Path]:
    """A folder that this run does not look through itself."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (f'{{"event": "x", "prompt": "is {canary("Prompt")}?"}}', canary("Prompt")),
        (f"key={KEY}", KEY),
        ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw signs it", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
        ("cannot reach postgresql://api:hunter2@db:5432/x", "api:hunter2@"),
        (f"login by {PASSWORD} failed", PASSWORD),
    ],
)
def test_each_kind_is_found(said: str, told: str):
    """Contents, keys, callback secrets, passwords in URLs, and whatever a data folder keeps."""
    assert leaks("worker.log", f"well\n{said}\n", {PASSWORD}) == [f"worker.log:2: {told}"]


@pytest.mark.parametrize(
    "said",
    [
        f"the id {KEY.rpartition('_')[0]} of a key",
        "redis://nightcourt:***@db and http://127.0.0.1:8300/v1",
        "0" * 43,
        "XYZ",
    ],
)
def test_what_may_be_told_is_left_alone(said: str):
    """Ids, addresses, hidden passwords and long words that are no secret."""
    assert leaks("api.log", said, {PASSWORD}) == []


def test_a_folders_logs_are_held_to_its_own_secrets(aside: Path):
    """Every log at any depth is read, an older one too; what holds contents by its purpose is not."""
    for name in ("stack/logs/api.log", "stack/logs/worker.log.1", "said", "stack/postgres/data/PG_VERSION"):
        (aside / name).parent.mkdir(parents=True, exist_ok=True)
        (aside / name).write_text(f"fine\nbut {PASSWORD}\n")
    (aside / "stack/postgres/password").write_text(f"{PASSWORD}\n")
    (aside / "pairs.jsonl").write_text(MARK)
    assert sorted(in_logs(aside)) == sorted(
        f"{aside}/{name}:2: {PASSWORD}" for name in ("said", "stack/logs/api.log", "stack/logs/worker.log.1")
    )


def test_a_leak_fails_the_run(aside: Path):
    """Tests that pass, one of which prints a canary and another logs it, are followed by an error that names both."""
    (aside / "conftest.py").write_text("from support.canaries import nothing_leaks, pytest_runtest_logreport\n")
    (aside / "test_leaky.py").write_text(
        "from support.canaries import MARK\n"
        "def test_prints(): print(MARK)\n"
        "def test_logs(tmp_path): (tmp_path / 'worker.log').write_text(MARK)\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={aside}/base", aside]
    ran = subprocess.run(
        [*command, f"--rootdir={aside}"],
        env=child_environment({"PYTHONPATH": f"{ROOT / 'tests'}:{ROOT}"}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1, ran.stdout
    assert "2 passed, 1 error" in ran.stdout
    assert f"::test_prints, Captured stdout call:1: {MARK}" in ran.stdout
    assert f"test_logs0/worker.log:1: {MARK}" in ran.stdout
