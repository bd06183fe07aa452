"""What the dispatcher asks at each turn: is there anything to do?"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import pytest
from sqlalchemy import Connection, text
from support.desk import Desk
from support.dockets import batch, claim_one

from infra import callbacks, docket, roster
from producer import lifecycle
from producer.due import Due, look
from schemas.batch import BatchStatus
from schemas.states import Lane, ShardState

THINGS = ("interactive", "bulk", "bulk_out", "late", "batches", "events", "callbacks")
NOTHING = Due(**dict.fromkeys(THINGS, False), slots=0, bulk_slots=0)


def seen(desk: Desk) -> Due:
    """What a look tells."""
    with desk.database.begin() as connection:
        return look(connection, worker_seconds=30)


def things_to_do(due: Due) -> set[str]:
    """Which of them there are."""
    return {name for name in THINGS if getattr(due, name)}


def test_an_empty_docket(desk: Desk):
    """There is nothing to do, and nobody to do it."""
    assert seen(desk) == NOTHING


def test_a_comparison_is_due_until_it_is_let_go(desk: Desk):
    """One that is filed may be let go at once, and one whose pause is not over may not."""
    desk.file()
    assert things_to_do(seen(desk)) == {"interactive"}
    desk.do("UPDATE shards SET due_at = now() + interval '1 minute'")
    assert seen(desk) == NOTHING
    desk.do("UPDATE shards SET due_at = now()")
    desk.claim()
    assert seen(desk) == NOTHING


def test_a_deadline_that_has_passed(desk: Desk):
    """What has not ended is late once its deadline is past, whether it waits or somebody is at it."""
    desk.file()
    desk.do("UPDATE shards SET deadline_at = now() + interval '1 minute'")
    assert things_to_do(seen(desk)) == {"interactive"}
    desk.do("UPDATE shards SET deadline_at = now()")
    assert things_to_do(seen(desk)) == {"interactive", "late"}
    desk.claim()
    assert things_to_do(seen(desk)) == {"late"}


def test_a_batch_is_seen_to_until_it_has_ended(desk: Desk):
    """It is there to be seen to when nothing is left of it, too; whether its shards are due is not asked here."""
    with desk.database.begin() as connection:
        batch(connection, 2)
    desk.do("UPDATE shards SET due_at = now() + interval '1 minute'")
    assert things_to_do(seen(desk)) == {"batches", "bulk"}
    desk.do("UPDATE shards SET due_at = now()")
    with desk.database.begin() as connection:
        claim_one(connection)
    assert things_to_do(seen(desk)) == {"batches", "bulk", "bulk_out"}
    desk.do("UPDATE shards SET state = 'released', released_at = now() WHERE state = 'waiting'")
    assert things_to_do(seen(desk)) == {"batches", "bulk_out"}
    desk.do("UPDATE shards SET state = 'done', lease_token = NULL, lease_until = NULL, lease_owner = NULL")
    assert things_to_do(seen(desk)) == {"batches"}
    desk.do("UPDATE batches SET status = 'cancelling'")
    assert things_to_do(seen(desk)) == {"batches"}
    desk.do("UPDATE batches SET status = 'cancelled'")
    assert seen(desk) == NOTHING


def test_callbacks_that_wait(desk: Desk):
    """An event that nobody has been told of is something to do, and so is a callback until it is let go."""
    desk.add_endpoint("http://127.0.0.1:9/")
    desk.file()
    desk.decide()
    assert things_to_do(seen(desk)) == {"events"}
    desk.fan_out()
    assert things_to_do(seen(desk)) == {"callbacks"}
    desk.release()
    assert seen(desk) == NOTHING


def test_the_room_of_all_workers(desk: Desk):
    """Slots of workers that were heard of lately are added up."""
    with desk.database.begin() as connection:
        for worker in ("one", "other", "silent"):
            roster.report(connection, worker=worker, slots=8, bulk_slots=6, engine={})
    desk.do("UPDATE workers SET seen_at = now() - interval '1 minute' WHERE id = 'silent'")
    due = seen(desk)
    assert (due.slots, due.bulk_slots) == (16, 12)


SECONDS = (-60, 60)
"""A moment that has passed, and one that is to come."""
PUT_SHARD = """
    UPDATE shards SET state = :state, attempt = CASE WHEN :state = 'waiting' THEN 0 ELSE 1 END,
        due_at = now() + make_interval(secs => :due_in),
        deadline_at = now() + make_interval(secs => :deadline_in),
        lease_token = CASE WHEN :state = 'running' THEN nextval('lease_tokens') END,
        lease_until = CASE WHEN :state = 'running' THEN now() + interval '1 minute' END
