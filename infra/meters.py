"""The meters of one process: what it counts, and where Prometheus reads it. infra/metrics.py says what there is.

A composition root makes them for its process and hands them down.
"""

import socket
from collections.abc import Callable
from http.server import ThreadingHTTPServer
from importlib.metadata import version
from itertools import product
from threading import Thread
from typing import Any

import structlog
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    MetricsHandler,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from infra import metrics
from infra.metrics import Metric
from infra.roles import Process

log = structlog.get_logger()

CONTENT_TYPE = CONTENT_TYPE_LATEST

disable_created_metrics()  # type: ignore[no-untyped-call] # when each series began is of no use, and half the page

_OTHER = "other"
"""Stands for a value that a label does not have."""
_REQUEST_SECONDS = 10.0
"""How long a reader may take to ask."""


class Meters:
    """What one process counts. Thread-safe."""

    def __init__(self, process: Process, *, engine: str = "", simulated: bool = False) -> None:
        """Begin at 0.

        Args:
            process: which metrics there are.
            engine: the engine's name, where the process has one.
            simulated: whether it only pretends.
        """
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._made: dict[str, Any] = {
            metric.name: self._make(metric) for metric in metrics.METRICS if process in metric.processes
        }
        self.set(
            metrics.BUILD,
            1,
            process=process,
            version=version("nightcourt"),
            engine=engine,
            simulated=str(simulated).lower(),
        )

    def _make(self, metric: Metric) -> Any:
        made: Counter | Gauge | Histogram
        labels = tuple(metric.labels)
        if metric.kind == "histogram":
            made = Histogram(metric.name, metric.help, labels, registry=self._registry, buckets=metric.buckets)
        else:
            kind = Counter if metric.kind == "counter" else Gauge
            made = kind(metric.name, metric.help, labels, registry=self._registry)
        if metric.labels and all(metric.labels.values()):
            for values in product(*metric.labels.values()):
                made.labels(*values)
        return made

    def _series(self, metric: Metric, labels: dict[str, str]) -> Any:
        made = self._made[metric.name]
        if not metric.labels:
            return made
        values = []
        for label, known in metric.labels.items():
            value = str(labels[label])
            values.append(value if not known or value in known else _OTHER)
        return made.labels(*values)

    def add(self, metric: Metric, amount: float = 1.0, **labels: str) -> None:
        """Count something. `labels` has a value for each label; one that the label does not have counts as `other`."""
        self._series(metric, labels).inc(amount)

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        """Say how a gauge stands."""
        self._series(metric, labels).set(value)

    def observe(self, metric: Metric, value: float, **labels: str) -> None:
        """Put a value into a histogram."""
        self._series(metric, labels).observe(value)

    def ask(self, metric: Metric, answer: Callable[[], float], **labels: str) -> None:
        """Have a gauge ask for its value whenever it is read."""
        self._series(metric, labels).set_function(answer)

    def text(self) -> bytes:
        """Everything in Prometheus' text format; its media type is `CONTENT_TYPE`."""
        return generate_latest(self._registry)

    def serve(self, host: str, port: int) -> None:
        """Serve `/metrics` from threads of its own, for as long as the process lives. Port 0 serves nothing.

        Where the port is taken this is logged, and the process goes on: its work is worth more than its numbers.
        """
        if not port:
            return
        handler = type("Handler", (MetricsHandler.factory(self._registry),), {"timeout": _REQUEST_SECONDS})
        try:
            server = (_ServerOfIPv6 if ":" in host else _Server)((host, port), handler)
        except OSError as error:
            log.error("metrics_not_served", port=port, error=type(error).__name__)  # noqa: TRY400 - says it all
            return
        Thread(target=server.serve_forever, name="metrics", daemon=True).start()


class _Server(ThreadingHTTPServer):
    """Answers readers of metrics, and writes nothing to standard error over those who break off."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - whoever it was
        log.debug("metrics_reader_failed")


class _ServerOfIPv6(_Server):
    address_family = socket.AF_INET6
