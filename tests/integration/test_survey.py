"""The dispatcher's gauges say how the docket and the callbacks stand."""

import threading
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text
from structlog.testing import capture_logs
from support.desk import Desk
from support.dockets import batch, claim_one
from support.series import Series, series
from support.waiting import wait_until

from infra import docket, roster
from infra.database import connect
from infra.meters import Meters
from producer import survey
from schemas.states import Lane


def surveyed(connection: Connection) -> Series:
    """Take the survey once and read it."""
    meters = Meters("dispatcher")
    survey.take(connection, meters, worker_seconds=30)
    return series(meters)


def test_shards_are_counted_by_lane_and_state(connection: Connection):
    """With the age of the oldest of each."""
    batch(connection, 5)
    claim_one(connection)
    docket.release_bulk(connection, room=3, limit=2)
    connection.execute(text("UPDATE shards SET due_at = now() - interval '90 s', released_at = now() - interval '7 s'"))
    read = surveyed(connection)
    assert read["nightcourt_shards", ("bulk", "waiting")] == 2
    assert read["nightcourt_shards", ("bulk", "released")] == 2
    assert read["nightcourt_shards", ("bulk", "running")] == 1
    assert read["nightcourt_shards", ("interactive", "waiting")] == 0
    assert 90 <= read["nightcourt_oldest_shard_seconds", ("bulk", "waiting")] < 100
    assert 90 <= read["nightcourt_oldest_shard_seconds", ("bulk", "released")] < 100
    assert 7 <= read["nightcourt_oldest_shard_seconds", ("bulk", "running")] < 17
    assert read["nightcourt_oldest_shard_seconds", ("interactive", "waiting")] == 0
    assert read["nightcourt_batches", ("in_progress",)] == 1


def test_a_batch_that_may_not_run_is_not_late(connection: Connection):
    """Its shards are counted, and have no age: nobody has anything to see to."""
    batch(connection, 3, is_open=False)
    connection.execute(text("UPDATE shards SET due_at = now() - interval '90 s'"))
    read = surveyed(connection)
    assert read["nightcourt_shards", ("bulk", "waiting")] == 3
    assert read["nightcourt_oldest_shard_seconds", ("bulk", "waiting")] == 0


def test_a_hint_that_is_repeated_makes_no_shard_younger(connection: Connection):
    """Where no worker is left to take it, it is repeated for ever, and the shard grows old all the same."""
    batch(connection, 1)
    docket.release_bulk(connection, room=1, limit=1)
    connection.execute(text("UPDATE shards SET due_at = now() - interval '90 s'"))
    connection.execute(text("UPDATE shards SET released_at = now() - interval '31 s'"))
    assert docket.hint_again(connection, lane=Lane.BULK, older_than=30, limit=10)
    assert 90 <= surveyed(connection)["nightcourt_oldest_shard_seconds", ("bulk", "released")] < 100


def test_a_shard_that_runs_by_a_doubted_hint_has_no_age(connection: Connection):
    """A release that a dead worker may have taken stands at minus infinity until the next sweep."""
    batch(connection, 1)
    [shard] = docket.release_bulk(connection, room=1, limit=1)
    connection.execute(text("UPDATE shards SET released_at = '-infinity'"))
    assert docket.claim(connection, shard, worker="w", lease_seconds=60)
    assert surveyed(connection)["nightcourt_oldest_shard_seconds", ("bulk", "running")] == 0


def test_workers_and_overdue_leases_are_seen(connection: Connection):
    """Those heard of lately count, and a lease that ran out tells for how long."""
    for worker in ("a", "b"):
        roster.report(connection, worker=worker, slots=8, bulk_slots=4, engine={})
    connection.execute(text("UPDATE workers SET seen_at = now() - interval '1 hour' WHERE id = 'b'"))
    batch(connection, 1)
    claim_one(connection)
    connection.execute(text("UPDATE shards SET lease_until = now() - interval '12 s' WHERE state = 'running'"))
    read = surveyed(connection)
    assert read["nightcourt_workers", ()] == 1
    assert read["nightcourt_worker_slots", ("all",)] == 8
    assert read["nightcourt_worker_slots", ("bulk",)] == 4
    assert 12 <= read["nightcourt_lease_overdue_seconds", ()] < 22


