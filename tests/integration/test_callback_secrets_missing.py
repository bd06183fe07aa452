"""Callbacks whose secret a callback process cannot open: they wait for whoever can."""

from dataclasses import replace

from structlog.testing import capture_logs
from support.desk import Desk
from support.inbox import Inbox
from support.series import series

from infra.callbacks import PUT_BACK_SECONDS, SCHEDULE
from infra.sealing import Seals
from producer.cli import doctor
from worker.callbacks import Courier, deliver

STRANGE = Seals(["89abcdef01234567" * 4])


def try_without_the_key(desk: Desk, shift: float = 0.0) -> Courier:
    """Deliver what is due by a process that has another key, and do what the dispatcher does about lost leases."""
    courier = replace(desk.courier(shift), seals=STRANGE)
    for callback in desk.release(shift):
        deliver(courier, callback)
    desk.do("UPDATE callbacks SET lease_until = now() - interval '1 s' WHERE state = 'sending'")
    desk.sweep(shift)
    return courier


def test_it_waits_until_its_secret_opens(desk: Desk, inbox: Inbox):
    """However often a process without the key comes to it, no attempt is counted; with the key it is the first."""
    desk.tell(callback_url=inbox.url)
    desk.fan_out()
    tries = len(SCHEDULE) + 2
    for number in range(tries):
        try_without_the_key(desk, number * (PUT_BACK_SECONDS + 1))
    assert desk.rows("SELECT state, attempt, reason FROM callbacks") == [("waiting", 0, "secret_not_opened")]
    assert inbox.messages == []
    assert desk.deliver(tries * (PUT_BACK_SECONDS + 1)) == 1
    assert desk.rows("SELECT number, reason FROM callback_attempts") == [(1, "delivered")]
    assert len(inbox.messages) == 1


def test_it_is_not_tried_at_every_turn(desk: Desk, inbox: Inbox):
    """It is due again after a while, and holds no place of what is under way."""
    desk.tell(callback_url=inbox.url)
    desk.fan_out()
    try_without_the_key(desk)
    assert desk.states() == ["waiting"]
    assert desk.release(PUT_BACK_SECONDS - 1) == []
    assert len(desk.release(PUT_BACK_SECONDS + 1)) == 1


def test_operators_are_told(desk: Desk, inbox: Inbox):
    """The log names the key that is missing, and doctor what waits for it."""
    desk.tell(callback_url=inbox.url)
    desk.fan_out()
    with capture_logs() as logs:
        try_without_the_key(desk)
    [said] = [each for each in logs if each["event"] == "callback_secret_not_opened"]
    assert said["log_level"] == "error"
    assert "is not among NIGHTCOURT_SECRET_KEYS" in said["why"]
    with desk.database.connect() as connection:
        found = doctor._callbacks(connection)
    assert not found.ok
    assert "1 wait for a secret that does not open" in found.says


def test_each_time_is_counted(desk: Desk, inbox: Inbox):
    """An alert goes by the count, since what is put back is never due for long."""
    desk.tell(callback_url=inbox.url)
    desk.fan_out()
    counted = series(try_without_the_key(desk).meters)
    assert counted["nightcourt_callbacks_put_back_total", ()] == 1
