"""`make bench`: run all benchmarks but the long ones and print one JSON object with their results."""

import json
import sys
from collections.abc import Callable
from typing import Any

from benchmarks import callbacks, embedded, fairness, latency, outage, recovery, throughput, tournament, waiting

_LONG = {"million", "recovery"}


def main() -> None:
    """Run what is named on the command line, or all but what takes many minutes."""
    benchmarks: dict[str, Callable[[], dict[str, Any]]] = {
        "latency": latency.measure,
        "waiting": waiting.measure,
        "throughput": throughput.measure,
        "million": throughput.million,
        "fairness": fairness.measure,
        "callbacks": callbacks.measure,
        "embedded": embedded.measure,
        "outage": outage.measure,
        "recovery": recovery.measure,
        "tournament": tournament.measure,
    }
    names = sys.argv[1:] or [name for name in benchmarks if name not in _LONG]
    unknown = set(names) - set(benchmarks)
    if unknown:
        sys.exit(f"no benchmark is called {', '.join(sorted(unknown))}; there are {', '.join(benchmarks)}")
    print(json.dumps({name: benchmarks[name]() for name in names}, indent=2))


if __name__ == "__main__":
    main()