"""
PUT_BATCH = "UPDATE batches SET status = :status, open = :open, paused = :paused"
PUT_CALLBACK = """
    UPDATE callbacks SET state = :state, due_at = now() + make_interval(secs => :due_in),
        lease_token = CASE WHEN :state = 'sending' THEN nextval('lease_tokens') END,
        lease_until = CASE WHEN :state = 'sending' THEN now() + interval '1 minute' END,
        ended_at = CASE WHEN :state IN ('delivered', 'dead') THEN now() END
"""


class TestWhatTheMovesFind:
    """A look repeats the conditions of the moves in SQL of its own: it must not pass over what a move would take.

    Each test puts rows into every state that they can have, and compares what the look says with what the move does.
    """

    @contextmanager
    def undone(self, connection: Connection) -> Iterator[None]:
        """Take back whatever is done meanwhile, so that the next move finds the same rows."""
        savepoint = connection.begin_nested()
        yield
        savepoint.rollback()

    def moves(self, connection: Connection, move: Callable[..., Any], **parameters: Any) -> bool:
        """Whether a move finds anything now. It is taken back."""
        with self.undone(connection):
            return bool(move(connection, **parameters))

    @pytest.mark.parametrize("lane", Lane)
    def test_shards(self, desk, lane):
        """Interactive shards and late ones are seen exactly when they can be moved; bulk ones also before that."""
        with desk.database.begin() as connection:
            batch(connection, 1)
        desk.file()
        desk.do("DELETE FROM shards WHERE lane <> :lane", lane=lane)
        seen_to = set()
        with desk.database.begin() as connection:
            for state, due_in, deadline_in in product(ShardState, SECONDS, (None, *SECONDS)):
                put = {"state": state, "due_in": due_in, "deadline_in": deadline_in}
                connection.execute(text(PUT_SHARD), put)
                due = look(connection, worker_seconds=30)
                late = self.moves(connection, docket.expire, limit=10)
                interactive = self.moves(connection, docket.release, lane=Lane.INTERACTIVE, room=9, limit=9)
                bulk = self.moves(connection, docket.release_bulk, room=9, limit=9)
                assert (due.late, due.interactive) == (late, interactive), put
                assert due.bulk or not bulk, put
                seen_to |= {("late", late), ("interactive", interactive), ("bulk", bulk)}
        assert {("late", True), (lane, True)} <= seen_to

    def test_batches(self, desk):
        """A batch that a turn would change is seen, and one of which nothing is left ends at that turn."""
        with desk.database.begin() as connection:
            batch(connection, 1)
        changed = set()
        with desk.database.begin() as connection:

            def rows() -> tuple[Any, ...]:
                return tuple(connection.execute(text("SELECT * FROM batches, shards")).one())

            statuses = (*BatchStatus, "deleting")
            for status, is_open, paused, state in product(statuses, (True, False), (True, False), ShardState):
                put = {"status": status, "open": is_open, "paused": paused}
                connection.execute(text(PUT_BATCH), put)
                connection.execute(text(PUT_SHARD), {"state": state, "due_in": -60, "deadline_in": None})
                due = look(connection, worker_seconds=30)
                with self.undone(connection):
                    before = rows()
                    lifecycle.tend(connection)
                    does_something = rows() != before
                    ended = connection.execute(text("SELECT ended_at IS NOT NULL FROM batches")).scalar_one()
                assert due.batches or not does_something, (put, state)
                assert ended or not due.nothing_is_left, (put, state)
                changed |= {(does_something, ended)}
        assert changed == {(False, False), (True, False), (True, True)}

    def test_events_and_callbacks(self, desk):
        """An event is seen exactly when it can be fanned out; a callback also before it can be let go."""
        desk.add_endpoint("http://127.0.0.1:9/")
        desk.tell()
        with desk.database.begin() as connection:
            assert look(connection, worker_seconds=30).events
            assert self.moves(connection, callbacks.fan_out, limit=9)
        desk.fan_out()
        let_go = set()
        with desk.database.begin() as connection:
            for state, due_in in product(("waiting", "released", "sending", "delivered", "dead"), SECONDS):
                connection.execute(text(PUT_CALLBACK), {"state": state, "due_in": due_in})
                due = look(connection, worker_seconds=30)
                assert not due.events
                assert not self.moves(connection, callbacks.fan_out, limit=9)
                released = self.moves(connection, callbacks.release, room=9, cap=9, limit=9)
                assert due.callbacks or not released, (state, due_in)
                let_go |= {released}
        assert let_go == {True, False}
