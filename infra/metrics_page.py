"""Renders docs/metrics.md from the metrics themselves: `python -m infra.metrics_page > docs/metrics.md`."""

import sys

from infra.metrics import METRICS, Metric

_HEAD = """\
# Metrics

Every metric of every process, for Prometheus. `infra/metrics.py` defines them all, this page is made from it
(`python -m infra.metrics_page > docs/metrics.md`), and a test compares the two.
[Deployment](deployment.md#metrics-and-traces) says where each process serves them, and what board and alerts there are.

Every series is there from the start, at 0, and no label ever holds what somebody sent: not a text, not an id, not a
tenant. Times are seconds. Where several dispatchers run, each reads the docket for itself: take the maximum of a gauge
over them, not the sum. `process_cpu_seconds_total`, `process_resident_memory_bytes` and what else Prometheus' client
tells of a process are there besides.

| metric | kind | of | labels | what it is |
|---|---|---|---|---|
"""


def render() -> str:
    """Render the page: a row for each metric, in the order of the source."""
    return _HEAD + "\n".join(map(_row, METRICS)) + "\n"


def _row(metric: Metric) -> str:
    labels = "; ".join(
        f"`{label}`: {', '.join(values)}" if values else f"`{label}`" for label, values in metric.labels.items()
    )
    return f"| `{metric.name}` | {metric.kind} | {', '.join(metric.processes)} | {labels} | {metric.help} |"


if __name__ == "__main__":
    sys.stdout.write(render())
