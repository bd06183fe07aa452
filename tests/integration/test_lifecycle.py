"""What the dispatcher does for batches at every turn: windows, recall, notes of progress, and the end."""

import json
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Connection, Engine, text
from support.dockets import an_outcome, batch, claim_one

from infra import docket
from producer import batches, hours, lifecycle, progress
from schemas.ids import batch_id


def states(connection: Connection) -> list[str]:
    """The states of all shards, in order."""
    return list(connection.execute(text("SELECT state FROM shards ORDER BY id")).scalars())


def samples(connection: Connection) -> list[list[float]]:
    """The notes of progress of the one batch there is."""
    return connection.execute(text("SELECT samples FROM batches")).scalar_one()


class TestClosedBatches:
    def test_what_slipped_out_while_a_batch_was_being_paused_comes_back(self, connection):
        """A release that saw the batch still open is undone at the next turn, and its attempt is not counted."""
        batch(connection, 3)
        claim_one(connection)
        docket.release_bulk(connection, room=2, limit=1)
        assert states(connection) == ["running", "released", "waiting"]
        connection.execute(text("UPDATE batches SET paused = true, open = false"))
        lifecycle.tend(connection)
        assert states(connection) == ["waiting"] * 3
        assert connection.execute(text("SELECT sum(attempt) FROM shards")).scalar_one() == 0

    def test_what_is_out_of_an_open_batch_stays_out(self, connection):
        """A turn leaves the shards of open batches where they are."""
        batch(connection, 2)
        claim_one(connection)
        lifecycle.tend(connection)
        assert states(connection) == ["running", "waiting"]


class TestWindows:
    def test_a_batch_is_opened_when_its_time_has_come(self, connection):
        """By the clock that windows go by, which may be ahead of Postgres's."""
        batch(connection, 1, is_open=False)
        connection.execute(text("UPDATE batches SET not_before = now() + interval '1 h'"))
        opened = text("SELECT open FROM batches")
        lifecycle.tend(connection)
        assert not connection.execute(opened).scalar_one()
        lifecycle.tend(connection, clock_shift=3700)
        assert connection.execute(opened).scalar_one()

    @pytest.mark.parametrize("change", ["paused = true", "status = 'cancelling'"])
    def test_whoever_holds_a_batch_while_its_window_opens_has_held_it(self, database, connection, monkeypatch, change):
        """A pause or a cancellation that comes between the turn's look at a batch and its opening is not undone."""
        batch(connection, 1, is_open=False)

        def hold_meanwhile(*_: Any) -> bool:
            with database.begin() as another:
                another.execute(text(f"UPDATE batches SET {change}"))  # noqa: S608
            return True

        monkeypatch.setattr(hours, "may_run", hold_meanwhile)
        lifecycle.tend(connection)
        assert not connection.execute(text("SELECT open FROM batches")).scalar_one()

    def test_a_window_that_is_not_understood_holds_back_its_own_batch_alone(self, connection):
        """A zone that this host does not know leaves that batch closed; others are tended as ever."""
        batch(connection, 1)
        connection.execute(
            text("""
            UPDATE batches SET open = false, "window" = '{"start": "22:00", "end": "06:00", "timezone": "Mars/Olympus"}'
        """)
        )
        other = batch(connection, 1)
        connection.execute(text("UPDATE batches SET open = false WHERE id = :id"), {"id": other})
        lifecycle.tend(connection)
        assert connection.execute(text("SELECT id FROM batches WHERE open")).scalars().all() == [other]


class TestCancelling:
    @pytest.mark.parametrize(("at_once", "turns"), [(2, 5), (3, 3), (7, 2)])
    def test_a_turn_cancels_so_much_however_many_batches_wait_for_it(self, connection, at_once: int, turns: int):
        """What a turn cancels is of all batches together, so that many of them hold up nobody's release."""
        for _ in range(3):
            batch(connection, 3)
        connection.execute(text("UPDATE batches SET status = 'cancelling', open = false"))
        done = 0
        for _ in range(turns):
            lifecycle.tend(connection, cancel_shards=at_once)
            before, done = done, states(connection).count("done")
            assert 0 < done - before <= at_once
        assert done == 9


