"""What goes wrong in a night: workers killed, Redis stopped or emptied, and still each comparison is decided once."""

import asyncio
import signal
import time
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from support.service import QUESTION, Service, running_service
from support.waiting import wait_until

from producer.client import AsyncClient, Client
from schemas.ids import parse_comparison_id

# Short times, so that a recovery takes seconds: what is tested is the order of events, not the length of defaults.
IMPATIENT = {"lease_seconds": 4.0, "heartbeat_seconds": 0.5, "sweep_seconds": 0.5, "hint_seconds": 3.0}


@pytest.fixture
def slow_service(tmp_path: Path):
    """A service whose engine takes about five seconds for a comparison, with leases that nobody waits for."""
    patient = {**IMPATIENT, "lease_seconds": 60.0}
    with running_service(tmp_path / "data", simulated_tokens_per_second=100.0, **patient) as running:
        yield running


@pytest.fixture(scope="module")
def quick_service(tmp_path_factory: pytest.TempPathFactory):
    """A service whose engine answers at once."""
    with running_service(tmp_path_factory.mktemp("quick") / "data", **IMPATIENT) as running:
        yield running


def outcomes(service: Service, comparison_id: str) -> list[tuple[str, int]]:
    """Every outcome row of a comparison, as (status, attempt)."""
    key = parse_comparison_id(comparison_id)
    engine = create_engine(service.database_url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT status, attempt FROM outcomes WHERE filing_id = :id"), {"id": key[0]})
        found = [tuple(row) for row in rows]
    engine.dispose()
    return found


def test_a_killed_workers_comparison_is_decided_by_the_next(slow_service: Service):
    """After kill -9 in the middle of judging the next worker proves it and claims, and there is one verdict."""
    filed = slow_service.file().json()["id"]
    wait_until(lambda: slow_service.read(filed)["status"] == "running", within=60, what="a worker claims it")
    slow_service.signal("worker", signal.SIGKILL)
    assert slow_service.read(filed, wait=60)["status"] == "succeeded"
    assert outcomes(slow_service, filed) == [("succeeded", 2)]


def test_a_frozen_worker_wakes_to_find_its_work_done(tmp_path: Path):
    """SIGSTOP past the lease, then SIGCONT: what the woken worker writes is refused, and the outcome stands."""
    with running_service(tmp_path / "data", simulated_tokens_per_second=100.0, **IMPATIENT) as service:
        filed = service.file().json()["id"]
        wait_until(lambda: service.read(filed)["status"] == "running", within=60, what="a worker claims it")
        service.signal("worker", signal.SIGSTOP)
        wait_until(lambda: service.read(filed)["status"] == "queued", within=60, what="the lease runs out")
        cancelled = service.http.post(f"/v1/comparisons/{filed}/cancel").json()
        service.signal("worker", signal.SIGCONT)
        wait_until(
            lambda: any(line["event"] == "stale_write_refused" for line in service.log("worker")),
            within=60,
            what="the woken worker's write is refused",
        )
        assert service.read(filed) == cancelled
        assert outcomes(service, filed) == [("cancelled", 1)]


def test_a_worker_told_to_end_burns_no_attempt(slow_service: Service):
    """SIGTERM: what is begun is finished, what is not goes back uncounted, and nothing is decided twice."""
    filed = [slow_service.file().json()["id"] for _ in range(4)]
    wait_until(
        lambda: any(slow_service.read(each)["status"] == "running" for each in filed), within=60, what="work begins"
    )
    slow_service.signal("worker", signal.SIGTERM)
    for each in filed:
        assert slow_service.read(each, wait=60)["status"] == "succeeded"
        assert outcomes(slow_service, each) == [("succeeded", 1)]


@pytest.mark.parametrize("fault", ["killed", "hung"])
def test_redis_gone_while_comparisons_are_filed(quick_service: Service, fault: str):
    """Redis dies, or hangs: every POST is answered 202, and all is decided once it is back; nothing is restarted."""
    worker = quick_service.pid("worker")
    redis = quick_service.pid("redis")
    number = {"killed": signal.SIGKILL, "hung": signal.SIGSTOP}[fault]
    quick_service.signal("redis", number)
    filed = []
    until = time.monotonic() + 3
    while time.monotonic() < until:
        answer = quick_service.file()
        assert answer.status_code == 202
        filed.append(answer.json()["id"])
        time.sleep(0.1)  # the pace of a producer, not a wait for anything
    if fault == "hung":
        assert quick_service.http.get("/readyz").json()["status"] == "degraded"
        quick_service.signal("redis", signal.SIGCONT)
    for each in filed:
        assert quick_service.read(each, wait=60)["status"] == "succeeded"
        assert outcomes(quick_service, each) == [("succeeded", 1)]
    assert quick_service.pid("worker") == worker
    assert (quick_service.pid("redis") == redis) == (fault == "hung")


def test_redis_emptied_with_work_on_the_way(tmp_path: Path):
    """FLUSHALL with hints in the queue: what was released is hinted again, and everything is decided once."""
    import redis  # noqa: PLC0415 - the one test that speaks to it

    with running_service(tmp_path / "data", simulated_tokens_per_second=2000.0, **IMPATIENT) as service:
        service.signal("worker", signal.SIGSTOP)  # it would take every hint out of the queue before it is emptied
        filed = [service.file().json()["id"] for _ in range(20)]
        with redis.Redis.from_url(service.redis_url) as client:
            wait_until(lambda: client.llen("nightcourt:interactive") > 1, within=60, what="hints are in the queue")
            client.flushall()
        service.signal("worker", signal.SIGCONT)
        for each in filed:
            assert service.read(each, wait=60)["status"] == "succeeded"
            assert len(outcomes(service, each)) == 1


def test_the_database_restarted_under_everything(quick_service: Service):
    """Postgres is killed and comes back: the API answers 503 meanwhile, and goes on without being restarted."""
    api = quick_service.pid("api")
    seen = set()

    def taken_again():
        if 503 not in seen:  # it may be back before anybody asks
            quick_service.signal("postgres", signal.SIGQUIT)
        answer = quick_service.file()
        seen.add(answer.status_code)
        return answer.json() if answer.status_code == 202 and len(seen) > 1 else None

    filed = wait_until(taken_again, within=60, what="a comparison is refused, and later one is taken again")
    assert seen == {202, 503}
    assert quick_service.read(filed["id"], wait=60)["status"] == "succeeded"
    assert quick_service.pid("api") == api


def test_judging_goes_through_a_restart_of_the_api(quick_service: Service):
    """The API is killed under two hundred calls of `judge`: each of them brings a verdict, and none is filed twice."""
    names = {f"step-{number}" for number in range(200)}

    async def step() -> set[tuple[str, str]]:
        async with AsyncClient(quick_service.url, api_key=quick_service.key) as client:
            killed = quick_service.pid("api")
            quick_service.signal("api", signal.SIGKILL)
            calls = [client.judge("Which?", "this", "that", custom_id=name, timeout=120) for name in names]
            decided = await asyncio.gather(*calls)
            assert quick_service.pid("api") != killed
            return {(each.custom_id, each.status) for each in decided}

    assert asyncio.run(step()) == {(name, "succeeded") for name in names}
    with Client(quick_service.url, api_key=quick_service.key) as client:
        filed = [each.custom_id for each in client.iterate() if each.custom_id in names]
    assert len(filed) == 200


def test_the_whole_stack_comes_back_onto_its_data(tmp_path: Path):
    """What was filed before the end is judged after the next start."""
    with running_service(tmp_path / "data", simulated_tokens_per_second=0.01) as service:
        filed = service.file({**QUESTION, "custom_id": "survivor"}).json()["id"]
    with running_service(tmp_path / "data", **IMPATIENT) as service:
        decided = service.read(filed, wait=60)
    assert decided["status"] == "succeeded"
    assert decided["custom_id"] == "survivor"
