"""Every brake that a batch has, against real processes, and all of these killed at once."""

import json
import signal
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from support.clerk import Clerk, adds_up, lines
from support.service import IMPATIENT, Service, running_service
from support.waiting import wait_until

from infra.filed import Filed, from_body
from worker.engines.simulated import SimulatedEngine, fingerprint
from worker.prompts import build


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clerk]:
    """A clerk at a service that judges about twenty pairs a second."""
    with running_service(
        tmp_path_factory.mktemp("slow") / "data", simulated_tokens_per_second=10_000.0, **IMPATIENT
    ) as running:
        yield Clerk(running)


class TestBrakes:
    def test_pausing_takes_everything_back_and_resuming_goes_on(self, slow: Clerk):
        """Within two seconds of a pause nothing of the batch is decided any more; resumed, it ends whole."""
        batch = slow.create(lines(120))
        wait_until(lambda: slow.read(batch)["progress"]["decided"], within=60, what="judging has begun")
        assert slow.act(batch, "pause").json()["paused"] is True
        decided = slow.read(batch)["progress"]["decided"]
        # Nothing is out: the whole rest waits, and says why.
        assert slow.read(batch)["progress"]["waiting_for"] == "it is paused; resume it"
        single = slow.service.file({"prompt": "meanwhile", "response_a": "a", "response_b": "b"}, wait=60)
        assert single.status_code == 200
        assert slow.read(batch)["progress"]["decided"] == decided
        slow.act(batch, "resume")
        ended = slow.until(batch, "completed")
        assert ended["request_counts"]["succeeded"] == 120

    def test_cancelling_keeps_what_was_decided(self, slow: Clerk):
        """A cancelled batch ends soon; its verdicts stay, and the rest is accounted for as cancelled."""
        batch = slow.create(lines(400))
        wait_until(lambda: slow.read(batch)["progress"]["decided"], within=60, what="judging has begun")
        assert slow.act(batch, "cancel").json()["status"] == "cancelling"
        ended = slow.until(batch, "cancelled")
        assert adds_up(ended)
        counts = Counter(each["status"] for each in slow.results(batch))
        assert counts["succeeded"] == ended["request_counts"]["succeeded"] > 0
        assert counts["cancelled"] == ended["request_counts"]["cancelled"] > 0
        assert slow.act(batch, "pause").status_code == 409

    def test_a_line_of_a_batch_is_not_cancelled_alone(self, slow: Clerk):
        """Whoever asks for it is sent to the batch, and neither the line nor any other is called off."""
        batch = slow.create(lines(3), not_before=int((datetime.now(UTC) + timedelta(hours=1)).timestamp()))
        line = f"cmp_{batch['id'].removeprefix('batch_')}_2"
        answer = slow.http.post(f"/v1/comparisons/{line}/cancel")
        assert (answer.status_code, answer.json()["code"]) == (409, "part_of_a_batch")
        assert batch["id"] in answer.json()["detail"]
        assert slow.read(batch)["request_counts"]["cancelled"] == 0
        slow.act(batch, "cancel")

    def test_nothing_runs_before_its_time(self, slow: Clerk):
        """A batch with not_before waits, and says so."""
        later = int((datetime.now(UTC) + timedelta(hours=1)).timestamp())
        batch = slow.create(lines(2), not_before=later)
        other = slow.create(lines(2, prompt="now"))
        slow.until(other, "completed")
        assert slow.read(batch)["request_counts"]["completed"] == 0
        moment = f"{datetime.fromtimestamp(later, UTC):%Y-%m-%d %H:%M} UTC"
        assert slow.read(batch)["progress"]["waiting_for"] == f"its time has not come; nothing runs before {moment}"
        slow.act(batch, "cancel")

    def test_a_window_opens_and_closes_by_the_clock(self, tmp_path: Path):
        """With the clock shifted into the window the batch runs; shifted past its end, it is taken back."""
        now = datetime.now(UTC)
        window = {"start": f"{now + timedelta(hours=5):%H:%M}", "end": f"{now + timedelta(hours=7):%H:%M}"}
        folder = tmp_path / "data"
        shift = {"simulated_tokens_per_second": 10_000.0, **IMPATIENT}
        with running_service(folder, **shift) as service:
            clerk = Clerk(service)
            # More than are judged while processes start.
            batch = clerk.create(lines(3000), window=window)
            probe = clerk.create(lines(2, prompt="probe"))
            clerk.until(probe, "completed")
            assert clerk.read(batch)["progress"]["decided"] == 0
            closed = f"its window is closed; it opens at {window['start']} UTC"
            assert clerk.read(batch)["progress"]["waiting_for"] == closed
        with running_service(folder, clock_shift_seconds=6 * 3600.0, **shift) as service:
            clerk = Clerk(service)
            wait_until(lambda: clerk.read(batch)["progress"]["decided"], within=60, what="the window is open")
        with running_service(folder, clock_shift_seconds=8 * 3600.0, **shift) as service:
            clerk = Clerk(service)
            wait_until(
                lambda: clerk.read(batch)["progress"]["waiting_for"] == closed,
                within=60,
                what="the window is closed again",
            )
            assert 0 < clerk.read(batch)["progress"]["decided"] < 3000

    def test_the_deadline_expires_what_is_left(self, slow: Clerk):
        """After its completion window a batch ends as expired, with what was decided kept."""
        batch = slow.create(lines(400, prompt="late"), completion_window="1m")
        wait_until(lambda: slow.read(batch)["progress"]["decided"], within=60, what="judging has begun")
        shorten(slow.service, batch)
        ended = slow.until(batch, "expired")
        assert adds_up(ended)
        assert ended["request_counts"]["succeeded"] > 0
        errors = slow.http.get(f"/v1/files/{ended['error_file_id']}/content").text.splitlines()
        assert {json.loads(line)["error"]["code"] for line in errors} == {"batch_expired"}


