"""What is done for a request in all processes is one trace, as a collector of OpenTelemetry's gets it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.collector import Collector, Seen, collecting
from support.inbox import Inbox, open_inbox
from support.service import QUESTION, Service, running_service
from support.waiting import wait_until

from producer.client import Client

FAIL = "<<fail>>"
CALLERS = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    """A collector for all of these tests."""
    with collecting() as running:
        yield running


@pytest.fixture(scope="module")
def traced(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that is traced, whose engine fails at a text."""
    folder: Path = tmp_path_factory.mktemp("traced") / "data"
    with running_service(folder, traces_endpoint=collector.url, simulated_fail=FAIL, max_attempts=2) as service:
        with Client(service.url, api_key=service.key) as client:
            client.rotate_secret()
        yield service


@pytest.fixture(scope="module")
def inbox() -> Iterator[Inbox]:
    """A receiver of callbacks that does well."""
    with open_inbox() as running:
        yield running


def trace_of(collector: Collector, path: str, shard: int | None = None, *, spans: int) -> list[Seen]:
    """The newest trace that a request of this path began, once it has so many spans."""

    def whole() -> list[Seen]:
        seen = collector.spans()
        roots = [each for each in seen if each.name == path and not each.parent]
        found = [each for each in seen if roots and each.trace == roots[-1].trace]
        return found if len(found) >= spans else []

    return wait_until(whole, within=60, what=f"a trace of {path} has {spans} spans")


def tree(spans: list[Seen]) -> dict[str, list[str]]:
    """The names of the spans below each, by the name of the one above; the root is below `-`."""
    names = {each.id: each.name for each in spans}
    found: dict[str, list[str]] = {}
    for each in spans:
        found.setdefault(names[each.parent] if each.parent else "-", []).append(each.name)
    return {name: sorted(below) for name, below in found.items()}


def test_a_comparison_is_one_tree(traced: Service, collector: Collector, inbox: Inbox):
    """HTTP, dispatcher, worker, engine and callback: each its span, of its process, below the one that caused it."""
    assert traced.file({**QUESTION, "callback_url": inbox.url}, wait=60).json()["status"] == "succeeded"
    spans = trace_of(collector, "POST /v1/comparisons", spans=5)
    assert tree(spans) == {
        "-": ["POST /v1/comparisons"],
        "POST /v1/comparisons": ["callback attempt", "judge shard", "release shard"],
        "judge shard": ["engine score"],
    }
    by_name = {each.name: each for each in spans}
    assert {name: each.service for name, each in by_name.items()} == {
        "POST /v1/comparisons": "nightcourt-api",
        "release shard": "nightcourt-dispatcher",
        "judge shard": "nightcourt-worker",
        "engine score": "nightcourt-worker",
        "callback attempt": "nightcourt-callbacks",
    }
    assert by_name["POST /v1/comparisons"].attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/comparisons",
        "http.response.status_code": 200,
    }
    judged = by_name["judge shard"]
    assert judged.attributes["nightcourt.attempt"] == judged.attributes["nightcourt.decided"] == 1
    assert judged.attributes["nightcourt.shard"] == by_name["release shard"].attributes["nightcourt.shard"]
    assert by_name["engine score"].attributes == {"nightcourt.prompts": 2}
    assert by_name["callback attempt"].attributes["nightcourt.result"] == "delivered"
    assert not any(each.failed for each in spans)
    # Who waits is answered as soon as the verdict is stored, which a busy worker's run may outlast.
    assert min(by_name["POST /v1/comparisons"].seconds, judged.seconds) > by_name["engine score"].seconds >= 0


def test_every_attempt_is_seen(traced: Service, collector: Collector):
    """Where the engine fails, the trace shows each attempt, its release and the kind of its failure."""
    answer = traced.file({**QUESTION, "prompt": f"Which? {FAIL}"}, wait=60).json()
    assert answer["error"]["code"] == "engine_failed"
    spans = trace_of(collector, "POST /v1/comparisons", spans=7)
    attempts = [each for each in spans if each.name == "judge shard"]
    assert [each.attributes["nightcourt.attempt"] for each in attempts] == [1, 2]
    assert [each.failed for each in attempts] == ["EngineError"] * 2
    assert tree(spans)["judge shard"] == ["engine score"] * 2
    assert tree(spans)["POST /v1/comparisons"].count("release shard") == 2


def test_a_batchs_shards_have_traces_of_their_own(traced: Service, collector: Collector, inbox: Inbox):
    """Each run of a shard is a trace, linked to the request that made the batch."""
    with Client(traced.url, api_key=traced.key) as client:
        lines = [{**QUESTION, "custom_id": f"{n}", "prompt": f"Which, {n}?"} for n in range(2100)]
        file = client.upload("\n".join(map(json.dumps, lines)).encode())
        batch = client.create_batch(file.id, callback_url=inbox.url)
        wait_until(lambda: client.batch(batch.id).status == "completed", within=60, what="the batch ends")
    spans = trace_of(collector, "POST /v1/batches", spans=2)
    assert tree(spans) == {"-": ["POST /v1/batches"], "POST /v1/batches": ["callback attempt"]}
    [request] = [each for each in spans if not each.parent]

    def runs() -> list[Seen]:
        return [each for each in collector.spans() if (request.trace, request.id) in each.links]

    wait_until(lambda: sum(run.attributes["nightcourt.decided"] for run in runs()) == 2100, within=60, what="all runs")
    assert {run.name for run in runs()} == {"judge shard"}
    assert len({run.trace for run in runs()} | {request.trace}) == len(runs()) + 1 > 3
    assert not any(run.parent for run in runs())


def test_a_callers_trace_goes_on(traced: Service, collector: Collector):
    """A `traceparent` that a caller sends is the parent of the request; what is none begins a trace."""
    _, trace, parent, _ = CALLERS.split("-")

    def taken() -> list[Seen]:
        return [each for each in collector.spans() if each.trace == trace and each.parent == parent]

    def begun() -> set[str]:
        return {each.trace for each in collector.spans() if each.name == "POST /v1/comparisons" and not each.parent}

    before = begun()
    assert traced.file(traceparent=CALLERS, wait=60).status_code == 200
    assert traced.file(traceparent=CALLERS.upper(), wait=60).status_code == 200
    wait_until(lambda: taken() and begun() > before, within=60, what="one trace goes on, and one begins")
    assert [each.name for each in taken()] == ["POST /v1/comparisons"]
    assert len(begun() - before) == 1


def test_what_watches_is_not_traced(traced: Service, collector: Collector):
    """Probes and readers of metrics ask all the time."""
    traced.http.get("/readyz")
    traced.http.get("/metrics")
    traced.http.get("/v1/batches")
    trace_of(collector, "GET /v1/batches", spans=1)
    assert not {each.name for each in collector.spans()} & {"GET /readyz", "GET /metrics", "GET /livez"}
