"""The docket's moves for batches: filing from a file, releasing fairly, recalling."""

import uuid
from collections import Counter

import pytest
from sqlalchemy import Connection, text
from support.canaries import MARK
from support.dockets import a_line, an_outcome, batch, claim_one

from infra import docket
from infra.docket import LeaseLostError
from schemas.ids import new_filing_id
from schemas.states import Lane


def released(connection: Connection, room: int) -> list[uuid.UUID]:
    """Release what there is room for, and say of which batches."""
    shards = docket.release_bulk(connection, room=room, limit=100)
    rows = connection.execute(text("SELECT filing_id FROM shards WHERE id = ANY(:ids)"), {"ids": shards})
    return [row.filing_id for row in rows]


def test_a_batchs_options_reach_the_line(connection):
    """What the batch says holds for a line that does not."""
    batch(connection, 1)
    [line] = docket.undecided(connection, claim_one(connection))
    assert (line.prompt, line.orders) == (f"{MARK}p", "ba")


def test_runs_become_shards_in_the_order_of_their_lines(connection):
    """However a file's runs came to lie in their table, and without those of which no comparison is left."""
    first = batch(connection, 4)
    connection.execute(
        text("UPDATE file_runs SET lines = CASE first_line WHEN 3 THEN 0 ELSE 1 END WHERE first_line < 4")
    )
    connection.execute(text("UPDATE file_runs SET bytes = 11 WHERE first_line = 1"))
    again = {"first": first, "second": new_filing_id()}
    connection.execute(
        text("""
            INSERT INTO batches (id, tenant, file_id, endpoint, status, options, completion_window, on_bad_line, total,
                                 expires_at)
            SELECT :second, tenant, file_id, endpoint, status, options, completion_window, on_bad_line, total,
                   expires_at
            FROM batches WHERE id = :first
        """),
        again,
    )
    assert docket.file_batch(connection, again["second"]) == 3
    made = connection.execute(text("SELECT first_line FROM shards WHERE filing_id = :second ORDER BY id"), again)
    assert made.scalars().all() == [1, 2, 4]


def test_nothing_of_a_closed_batch_is_released(connection):
    """A batch that is paused, or whose window is closed, stays in Postgres whole."""
    batch(connection, 3, is_open=False)
    assert released(connection, 10) == []


def test_what_waits_for_its_next_attempt_stays(connection):
    """A shard that failed is not let go before its pause is over, and keeps no place for itself."""
    batch(connection, 2)
    connection.execute(text("UPDATE shards SET due_at = now() + interval '1 h' WHERE first_line = 1"))
    [shard] = docket.release_bulk(connection, room=2, limit=2)
    assert connection.execute(text("SELECT first_line FROM shards WHERE id = :id"), {"id": shard}).scalar_one() == 2


def test_what_is_being_judged_takes_room_too(connection):
    """Workers are handed no more than they have room for, whether it is on its way to them or they are at it."""
    mine = batch(connection, 5)
    shard, _other = docket.release_bulk(connection, room=2, limit=100)
    assert docket.claim(connection, shard, worker="w", lease_seconds=60)
    assert released(connection, 2) == []
    assert released(connection, 3) == [mine]


def test_singles_take_no_room_of_batches(connection):
    """However many comparisons of people are out, the workers' room for batches is free."""
    for _ in range(3):
        docket.file(
            connection, tenant="default", filing_id=new_filing_id(), lane=Lane.INTERACTIVE, comparisons=[a_line(0)]
        )
    assert len(docket.release(connection, lane=Lane.INTERACTIVE, room=3, limit=3)) == 3
    mine = batch(connection, 2)
    assert released(connection, 1) == [mine]


def test_room_is_shared_between_tenants(connection):
    """However much one tenant has filed, and however urgent, another has its share of the room."""
    large = batch(connection, 50, tenant="large", priority=100)
    small = batch(connection, 4, tenant="small")
    assert Counter(released(connection, 6)) == {large: 3, small: 3}
    assert Counter(released(connection, 8)) == {large: 1, small: 1}


def test_the_more_urgent_of_a_tenants_batches_goes_first(connection):
    """Within a tenant the higher priority goes first, then the older batch."""
    old, young, urgent = batch(connection, 2), batch(connection, 2), batch(connection, 2, priority=5)
    assert Counter(released(connection, 3)) == {urgent: 2, old: 1}
    assert Counter(released(connection, 6)) == {old: 1, young: 2}


def test_a_recall_takes_back_what_is_out(connection):
    """Released and running shards wait again, no attempt is counted, and the worker's write is refused."""
    called = batch(connection, 3)
    claim = claim_one(connection)
    docket.release_bulk(connection, room=2, limit=1)
    assert docket.recall(connection, called) == 2
    rows = connection.execute(text("SELECT DISTINCT state, attempt, lease_token, released_at FROM shards"))
    assert [tuple(row) for row in rows] == [("waiting", 0, None, None)]
    with pytest.raises(LeaseLostError):
        docket.finish(connection, claim.lease, [an_outcome(1, good=True)])


def test_a_recall_takes_no_attempt_back_that_was_made(connection):
    """What waits for a worker after a failed attempt has had that attempt, however often its batch is paused."""
    called = batch(connection, 1)
    docket.release_bulk(connection, room=1, limit=1)
    connection.execute(text("UPDATE shards SET attempt = 1"))
    assert docket.recall(connection, called) == 1
    assert connection.execute(text("SELECT state, attempt FROM shards")).one() == ("waiting", 1)


def test_a_recall_leaves_other_batches_alone(connection):
    """What another batch has out stays out."""
    mine = batch(connection, 1)
    other = batch(connection, 1)
    assert len(released(connection, 2)) == 2
    docket.recall(connection, mine)
    rows = connection.execute(text("SELECT filing_id FROM shards WHERE state = 'released'"))
    assert [row.filing_id for row in rows] == [other]


def test_a_shard_counts_how_its_lines_ended(connection):
    """The sums over a batch's shards are the counts of its outcomes, whichever way they came to be."""
    filed = batch(connection, 4)
    docket.finish(connection, claim_one(connection).lease, [an_outcome(1, good=True)])
    docket.finish(connection, claim_one(connection).lease, [an_outcome(2, good=False)])
    connection.execute(text("UPDATE shards SET deadline_at = now() WHERE first_line = 3"))
    docket.expire(connection, limit=10)
    docket.cancel(connection, tenant="default", filing_id=filed)
    counted = connection.execute(
        text("SELECT sum(succeeded), sum(errored), sum(expired), sum(cancelled) FROM shards")
    ).one()
    assert tuple(counted) == (1, 1, 1, 1)
    stored = connection.execute(text("SELECT status, count(*) FROM outcomes GROUP BY status"))
    assert {row.status: row.count for row in stored} == {"succeeded": 1, "errored": 1, "expired": 1, "cancelled": 1}