def test_callbacks_and_circuits_are_counted(desk: Desk):
    """What waits for a receiver whose circuit is open is counted and is not late."""

    def look() -> Series:
        with desk.database.connect() as connection:
            return surveyed(connection)

    well, ill = desk.add_endpoint("http://127.0.0.1:9/well"), desk.add_endpoint("http://127.0.0.1:9/ill")
    desk.add_endpoint("http://127.0.0.1:9/unhurt")
    desk.tell()
    desk.fan_out()
    desk.do("UPDATE callbacks SET due_at = now() - interval '40 s'")
    desk.do("UPDATE callbacks SET due_at = now() - interval '1 hour' WHERE endpoint_id = :id", id=ill)
    desk.do("UPDATE callback_endpoints SET failures = 6, open_until = now() + interval '1 min' WHERE id = :id", id=ill)
    read = look()
    assert well != ill
    assert read["nightcourt_callbacks", ("waiting",)] == 3
    assert 40 <= read["nightcourt_oldest_callback_seconds", ()] < 50
    assert read["nightcourt_callback_circuits", ("closed",)] == 2
    assert read["nightcourt_callback_circuits", ("open",)] == 1
    desk.do("UPDATE callback_endpoints SET open_until = now() WHERE id = :id", id=ill)
    assert look()["nightcourt_callback_circuits", ("half_open",)] == 1
    desk.do("UPDATE callbacks SET state = 'dead', ended_at = now() WHERE endpoint_id = :id", id=ill)
    read = look()
    assert read["nightcourt_callback_circuits", ("half_open",)] == 0  # or it would be for ever
    assert read["nightcourt_callback_circuits", ("closed",)] == 3
    desk.do("UPDATE callback_endpoints SET open_until = now() + interval '1 min'")  # they asked for time
    assert look()["nightcourt_oldest_callback_seconds", ()] == 0


def test_a_callback_that_was_handed_out_is_late_until_it_is_sent(desk: Desk):
    """Where nobody takes its hint, that is repeated for ever."""
    desk.add_endpoint("http://127.0.0.1:9/well")
    desk.tell()
    desk.fan_out()
    [released] = desk.release()
    desk.do("UPDATE callbacks SET due_at = now() - interval '40 s'")
    with desk.database.connect() as connection:
        assert 40 <= surveyed(connection)["nightcourt_oldest_callback_seconds", ()] < 50
    assert desk.claim_callback(released)
    with desk.database.connect() as connection:
        assert surveyed(connection)["nightcourt_oldest_callback_seconds", ()] == 0


def test_the_survey_is_taken_again_and_again(database: Engine, database_url: str, tmp_path: Path):
    """With the disk of the data folder, until it is told to stop."""
    meters, stop, own = Meters("dispatcher"), threading.Event(), connect(database_url, application="survey")
    fields: dict[str, Any] = {"worker_seconds": 30, "data_dir": tmp_path}
    thread = threading.Thread(target=survey.keep_taking, args=(own, meters, stop), kwargs=fields)
    thread.start()
    try:
        wait_until(lambda: series(meters)["nightcourt_disk_free_bytes", ()] > 0, within=60, what="a survey is taken")
    finally:
        stop.set()
        thread.join(timeout=60)
        own.dispose()
    read = series(meters)
    assert not thread.is_alive()
    assert 0 < read["nightcourt_disk_free_bytes", ()] <= read["nightcourt_disk_bytes", ()]
    assert read["nightcourt_database_bytes", ()] > 1_000_000
    assert read["nightcourt_docket_read_timestamp_seconds", ()] > 1_700_000_000
    assert read["nightcourt_docket_read_seconds", ()] > 0


def test_postgres_away_ends_no_survey(monkeypatch: pytest.MonkeyPatch):
    """The gauges stay as they were, and it is tried again."""
    monkeypatch.setattr(survey, "_EVERY_SECONDS", 0.05)
    meters, stop = Meters("dispatcher"), threading.Event()
    nowhere = connect("postgresql://127.0.0.1:1/none", application="survey")
    fields: dict[str, Any] = {"worker_seconds": 30, "data_dir": None}
    thread = threading.Thread(target=survey.keep_taking, args=(nowhere, meters, stop), kwargs=fields)
    with capture_logs() as logs:
        thread.start()
        try:
            wait_until(lambda: len(logs) > 1, within=30, what="a survey fails a second time")
        finally:
            stop.set()
            thread.join(timeout=60)
    assert not thread.is_alive()
    assert {line["event"] for line in logs} == {"survey_failed"}
    assert series(meters)["nightcourt_docket_read_timestamp_seconds", ()] == 0
