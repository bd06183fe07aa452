"""What `make check` says of known vulnerabilities, with a stand-in for pip-audit that says what it is told to."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from infra.audit import audit

GOOD = {"name": "good", "version": "1.0", "vulns": []}
BAD = {"name": "bad", "version": "2.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.1"]}]}
UNKNOWN = {"name": "odd", "skip_reason": "not found"}


def audited(folder: Path, said: str) -> tuple[int, str]:
    """Audit two locks by a program that says that of each."""
    program = folder / "program.py"
    program.write_text(f"import sys\nsys.stderr.write('no route to host')\nsys.stdout.write({said!r})\n")
    locks = [folder / "one.txt", folder / "two.txt"]
    return audit(locks, [sys.executable, str(program)])


@pytest.mark.parametrize(
    ("dependencies", "count", "words"),
    [
        ([GOOD], 0, "no vulnerability is known of 1 packages"),
        ([GOOD, BAD], 1, "bad 2.0: PYSEC-1, fixed in 2.1 (requirements/one.txt, two.txt)"),
        ([GOOD, UNKNOWN], 0, "1 packages could not be looked up"),
    ],
    ids=["clean", "vulnerable", "not in the index"],
)
def test_it_says_what_is_known(tmp_path: Path, dependencies: list[dict[str, Any]], count: int, words: str):
    """A vulnerability is named with where it is pinned and what mends it; what is not known is not called clean."""
    found, said = audited(tmp_path, json.dumps({"dependencies": dependencies, "fixes": []}))
    assert found == count
    assert words in said


def test_offline_it_says_so_and_goes_on(tmp_path: Path):
    """Advisories that cannot be reached are no reason to fail, and no reason to be silent."""
    found, said = audited(tmp_path, "")
    assert found == 0
    assert "NOT DONE" in said
    assert "no route to host" in said
