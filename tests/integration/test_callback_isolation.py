"""Isolation: what a receiver that is dead, slow or busy costs the others, which is nothing."""

import threading
from uuid import UUID

import pytest
from support.desk import Desk
from support.inbox import Inbox

from infra import callbacks

DAY = 86400.0


def origin(number: int) -> str:
    """A URL whose endpoint is shared with no other number; nothing is sent there."""
    return f"http://127.0.{number // 250}.{number % 250 + 1}:9/hook"


def owe(desk: Desk, receiver: int, count: int) -> None:
    """Owe a receiver so many callbacks, all due."""
    desk.tell(count, callback_url=origin(receiver))
    desk.fan_out()


def does_well(desk: Desk, *receivers: int) -> None:
    """Let endpoints have a good past."""
    for number in receivers:
        desk.do(
            "UPDATE callback_endpoints SET succeeded_at = now(), failures = 0 WHERE url = :url",
            url=origin(number).removesuffix("/hook"),
        )


def is_of_a_flood(desk: Desk) -> None:
    """Let all endpoints be another tenant's, one whose name comes first."""
    desk.do("UPDATE callback_endpoints SET tenant = 'a flood'")


def fail(desk: Desk, released: list[UUID], *, shift: float = 0.0) -> None:
    """Let attempts fail."""
    for callback in released:
        desk.record(desk.claim_callback(callback), shift=shift)


def receivers(desk: Desk, released: list[UUID]) -> list[str]:
    """Where callbacks that were let go are to be sent."""
    return [row.url for row in desk.rows("SELECT url FROM callbacks WHERE id = ANY(:ids)", ids=released)]


