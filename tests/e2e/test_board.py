"""All that the board and the alerts name is served by real processes, and moves with work and with faults."""

import json
import math
import re
import shutil
import signal
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from support.inbox import open_inbox
from support.program import ROOT
from support.prometheus import reading
from support.service import QUESTION, Service, running_service
from support.waiting import wait_until

from infra import metrics
from infra.metrics import METRICS, Metric
from infra.roles import PROCESSES
from producer.client import Client

GRAFANA = ROOT / "infra" / "grafana"
FAIL = "<<fail>>"
# Short times, so that what a fault leaves behind is taken up again within seconds; leases run out for nobody.
IMPATIENT = {"lease_seconds": 60.0, "heartbeat_seconds": 0.5, "sweep_seconds": 0.5, "hint_seconds": 3.0}
PARTS = PROCESSES

QUIET = {
    metrics.LEASE_OVERDUE.name: "a lease is seen to within a sweep",
    metrics.LEASES_LAPSED.name: "a dead worker is proved dead before its lease runs out",
    metrics.OLDEST_SHARD.name: "nothing is left at the end",
    metrics.HTTP_UNDER_WAY.name: "nobody asks at the end",
    metrics.EXPIRED.name: "no deadline passed",
    metrics.IDLE_HINTS.name: "no hint was late",
    metrics.GIVEN_BACK.name: "the worker was killed, not told to end",
    metrics.STALE_WRITES.name: "no worker froze",
    metrics.HEARTBEATS_FAILED.name: "it may beat between two lives of Postgres",
    metrics.ENGINE_STATE.name: "TensorRT-LLM alone tells",
    metrics.CACHED_TOKENS.name: "the simulated engine keeps nothing",
    metrics.OLDEST_CALLBACK.name: "what waits, waits for its receiver's circuit",
    metrics.CALLBACKS_PUT_BACK.name: "no key was taken away",
    metrics.CALLBACKS_BURIED.name: "takes a day",
    metrics.CALLBACKS_DEAD.name: "takes a day",
    metrics.ENDPOINTS_DISABLED.name: "takes a day",
}
"""What does not move in the work below, and why; tests/integration moves all but one."""


def work(service: Service, receiver: str) -> None:
    """A little of everything, with a worker killed, an engine that fails, a receiver that does, and Postgres killed."""
    long = [{**QUESTION, "response_a": f"{number} {'word ' * 5000}"} for number in range(2)]
    lines = [{**QUESTION, "custom_id": f"{n}", "prompt": f"Which, {n}? {FAIL * (n == 7)}"} for n in range(12)]
    with Client(service.url, api_key=service.key) as client:
        client.rotate_secret()
        client.add_endpoint(f"{receiver}/ill")
        filed = [service.file(each).json()["id"] for each in long]  # one after the other, for five seconds
        wait_until(
            lambda: any(service.read(each)["status"] == "running" for each in filed), within=60, what="work begins"
        )
        service.signal("worker", signal.SIGKILL)
        file = client.upload("\n".join(map(json.dumps, lines)).encode())
        batch = client.create_batch(file.id)
        for profile in ("card", "card", "rewardbench"):
            body = {**QUESTION, "profile": profile, "callback_url": receiver}
            assert service.file(body, wait=60).json()["status"] == "succeeded"
        for each in filed:
            assert service.read(each, wait=60)["status"] == "succeeded"
        wait_until(lambda: client.batch(batch.id).status == "completed", within=60, what="the batch ends")
        counts = client.batch(batch.id).request_counts
        assert (counts.succeeded, counts.errored) == (11, 1)
        client.create_batch(file.id, not_before=int(time.time()) + 3600)  # so that something waits, however fast it is
    service.signal("postgres", signal.SIGQUIT)
    wait_until(lambda: service.file().status_code == 202, within=60, what="a comparison is taken again")


def values(service: Service) -> dict[str, dict[tuple[str, ...], float]]:
    """Every sample of every part, by the name of its series and the values of its labels."""
    found: dict[str, dict[tuple[str, ...], float]] = defaultdict(dict)
    for part in PARTS:
        for family in text_string_to_metric_families(service.numbers(part)):
            for sample in family.samples:
                found[sample.name][part, *sample.labels.values()] = sample.value
    return found


