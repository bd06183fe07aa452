"""What the dispatcher asks at each turn: is there anything to do?"""

from support.desk import Desk
from support.dockets import batch, claim_one

from infra import roster
from producer.due import Due, look

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
