"""Holds: nothing is tried at a receiver for a time, which its own tenant can see, and end by hand."""

from uuid import UUID

import pytest
from support.desk import Desk
from support.inbox import Inbox

from producer import callback_endpoints
from producer import callbacks as log_of_callbacks
from schemas import ids
from schemas.callback import CallbackState, Endpoint
from schemas.ids import parse_prefixed
from schemas.problems import Problem

HOURS = 3600.0


def held(desk: Desk, url: str, count: int = 2) -> UUID:
    """Name a receiver in requests, and have it ask for time when it gets the first of them; tells its id."""
    desk.tell(count, callback_url=url)
    desk.fan_out()
    [first] = desk.release()
    desk.record(desk.claim_callback(first), 429, reason="throttled", retry_after=HOURS)
    return desk.one("SELECT id FROM callback_endpoints")


def enable(desk: Desk, endpoint: UUID, tenant: str = "default") -> Endpoint:
    """End a hold by hand."""
    return desk.run(callback_endpoints.switch, tenant=tenant, endpoint=endpoint, enabled=True)


def endpoints(desk: Desk, tenant: str = "default") -> list[Endpoint]:
    """What is listed."""

    async def read(database: object, **named: object) -> list[Endpoint]:
        async with database.connect() as connection:
            return await callback_endpoints.everything(connection, **named)

    return desk.run(read, tenant=tenant)


class TestNamedByRequests:
    def test_a_callback_names_the_receiver_that_is_enabled(self, desk: Desk, inbox: Inbox):
        """What is held tells its receiver's id; enabling that sends at once what is due, and what is replayed."""
        held(desk, inbox.url)
        [waits] = desk.rows("SELECT id FROM callbacks WHERE attempt = 0")
        said = desk.run(log_of_callbacks.replay, tenant="default", callback=waits.id, shift=0.0)
        assert said.held_until is not None
        assert not said.registered
        assert desk.release() == []
        enabled = enable(desk, parse_prefixed(said.endpoint_id, "cep_"))
        assert (enabled.held_until, enabled.failures, enabled.registered) == (None, 0, False)
        assert enabled.url == inbox.url.removesuffix("/hook")
        assert desk.deliver() == 1
        asked_for_time = desk.one("SELECT id FROM callbacks WHERE state = 'waiting'")
        desk.run(log_of_callbacks.replay, tenant="default", callback=asked_for_time, shift=0.0)
        assert desk.deliver() == 1
        assert desk.states() == ["delivered"] * 2

    def test_it_is_listed_while_it_fails_or_is_held(self, desk: Desk, inbox: Inbox):
        """Behind those that are registered, and no longer once it does well."""
        registered = ids.endpoint_id(desk.add_endpoint(inbox.url))
        desk.tell(callback_url=inbox.url)
        assert [each.id for each in endpoints(desk)] == [registered]
        desk.do("UPDATE callback_endpoints SET failures = 1 WHERE NOT registered")
        assert [each.registered for each in endpoints(desk)] == [True, False]
        desk.do("UPDATE callback_endpoints SET failures = 0, open_until = now() + interval '1 h' WHERE NOT registered")
        assert [each.registered for each in endpoints(desk)] == [True, False]
        enable(desk, desk.one("SELECT id FROM callback_endpoints WHERE NOT registered"))
        assert [each.id for each in endpoints(desk)] == [registered]

    def test_it_is_enabled_and_nothing_else(self, desk: Desk, inbox: Inbox):
        """It was never registered, so there is nothing to disable, remove, test or give a secret of its own."""
        endpoint = held(desk, inbox.url)
        whose = {"tenant": "default", "endpoint": endpoint}
        for move, given in (
            (callback_endpoints.switch, {"enabled": False}),
            (callback_endpoints.remove, {}),
            (callback_endpoints.test, {"shift": 0.0}),
            (callback_endpoints.rotate, {"grace_seconds": 0, "seals": None}),
        ):
            with pytest.raises(Problem, match="is registered: requests named http"):
                desk.run(move, **whose, **given)
        assert len(desk.states()) == 2
        assert desk.one("SELECT state FROM callback_endpoints") == "enabled"

    def test_nobody_ends_anothers_hold(self, desk: Desk, inbox: Inbox):
        """A receiver that two tenants named is one of each: neither sees the other's, nor has it tried."""
        endpoint = held(desk, inbox.url)
        with pytest.raises(Problem, match="There is no callback endpoint of this id"):
            enable(desk, endpoint, tenant="other")
        assert endpoints(desk, tenant="other") == []
        desk.do(
            "INSERT INTO callback_endpoints (id, tenant, url, registered, failures, open_until)"
            " SELECT gen_random_uuid(), 'other', url, false, 5, open_until FROM callback_endpoints"
        )
        [theirs] = endpoints(desk, tenant="other")
        enable(desk, parse_prefixed(theirs.id, "cep_"), tenant="other")
        assert desk.one("SELECT open_until > now() FROM callback_endpoints WHERE id = :id", id=endpoint)
        assert desk.release() == []


def test_what_is_replayed_to_who_is_held_is_counted(desk: Desk, inbox: Inbox):
    """Whoever brings back everything that is dead is told how much of it does not go out yet."""
    held(desk, inbox.url, 3)
    desk.do("UPDATE callbacks SET state = 'dead', ended_at = now()")
    since = desk.one("SELECT now() - interval '1 h'")
    replay = {"tenant": "default", "since": since, "endpoint": None, "shift": 0.0}
    replayed = desk.run(log_of_callbacks.replay_dead, **replay)
    assert (replayed.replayed, replayed.held) == (3, 3)
    enable(desk, desk.one("SELECT id FROM callback_endpoints"))
    desk.do("UPDATE callbacks SET state = 'dead', ended_at = now()")
    replayed = desk.run(log_of_callbacks.replay_dead, **replay)
    assert (replayed.replayed, replayed.held) == (3, 0)
    while desk.deliver():
        pass
    assert {CallbackState(state) for state in desk.states()} == {CallbackState.DELIVERED}