class TestWhatSomebodyIsAt:
    """A worker's transaction may go on for long, its worker having vanished: everybody's release waits for a turn."""

    @pytest.mark.parametrize(
        ("change", "after"),
        [("open = false, paused = true", "waiting"), ("open = false, status = 'cancelling'", "done")],
        ids=["closed", "cancelling"],
    )
    def test_a_turn_passes_over_a_shard_and_comes_back_to_it(
        self, database: Engine, connection: Connection, change: str, after: str
    ):
        """The other shards of its batch are recalled, or cancelled, at once."""
        batch(connection, 2)
        claim_one(connection)
        docket.release_bulk(connection, room=2, limit=2)
        connection.execute(text(f"UPDATE batches SET {change}"))  # noqa: S608
        connection.execute(text("SET lock_timeout = '1 s'"))
        with database.begin() as worker:
            worker.execute(text("SELECT FROM shards WHERE state = 'running' FOR UPDATE"))
            lifecycle.tend(connection)
            assert states(connection) == ["running", after]
        lifecycle.tend(connection)
        assert states(connection) == [after] * 2

    def test_a_turn_passes_over_a_batch(self, database: Engine, connection: Connection):
        """Of which somebody waits for a shard: it is opened, and its progress noted, at another turn."""
        held, other = batch(connection, 1, is_open=False), batch(connection, 1, is_open=False)
        connection.execute(text("SET lock_timeout = '1 s'"))
        opened = text("SELECT id FROM batches WHERE open ORDER BY id")
        with database.begin() as pausing:
            pausing.execute(text("SELECT FROM batches WHERE id = :id FOR UPDATE"), {"id": held})
            lifecycle.tend(connection)
            assert connection.execute(opened).scalars().all() == [other]
            lifecycle.tend(connection)
        lifecycle.tend(connection)
        assert connection.execute(opened).scalars().all() == [held, other]


def one_shard_begun(connection: Connection, lines: int) -> docket.Claim:
    """File a batch whose one shard has ten bytes a line, and decide the second of its lines."""
    batch(connection, lines)
    connection.execute(text("DELETE FROM shards WHERE first_line > 1"))
    connection.execute(text("UPDATE shards SET last_line = :lines, bytes = 10 * :lines"), {"lines": lines})
    held = claim_one(connection)
    docket.record(connection, held.lease, [an_outcome(2, good=True)], lease_seconds=60)
    return held


class TestNotesOfProgress:
    def test_an_open_batch_is_noted_once_in_a_while(self, connection):
        """The first turn notes where a batch stands; a turn right after it notes nothing."""
        batch(connection, 4)
        lifecycle.tend(connection)
        [[_, lines, done]] = samples(connection)
        assert (lines, done) == (0, 0.0)
        lifecycle.tend(connection)
        assert len(samples(connection)) == 1

    def test_lines_are_counted_before_their_shard_has_ended(self, connection):
        """A batch whose one shard has a third of its lines decided is a third done."""
        one_shard_begun(connection, 3)
        progress.sample(connection)
        [[_, lines, done]] = samples(connection)
        assert (lines, done) == (1, 10.0)

    def test_a_split_changes_nothing(self, connection):
        """What was judged of a shard that is split counts on, and its halves have the text of their own lines alone."""
        held = one_shard_begun(connection, 4)
        docket.split(connection, held.lease)
        progress.sample(connection)
        [[_, lines, done]] = samples(connection)
        assert (lines, done) == (1, 10.0)
        halves = connection.execute(text("SELECT bytes FROM shards WHERE state = 'waiting'")).scalars()
        assert sorted(halves) == [10, 20]

    def test_a_minute_of_notes_is_kept(self, connection):
        """The oldest note goes when a new one comes: a rate is that of the last minute."""
        batch(connection, 1)
        old = [[float(second), second, 0.0] for second in range(0, 60, 5)]
        connection.execute(text("UPDATE batches SET samples = CAST(:old AS jsonb)"), {"old": json.dumps(old)})
        progress.sample(connection)
        *kept, (moment, *_) = samples(connection)
        assert kept == old[1:]
        assert moment == pytest.approx(time.time(), abs=60)

    def test_closing_and_opening_begins_anew(self, connection):
        """The hours in which a batch was closed are no part of its rate."""
        batch(connection, 1, is_open=False)
        connection.execute(text("UPDATE batches SET samples = '[[0, 0, 0]]'"))
        lifecycle.tend(connection)
        assert samples(connection) == []