def shorten(service: Service, batch: dict[str, Any]) -> None:
    """Let a batch's deadline be now."""
    with psycopg.connect(service.database_url) as connection:
        connection.execute(
            "UPDATE shards SET deadline_at = now() WHERE filing_id = %s AND deadline_at IS NOT NULL",
            (batch["id"].removeprefix("batch_"),),
        )


def test_everything_killed_and_started_again_judges_no_line_twice(tmp_path: Path):
    """After kill -9 of every process a batch ends with each line accounted for; what was stored is not asked again."""
    asked = tmp_path / "asked.log"
    with running_service(
        tmp_path / "data", durable=True, simulated_tokens_per_second=20_000.0, simulated_call_log=asked, **IMPATIENT
    ) as service:
        clerk = Clerk(service)
        batch = clerk.create(lines(400))
        wait_until(lambda: clerk.read(batch)["progress"]["decided"] > 160, within=60, what="40 % are decided")
        stored = {int(each["id"].rpartition("_")[2]) for each in clerk.results(batch)}
        for part in ("worker", "dispatcher", "redis", "postgres", "api"):
            service.signal(part, signal.SIGKILL)

        def again() -> Any:
            try:
                return clerk.read(batch)["status"] == "completed"
            except Exception:  # noqa: BLE001 - whatever a dead service answers
                return False

        wait_until(again, within=120, every=0.5, what="the batch is completed")
        assert adds_up(clerk.read(batch))
        assert len({each["id"] for each in clerk.results(batch)}) == 400
    times = Counter(asked.read_text().split())
    engine = SimulatedEngine()
    prompts_of = {
        number: [fingerprint(engine.encode(build(filed(number, line), order))) for order in ("ab", "ba")]
        for number, line in enumerate(lines(400).splitlines(), start=1)
    }
    assert {times[mark] for number in stored for mark in prompts_of[number]} == {1}
    assert {number for number, marks in prompts_of.items() if not all(times[mark] for mark in marks)} == set()
    # What the kill cost: the steps in hand, and outcomes not yet stored, of at most a second.
    assert sum(times.values()) - 800 < 400


def filed(number: int, line: bytes) -> Filed:
    """Understand a line as a worker does."""
    return from_body(line.decode(), {}, line=number)