class TestCap:
    def test_one_endpoint_has_so_many_under_way(self, desk: Desk):
        """However much an endpoint is owed, at most its cap is under way, and each that ends lets one more go."""
        desk.cap = 3
        owe(desk, 1, 6)
        does_well(desk, 1)
        first = desk.release()
        assert len(first) == 3
        assert desk.release() == []
        desk.record(desk.claim_callback(first[0]), 200)
        assert len(desk.release()) == 1

    def test_a_new_endpoint_is_tried_with_one(self, desk: Desk):
        """Nobody knows yet what a new receiver is like, so one attempt finds out."""
        owe(desk, 1, 6)
        [first] = desk.release()
        assert desk.release() == []
        desk.record(desk.claim_callback(first), 200)
        assert len(desk.release()) == 5

    def test_one_that_began_to_fail_is_tried_with_one(self, desk: Desk):
        """However well it did before, one attempt at a time finds out whether it does again."""
        owe(desk, 1, 6)
        does_well(desk, 1)
        desk.do("UPDATE callback_endpoints SET failures = 1")
        [probe] = desk.release()
        assert desk.release() == []
        desk.record(desk.claim_callback(probe), 200)
        assert len(desk.release()) == 5

    def test_two_dispatchers_keep_one_cap(self, desk: Desk):
        """Several dispatchers at once let no more go than one would."""
        desk.cap = 2
        owe(desk, 1, 20)
        does_well(desk, 1)
        released: list[UUID] = []
        start = threading.Barrier(4)

        def dispatch() -> None:
            start.wait()
            for _ in range(10):
                released.extend(desk.release())

        threads = [threading.Thread(target=dispatch) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(released) == len(set(released)) == 2

    def test_a_backlog_keeps_nobody_waiting(self, desk: Desk):
        """Whoever is owed one callback gets it in the same round as whoever is owed a great many."""
        desk.room, desk.cap = 3, 3
        owe(desk, 1, 20)
        owe(desk, 2, 1)
        does_well(desk, 1, 2)
        assert sorted(receivers(desk, desk.release())) == [origin(1)] * 2 + [origin(2)]


class TestCircuit:
    def test_after_several_failures_one_probe_goes_through(self, desk: Desk):
        """Five failures in a row open the circuit; when its time is up a single callback finds out how things are."""
        owe(desk, 1, 30)
        with desk.at_one_moment():
            for _ in range(5):
                released = desk.release()
                assert len(released) == 1
                fail(desk, released)
            assert desk.release() == []
            assert desk.release(shift=9) == []
            probe = desk.release(shift=11.1)
            assert len(probe) == 1
            assert desk.release(shift=11.1) == []
            fail(desk, probe, shift=11.1)
            assert desk.release(shift=11.1 + 19) == []
            probe = desk.release(shift=11.1 + 22.1)
            assert len(probe) == 1
            desk.record(desk.claim_callback(probe[0]), 200, shift=40)
            assert len(desk.release(shift=40)) == desk.cap

    def test_what_was_under_way_ends_no_hold(self, desk: Desk):
        """A receiver that asked for an hour has it, whatever comes of those that were sent before."""
        owe(desk, 1, 9)
        does_well(desk, 1)
        throttled, well, badly, *_ = [desk.claim_callback(callback) for callback in desk.release()]
        desk.record(throttled, 429, retry_after=3600.0)
        desk.record(badly, 503, retry_after=1.0)
        desk.record(well, 200)
        assert desk.release(shift=3590) == []
        assert desk.release(shift=3610) != []

    def test_a_circuit_opens_for_an_hour_at_most(self, desk: Desk):
        """A receiver that was away for long is found again within an hour of its return."""
        owe(desk, 1, 2)
        desk.do("UPDATE callback_endpoints SET failures = 500")
        fail(desk, desk.release())
        assert 3590 <= float(desk.one("SELECT extract(epoch FROM open_until - now()) FROM callback_endpoints")) <= 3961

    def test_one_bad_event_opens_nothing(self, desk: Desk):
        """A receiver that takes everything but one event goes on getting everything."""
        owe(desk, 1, 12)
        does_well(desk, 1)
        for number in range(12):
            released = desk.release()
            for callback in released:
                desk.record(desk.claim_callback(callback), 500 if number % 2 else 200)
        assert desk.one("SELECT open_until FROM callback_endpoints") is None

    def test_what_never_had_its_turn_dies_in_the_end(self, desk: Desk):
        """What has been due for 96 hours behind an open circuit is dead, says why, and can be replayed."""
        owe(desk, 1, 8)
        for _ in range(callbacks.OPEN_AFTER):
            fail(desk, desk.release())
        for hours, dead in ((95.9, 0), (96.1, 6)):  # at each of them another was tried just now
            fail(desk, desk.release(hours * 3600), shift=hours * 3600)
            assert desk.sweep(hours * 3600) == (0, dead)
        died = desk.rows("SELECT DISTINCT reason FROM callbacks WHERE state = 'dead'")
        assert died == [("circuit_open",)]

    @pytest.mark.parametrize("failures", [1, callbacks.OPEN_AFTER])
    def test_what_a_stack_that_was_off_has_yet_to_try_does_not_die(self, desk: Desk, failures: int):
        """However its receiver failed before a stack went off, days later it is tried before anything is given up."""
        owe(desk, 1, 8)
        for _ in range(failures):
            fail(desk, desk.release())
        assert desk.sweep(30 * DAY) == (0, 0)

    def test_a_backlog_of_days_does_not_die_by_a_bad_moment(self, desk: Desk):
        """A slow receiver that has just begun to fail has time to come back, however long its callbacks were due."""
        owe(desk, 1, 8)
        for _ in range(callbacks.OPEN_AFTER):
            fail(desk, desk.release(30 * DAY), shift=30 * DAY)
        assert desk.sweep(30 * DAY) == (0, 0)

    def test_a_long_backlog_of_a_good_receiver_does_not_die(self, desk: Desk):
        """Only where the receiver fails is anything given up."""
        owe(desk, 1, 3)
        does_well(desk, 1)
        assert desk.sweep(30 * DAY) == (0, 0)


class TestShares:
    def test_receivers_that_hang_leave_room(self, desk: Desk):
        """However many endpoints are new, or fail, those that do well always find room."""
        desk.room = 10
        for number in range(10):
            owe(desk, number, 1)
        for number in range(10, 20):
            owe(desk, number, 1)
            desk.do(
                "UPDATE callback_endpoints SET failures = 1 WHERE url = :url", url=origin(number).removesuffix("/hook")
            )
        hanging = desk.release()
        assert len(hanging) == 6 + 2
        assert desk.release() == []
        owe(desk, 20, 1)
        does_well(desk, 20)
        assert receivers(desk, desk.release()) == [origin(20)]

    def test_the_room_is_never_exceeded(self, desk: Desk):
        """No more is out at a time than there is room for, whoever it goes to."""
        desk.room = 5
        for number in range(8):
            owe(desk, number, 1)
        does_well(desk, *range(8))
        assert len(desk.release()) == 5
        assert desk.release() == []

    def test_those_that_do_well_go_first(self, desk: Desk):
        """New receivers, though they came before, get what a tenant's good ones have left of the room."""
        desk.room = 4
        for number in range(8):
            owe(desk, number, 1)
        does_well(desk, *range(4, 8))
        assert sorted(receivers(desk, desk.release())) == [origin(number) for number in range(4, 8)]

    def test_those_that_may_hang_count_for_all(self, desk: Desk):
        """What is out to new receivers is no room for those that do well: there is one room."""
        desk.room = 5
        for number in range(3):
            owe(desk, number, 1)
        assert len(desk.release()) == 3
        for number in range(3, 8):
            owe(desk, number, 1)
        does_well(desk, *range(3, 8))
        assert len(desk.release()) == 2

    def test_only_what_is_due_is_let_go(self, desk: Desk):
        """A callback whose next attempt is later stays, whatever room there is."""
        owe(desk, 1, 1)
        desk.do("UPDATE callbacks SET due_at = now() + interval '1 min'")
        assert desk.release() == []
        assert len(desk.release(shift=61)) == 1


class TestTenants:
    def test_new_receivers_of_one_keep_no_others_waiting(self, desk: Desk):
        """However many a tenant named first, another's goes in the same round, and by what is out in the next one."""
        desk.room = 10
        for number in range(10):
            owe(desk, number, 1)
        is_of_a_flood(desk)
        owe(desk, 20, 1)
        released = desk.release()
        where = receivers(desk, released)
        assert len(where) == 6
        assert origin(20) in where
        owe(desk, 21, 1)
        fail(desk, [next(each for each in released if receivers(desk, [each]) != [origin(20)])])
        assert receivers(desk, desk.release()) == [origin(21)]

    def test_a_busy_one_keeps_no_others_new_receiver_waiting(self, desk: Desk):
        """Receivers that do well go before new ones within a tenant, and not before those of a tenant with less out."""
        desk.room = 8
        owe(desk, 1, 20)
        is_of_a_flood(desk)
        does_well(desk, 1)
        [first, *_] = released = desk.release()
        assert len(released) == 8
        owe(desk, 2, 1)
        desk.record(desk.claim_callback(first), 200)
        assert receivers(desk, desk.release()) == [origin(2)]


class TestDisabling:
    @pytest.fixture
    def endpoint(self, desk: Desk) -> UUID:
        """A registered endpoint that is owed 20 callbacks."""
        endpoint = desk.add_endpoint(origin(1))
        desk.tell(20)
        desk.fan_out()
        return endpoint

    def test_days_of_nothing_but_failure(self, desk: Desk, endpoint: UUID):
        """Twelve failures over more than five days without a success between disable an endpoint, and say so."""
        said = [self._attempt(desk, hour * 3600.0) for hour in range(0, 132, 11)]
        assert [each.disabled for each in said] == [None] * 11 + ["failing"]
        assert desk.one("SELECT state FROM callback_endpoints WHERE id = :id", id=endpoint) == "disabled"
        assert desk.release(shift=200 * 3600.0) == []

    def test_failures_of_one_day(self, desk: Desk, endpoint: UUID):
        """However many failures there are, a day of them is a bad day and no more."""
        assert {self._attempt(desk, hour * 3600.0).disabled for hour in range(0, 24, 2)} == {None}

    def test_a_success_between_begins_anew(self, desk: Desk, endpoint: UUID):
        """An endpoint that now and then takes something is not given up."""
        for hour in range(0, 264, 22):
            self._attempt(desk, hour * 3600.0, status=200 if hour == 66 else 500)
        assert desk.one("SELECT state FROM callback_endpoints WHERE id = :id", id=endpoint) == "enabled"

    def test_the_days_begin_after_the_last_success(self, desk: Desk, endpoint: UUID):
        """An endpoint that failed once last week, and well between, has all of its five days today."""
        self._attempt(desk, 0.0)
        self._attempt(desk, 3600.0, status=200)
        assert {self._attempt(desk, hour * 3600.0).disabled for hour in range(150, 162)} == {None}
        assert desk.one("SELECT failures FROM callback_endpoints WHERE id = :id", id=endpoint) == 12

    def test_rare_failures_are_not_enough(self, desk: Desk, endpoint: UUID):
        """Two failures a week apart, and nothing sent between, say little."""
        assert [self._attempt(desk, day * DAY).disabled for day in (0, 7)] == [None, None]

    def test_a_success_that_is_being_recorded_counts(self, desk: Desk, endpoint: UUID, meanwhile):
        """The failure that would be one too many waits for a success on its way into the row: that begins anew."""
        desk.do("UPDATE callback_endpoints SET succeeded_at = now() WHERE id = :id", id=endpoint)
        good, bad, *_ = [desk.claim_callback(callback) for callback in desk.release()]
        desk.do("UPDATE callback_endpoints SET failures = 11, failing_since = now() - interval '6 days'")
        said = callbacks.Attempt(delivered=True, reason="delivered", status=200, seconds=0.1)
        with desk.database.begin() as connection:
            callbacks.record(connection, good, said)
            failing = meanwhile(desk.record, bad)
        assert failing.result().disabled is None
        assert desk.rows("SELECT state, failures FROM callback_endpoints WHERE id = :id", id=endpoint) == [
            ("enabled", 1)
        ]

    @staticmethod
    def _attempt(desk: Desk, shift: float, status: int = 500) -> callbacks.Recorded:
        released = desk.release(shift)
        [first, *rest] = released
        with desk.database.begin() as connection:
            callbacks.withdraw(connection, rest)
        return desk.record(desk.claim_callback(first), status, shift=shift)


def test_deliveries_go_on_while_others_hang(desk: Desk, inbox: Inbox):
    """A receiver that fails at everything takes nothing from one that works, in one and the same queue."""
    for number in range(10):
        owe(desk, number, 3)
    desk.tell(5, callback_url=inbox.url)
    while desk.deliver():
        pass
    assert len(inbox.messages) == 5