class TestTheEnd:
    def test_a_batch_with_nothing_left_ends(self, connection):
        """When the last shard is done the batch is completed and closed."""
        batch(connection, 1)
        held = claim_one(connection)
        docket.finish(connection, held.lease, [an_outcome(1, good=True)])
        lifecycle.tend(connection)
        row = connection.execute(text("SELECT status, open, ended_at FROM batches")).one()
        assert (row.status, row.open, row.ended_at is None) == ("completed", False, False)

    def test_one_that_was_called_off_at_its_last_line(self, connection):
        """Its producer was told that it is being cancelled, and finds it cancelled, with all that was judged."""
        batch(connection, 1)
        docket.finish(connection, claim_one(connection).lease, [an_outcome(1, good=True)])
        connection.execute(text("UPDATE batches SET status = 'cancelling', open = false"))
        lifecycle.tend(connection)
        assert connection.execute(text("SELECT status FROM batches")).scalar_one() == "cancelled"

    def test_one_whose_time_was_up(self, connection):
        """With a line that nobody came to it is expired, whatever came of the others."""
        batch(connection, 2)
        docket.finish(connection, claim_one(connection).lease, [an_outcome(1, good=True)])
        connection.execute(text("UPDATE shards SET deadline_at = now()"))
        docket.expire(connection, limit=10)
        lifecycle.tend(connection)
        assert connection.execute(text("SELECT status FROM batches")).scalar_one() == "expired"

    def test_one_that_was_cancelled_and_is_retried(self, connection: Connection, client: TestClient):
        """It ends as cancelled once more: of its lines only those that were errored have been judged."""
        path = f"/v1/batches/{batch_id(batch(connection, 3))}"
        docket.finish(connection, claim_one(connection).lease, [an_outcome(1, good=False)])
        client.post(f"{path}/cancel")
        lifecycle.tend(connection)
        assert client.get(path).json()["status"] == "cancelled"
        assert client.post(f"{path}/retry").json()["status"] == "in_progress"
        lifecycle.tend(connection)
        docket.finish(connection, claim_one(connection).lease, [an_outcome(1, good=True)])
        lifecycle.tend(connection)
        ended = client.get(path).json()
        assert (ended["status"], ended["cancelled_at"] is None) == ("cancelled", False)
        assert (ended["request_counts"]["succeeded"], ended["request_counts"]["cancelled"]) == (1, 2)

    def test_one_that_is_retried_under_another_dispatchers_eyes(
        self, database: Engine, connection: Connection, meanwhile: Callable[..., Future[Any]], monkeypatch
    ):
        """Whoever saw its last shard done, and finds it in progress again, looks once more before it ends it."""
        # No dispatcher waits for a lock on a batch, so that moment is too short to be met. Waiting makes it long.
        monkeypatch.setattr(lifecycle, "_OVER", text(lifecycle._OVER.text.replace("SKIP LOCKED", "")))
        filing = batch(connection, 1)
        lifecycle.tend(connection)
        docket.finish(connection, claim_one(connection).lease, [an_outcome(1, good=False)])
        retried = {"id": filing, "bad_line": "bad_line", "seconds": 60, "shard_lines": 1, "traceparent": None}

        def tend() -> None:
            with database.begin() as second:
                lifecycle.tend(second)

        with database.begin() as first:
            lifecycle.tend(first)
            first.execute(batches._RETRY, retried)
            other = meanwhile(tend)
        other.result()
        assert connection.execute(text("SELECT status FROM batches")).scalar_one() == "in_progress"
        assert states(connection) == ["done", "waiting"]


class TestTimeLeft:
    def test_of_lines_that_are_judged_again(self, connection: Connection, client: TestClient):
        """A batch that is retried takes as long as what is left of its errored lines does, at the rate so far."""
        path = f"/v1/batches/{batch_id(batch(connection, 5))}"
        for line in range(1, 6):
            docket.finish(connection, claim_one(connection).lease, [an_outcome(line, good=line == 5)])
        lifecycle.tend(connection)
        assert client.post(f"{path}/retry").json()["status"] == "in_progress"
        lifecycle.tend(connection)
        noted = (
            "UPDATE batches SET samples = jsonb_build_array(jsonb_build_array(extract(epoch FROM now()) - 10, 1, 10))"
        )
        connection.execute(text(noted))
        docket.record(connection, claim_one(connection).lease, [an_outcome(1, good=True)], lease_seconds=60)
        now = client.get(path).json()["progress"]
        assert 0 < now["lines_per_second"] <= 0.1
        assert now["eta_seconds"] == pytest.approx(3 / now["lines_per_second"])