def total(found: dict[str, dict[tuple[str, ...], float]], metric: Metric) -> float:
    """All of a metric together; of a histogram, how many values it has seen."""
    return sum(found[f"{metric.name}_count" if metric.kind == "histogram" else metric.name].values())


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that has done a little of everything."""
    with (
        open_inbox(lambda message: 503 if message.path.endswith("/ill") else 204) as inbox,
        running_service(
            tmp_path_factory.mktemp("board") / "data",
            durable=True,  # Postgres is killed, and what was counted once is not to be done again
            simulated_fail=FAIL,
            simulated_tokens_per_second=5_000.0,
            max_attempts=2,
            **IMPATIENT,
        ) as service,
    ):
        work(service, inbox.url)
        yield service


def test_every_metric_is_served_and_moves(busy: Service):
    """Each is there at every process that has it, with a value that it can have; with work it is no longer 0."""
    moved: set[str] = set()

    def still() -> set[str]:
        found = values(busy)
        moved.update(metric.name for metric in METRICS if total(found, metric) > 0)
        return {metric.name for metric in METRICS} - set(QUIET) - moved

    with suppress(AssertionError):
        wait_until(lambda: not still(), within=60, every=0.3, what="every metric moves")
    assert still() == set()
    found = values(busy)
    for metric in METRICS:
        samples = found[f"{metric.name}_count" if metric.kind == "histogram" else metric.name]
        assert {part for part, *_ in samples} == {part for part in PARTS if part in metric.processes}, metric.name
        assert all(math.isfinite(value) and value >= 0 for value in samples.values()), metric.name


def test_the_numbers_are_those_of_what_happened(busy: Service):
    """One line failed at each attempt, what a lost worker had was put back, and a receiver's circuit is open."""

    def one(metric: Metric, part: str, *labels: str) -> float:
        return found[metric.name][part, *labels]

    wait_until(
        lambda: values(busy)[metrics.CIRCUITS.name]["dispatcher", "open"] == 1, within=60, what="a circuit is open"
    )
    # The worker that was lost may have been seen last before it came back.
    wait_until(
        lambda: values(busy)[metrics.WORKERS.name]["dispatcher",] == 1, within=60, what="the worker is counted again"
    )
    found = values(busy)  # once all of it has happened
    assert one(metrics.WORKERS, "dispatcher") == 1
    assert one(metrics.SLOTS, "dispatcher", "all") == 8
    assert one(metrics.OUTCOMES, "worker", "bulk", "engine_failed") == 1
    assert one(metrics.FAILED_ATTEMPTS, "worker", "split") >= 1
    assert total(found, metrics.LOSSES) >= 1  # of its successor, or of the dispatcher where that was sooner
    assert one(metrics.ENGINE_ERRORS, "worker", "failed") >= 2
    assert one(metrics.REUSED, "worker", "interactive") >= 1
    assert one(metrics.CALLBACK_ATTEMPTS, "callbacks", "bad_status") >= 5
    assert one(metrics.CALLBACK_ATTEMPTS, "callbacks", "delivered") >= 1
    assert one(metrics.UNREACHABLE, "dispatcher", "postgres") > 0
    assert 0 < one(metrics.DISK_FREE, "dispatcher") < one(metrics.DISK, "dispatcher")


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus (Debian's package) is not installed")
def test_prometheus_reads_it_and_the_alerts_of_these_faults_come_up(busy: Service, tmp_path: Path):
    """Every query of the board gives numbers, every series of an alert is there, and the open circuit is pending."""
    board = json.loads((GRAFANA / "board.json").read_text())
    shown = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    rules = yaml.safe_load((GRAFANA / "alerts.yaml").read_text())["groups"]
    selectors = {
        selector
        for group in rules
        for rule in group["rules"]
        for selector in re.findall(r"(?:nightcourt|process)_[a-z_]+(?:\{[^}]*\})?", rule["expr"])
        if 'status=~"5' not in selector  # the first 5xx makes that series
    }
    with reading(busy.folder / "prometheus.json", GRAFANA / "alerts.yaml", tmp_path / "prometheus") as prometheus:
        wait_until(
            lambda: (
                len(prometheus.ask("nightcourt_build_info")) == len(PARTS)
                and prometheus.ask("rate(nightcourt_claims_total[5s])")
            ),
            within=90,
            what="every process is read twice",
        )
        busy.file(wait=60)

        def missing() -> list[str]:
            queries = [*(each.replace("$__rate_interval", "30s") for each in shown), *sorted(selectors)]
            return [each for each in queries if not prometheus.ask(each)]

        def up() -> set[str]:
            return {rule["name"] for rule in prometheus.rules() if rule["state"] != "inactive"}

        # A process that was read too late once has no numbers for a moment, as one that is not there.
        with suppress(AssertionError):
            wait_until(lambda: not missing(), within=60, every=0.5, what="every query has numbers")
        assert missing() == []
        wait_until(lambda: {rule["health"] for rule in prometheus.rules()} == {"ok"}, within=60, what="rules are well")
        with suppress(AssertionError):
            wait_until(lambda: up() == {"NightcourtCircuitOpen"}, within=60, what="the one alert is pending")
        assert up() == {"NightcourtCircuitOpen"}
