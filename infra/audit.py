"""Looks the locked packages up among the known vulnerabilities: `python -m infra.audit`, a step of `make check`.

A vulnerability fails it. Where advisories cannot be reached, or an index has none, that is said, and the check goes on:
somebody offline can still check everything else.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_LOCKS = Path(__file__).parents[1] / "requirements"


def audit(locks: Sequence[Path], program: Sequence[str]) -> tuple[int, str]:
    """Audit locks by pip-audit, each by what it lists and with its hashes.

    Args:
        locks: files of pins.
        program: pip-audit.

    Returns:
        How many vulnerabilities are known, and what to say of it.
    """
    found: dict[str, list[str]] = {}
    known: set[str] = set()
    unknown: set[str] = set()
    for lock in locks:
        command = [*program, "--disable-pip", "--require-hashes", "--progress-spinner=off", "--format=json"]
        ended = subprocess.run([*command, f"--requirement={lock}"], capture_output=True, text=True, check=False)
        try:
            dependencies: list[dict[str, Any]] = json.loads(ended.stdout)["dependencies"]
        except ValueError:
            said = (ended.stderr.strip().splitlines() or ["it said nothing"])[-1]
            return 0, f"audit: NOT DONE, the advisories cannot be reached ({said})."
        for each in dependencies:
            if "skip_reason" in each:
                unknown.add(each["name"])
                continue
            known.add(each["name"])
            for vulnerability in each["vulns"]:
                fixed = ", ".join(vulnerability["fix_versions"]) or "no version yet"
                where = found.setdefault(
                    f"{each['name']} {each['version']}: {vulnerability['id']}, fixed in {fixed}", []
                )
                where.append(lock.name)
    lines = [f"audit: {what} (requirements/{', '.join(where)})" for what, where in sorted(found.items())]
    if unknown - known:
        lines.append(f"audit: {len(unknown - known)} packages could not be looked up, so nothing is known of them.")
    if known and not found:
        lines.append(f"audit: no vulnerability is known of {len(known)} packages.")
    return len(found), "\n".join(lines)


def main() -> None:
    """Audit every lock, say what was found, and fail where anything was."""
    count, said = audit(sorted(_LOCKS.glob("*.txt")), [sys.executable, "-m", "pip_audit"])
    sys.stdout.write(said + "\n")
    sys.exit(count > 0)


if __name__ == "__main__":
    main()
