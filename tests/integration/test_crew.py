"""What the dashboard says of workers: what each has in hand, and whose."""

from sqlalchemy import Connection
from support.dockets import batch, claim_one

from infra import roster
from producer.dashboard import crew


def test_a_worker_shows_what_it_has_in_hand(connection: Connection):
    """A shard of the caller's stands with its batch and lines."""
    roster.report(connection, worker="w", slots=8, bulk_slots=4, engine={"model": "m"})
    filing = batch(connection, 2)
    claim_one(connection)
    [member] = crew.members(connection, tenant="default", within=30)
    [task] = member.tasks
    assert (task.batch, task.first_line, task.last_line) == (f"batch_{filing.hex}", 1, 1)


def test_what_is_another_tenants_has_no_name(connection: Connection):
    """That a worker is busy is everybody's; with whose work, and which, is not."""
    roster.report(connection, worker="w", slots=8, bulk_slots=4, engine={"model": "m"})
    batch(connection, 1, tenant="other")
    claim_one(connection)
    [member] = crew.members(connection, tenant="default", within=30)
    [task] = member.tasks
    assert (task.batch, task.comparison) == (None, None)


def test_lanes_count_the_shards_that_are_not_done(connection: Connection):
    """Each lane has its row, whether anything is in it or not."""
    batch(connection, 3)
    claim_one(connection)
    interactive, bulk = crew.lanes(connection)
    assert (interactive.lane, interactive.waiting, interactive.running) == ("interactive", 0, 0)
    assert (bulk.lane, bulk.waiting, bulk.running) == ("bulk", 2, 1)
