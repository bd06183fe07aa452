"""Delivery: what is sent, how often, how long apart, and what a receiver's answer leads to."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from sqlalchemy import Connection, text
from standardwebhooks import Webhook
from support.desk import SEALS, Desk, body_of
from support.inbox import Inbox

from infra import callbacks
from producer import callback_endpoints
from producer import callbacks as log_of_callbacks
from schemas.callback import CallbackState
from schemas.problems import Problem
from worker.callbacks import deliver

DAY = 86400.0
REFUSED = "http://127.0.0.1:1/nobody"
"""Where nothing listens."""


def attempts(desk: Desk) -> list[tuple[int, int | None, str]]:
    """The attempt log: number, status, reason."""
    rows = desk.rows("SELECT number, status, reason FROM callback_attempts ORDER BY id")
    return [tuple(row) for row in rows]


class TestTheUsualWay:
    def test_told_fanned_out_released_sent_recorded(self, desk: Desk, inbox: Inbox):
        """A decided comparison reaches its URL once, signed, thin, and the log says so."""
        [filing] = desk.tell(callback_url=inbox.url)
        assert desk.deliver() == 1
        [message] = inbox.messages
        body = Webhook(desk.default).verify(message.body, message.headers)
        assert body["id"] == message.id
        assert body["type"] == "comparison.succeeded"
        assert body["data"] == {"id": f"cmp_{filing.hex}", "object": "comparison"}
        assert len(message.body) < 400
        assert message.headers["content-type"] == "application/json"
        assert desk.states() == ["delivered"]
        assert attempts(desk) == [(1, 204, "delivered")]
        assert desk.deliver() == 0

    def test_an_endpoint_is_signed_for_with_its_own_secret(self, desk: Desk, inbox: Inbox):
        """What one receiver is given verifies with no other receiver's secret."""
        endpoint = desk.add_endpoint(inbox.url)
        desk.tell()
        desk.deliver()
        [message] = inbox.messages
        Webhook(desk.secrets[endpoint]).verify(message.body, message.headers)
        with pytest.raises(Exception, match="No matching signature"):
            Webhook(desk.default).verify(message.body, message.headers)

    def test_it_is_signed_for_the_time_that_postgres_has(self, desk: Desk, inbox: Inbox):
        """Whatever zone it is set to; by the clock of the machine that sends, receivers might refuse what comes."""
        desk.tell(callback_url=inbox.url)
        desk.do("""
            CREATE FUNCTION clock_timestamp() RETURNS timestamptz LANGUAGE sql
            AS $$ SELECT pg_catalog.clock_timestamp() - interval '4 minutes' $$;
            DO $$ BEGIN
                EXECUTE format('ALTER DATABASE %I SET search_path = public, pg_catalog', current_database());
                EXECUTE format('ALTER DATABASE %I SET timezone = %L', current_database(), 'Asia/Kolkata');
            END $$;
        """)
        desk.database.dispose()  # connections that are made from here on find this clock
        desk.deliver()
        [message] = inbox.messages
        assert int(message.headers["webhook-timestamp"]) == pytest.approx(message.at - 240, abs=60)
        Webhook(desk.default).verify(message.body, message.headers)

    def test_both_secrets_sign_while_one_is_rotated(self, desk: Desk, inbox: Inbox):
        """During the time of grace the old secret and the new one both verify; after it the new one alone."""
        endpoint = desk.add_endpoint(inbox.url)
        rotated = desk.run(
            callback_endpoints.rotate, tenant="default", endpoint=endpoint, grace_seconds=3600, seals=SEALS
        )
        assert rotated.previous_valid_until is not None
        desk.tell()
        desk.deliver()
        desk.do("UPDATE callback_secrets SET expires_at = now() WHERE expires_at IS NOT NULL")
        desk.tell()
        desk.deliver()
        during, after = inbox.messages
        assert len(during.headers["webhook-signature"].split()) == 2
        for secret in (desk.secrets[endpoint], rotated.secret):
            Webhook(secret).verify(during.body, during.headers)
        assert len(after.headers["webhook-signature"].split()) == 1
        Webhook(rotated.secret).verify(after.body, after.headers)

    def test_a_rotation_without_grace_ends_the_old_secret(self, desk: Desk, inbox: Inbox):
        """A secret that leaked signs nothing from the moment on that its owner says so."""
        endpoint = desk.add_endpoint(inbox.url)
        rotated = desk.run(callback_endpoints.rotate, tenant="default", endpoint=endpoint, grace_seconds=0, seals=SEALS)
        desk.tell()
        desk.deliver()
        Webhook(rotated.secret).verify(inbox.messages[0].body, inbox.messages[0].headers)
        assert len(inbox.messages[0].headers["webhook-signature"].split()) == 1

    def test_the_first_try_alone_tells_how_long_it_was_in_coming(self, desk: Desk):
        """Later ones are late by the schedule, and one after what could not be signed by whoever lacks the key."""
        desk.tell(callback_url=REFUSED)
        desk.fan_out()
        desk.do("UPDATE callback_events SET at = at - interval '100 s'")
        [callback] = desk.release()
        first = desk.claim_callback(callback)
        assert first.waited == pytest.approx(100, abs=60)
        with desk.database.begin() as connection:
            callbacks.put_back(connection, first, reason="secret_not_opened")
        for shift in (callbacks.PUT_BACK_SECONDS + 1, 2 * callbacks.PUT_BACK_SECONDS):
            assert desk.release(shift) == [callback]
            again = desk.claim_callback(callback)
            assert again.waited is None
            desk.record(again)

    def test_a_test_event(self, desk: Desk, inbox: Inbox):
        """Whoever asks for a test gets an event that is about the endpoint itself."""
        endpoint = desk.add_endpoint(inbox.url)
        desk.run(callback_endpoints.test, tenant="default", endpoint=endpoint, shift=0.0)
        desk.deliver()
        assert body_of(inbox.messages[0])["type"] == "callback.test"
        assert body_of(inbox.messages[0])["data"] == {"id": f"cep_{endpoint.hex}", "object": "callback_endpoint"}


class TestHints:
    def test_doubled_and_late_hints_send_nothing(self, desk: Desk, inbox: Inbox):
        """A message that comes three times, and once more when all is over, is one request."""
        desk.tell(callback_url=inbox.url)
        desk.fan_out()
        [callback] = desk.release()
        for _ in range(3):
            deliver(desk.courier(), callback)
        assert len(inbox.messages) == 1

    def test_a_hint_from_before_the_last_attempt(self, desk: Desk, inbox: Inbox):
        """A hint that arrives while the callback waits for its next attempt does not bring it forward."""
        inbox.answer = lambda _: 500
        desk.tell(callback_url=inbox.url)
        desk.fan_out()
        [callback] = desk.release()
        deliver(desk.courier(), callback)
        deliver(desk.courier(), callback)
        assert len(inbox.messages) == 1
        assert desk.states() == ["waiting"]

    def test_a_hint_that_redis_did_not_take(self, desk: Desk):
        """A release that could not be hinted is taken back, and one whose hint was lost is named again."""
        desk.tell(callback_url=REFUSED)
        desk.fan_out()
        released = desk.release()
        with desk.database.begin() as connection:
            callbacks.withdraw(connection, released)
        assert desk.states() == ["waiting"]
        assert desk.release() == released
        with desk.database.begin() as connection:
            assert callbacks.hint_again(connection, older_than=60, limit=10) == []
            assert callbacks.hint_again(connection, older_than=-1, limit=10) == released

    def test_a_hint_to_an_endpoint_that_was_disabled_meanwhile(self, desk: Desk, inbox: Inbox):
        """What was let go before its receiver was given up is not sent after that, and dies."""
        endpoint = desk.add_endpoint(inbox.url)
        desk.tell()
        desk.fan_out()
        [callback] = desk.release()
        desk.run(callback_endpoints.switch, tenant="default", endpoint=endpoint, enabled=False)
        deliver(desk.courier(), callback)
        assert inbox.messages == []
        desk.sweep()
        assert desk.rows("SELECT state, attempt, reason FROM callbacks") == [("dead", 0, "endpoint_disabled")]

    def test_a_process_that_is_ending_claims_nothing(self, desk: Desk, inbox: Inbox):
        """What is left when a callback process ends is hinted again, to another."""
        desk.tell(callback_url=inbox.url)
        desk.fan_out()
        [callback] = desk.release()
        courier = desk.courier()
        courier.draining.set()
        deliver(courier, callback)
        assert inbox.messages == []
        assert desk.states() == ["released"]


class TestTwoDispatchers:
    @pytest.mark.parametrize("move", ["fan_out", "hint_again", "reclaim", "bury"])
    def test_what_one_is_at_the_other_passes_over(self, desk: Desk, move: str):
        """Nobody waits for a transaction that goes on for long, and nothing is done twice."""
        endpoint = desk.add_endpoint(REFUSED)
        desk.do("UPDATE callback_endpoints SET succeeded_at = now()")
        desk.tell(3)
        if move != "fan_out":
            desk.fan_out()
        if move in {"hint_again", "reclaim"}:
            released = desk.release()
        if move == "reclaim":
            for callback in released:
                desk.claim_callback(callback)
            desk.do("UPDATE callbacks SET lease_until = now() - interval '1 s'")
        if move == "bury":
            desk.run(callback_endpoints.switch, tenant="default", endpoint=endpoint, enabled=False)
        do: Callable[[Connection, int], int] = {
            "fan_out": lambda c, limit: callbacks.fan_out(c, limit=limit),
            "hint_again": lambda c, limit: len(callbacks.hint_again(c, older_than=-1, limit=limit)),
            "reclaim": lambda c, limit: callbacks.reclaim(c, limit=limit)[0],
            "bury": lambda c, limit: callbacks.bury(c, limit=limit),
        }[move]
        with desk.database.begin() as one, desk.database.begin() as other:
            other.execute(text("SET LOCAL lock_timeout = '1 s'"))
            assert do(one, 1) == 1
            assert do(other, 9) == 2


class TestLostWorkers:
    def test_a_lost_worker_costs_an_attempt_and_its_pause(self, desk: Desk):
        """A lease that ran out brings the callback back as a failure does, without a word against the receiver."""
        desk.tell(callback_url=REFUSED)
        desk.fan_out()
        desk.claim_callback(desk.release()[0])
        assert desk.sweep() == (0, 0)
        desk.do("UPDATE callbacks SET lease_until = now() - interval '1 s'")
        assert desk.sweep() == (1, 0)
        assert attempts(desk) == [(1, None, "worker_lost")]
        assert desk.one("SELECT failures FROM callback_endpoints") == 0
        assert desk.release() == []
        assert len(desk.release(1.1 * callbacks.SCHEDULE[0] + 0.1)) == 1

    def test_a_worker_that_wakes_too_late_changes_nothing(self, desk: Desk):
        """What is recorded with a token that has left the row is refused."""
        desk.tell(callback_url=REFUSED)
        desk.fan_out()
        [callback] = desk.release()
        frozen = desk.claim_callback(callback)
        desk.do("UPDATE callbacks SET lease_until = now() - interval '1 s'")
        desk.sweep()
        desk.release(1.1 * callbacks.SCHEDULE[0] + 0.1)
        second = desk.claim_callback(callback)
        with pytest.raises(callbacks.LeaseLostError):
            desk.record(frozen, 200)
        assert desk.record(second, 200).state == "delivered"
        with pytest.raises(callbacks.LeaseLostError):
            desk.record(second, 500)
        assert desk.states() == ["delivered"]

    def test_a_callback_that_kills_every_worker_ends(self, desk: Desk):
        """Attempts that nobody lived to report are counted, so there is a last one, days later, and it is told of."""
        desk.tell(callback_url=REFUSED)
        desk.fan_out()
        shift, told = 0.0, []
        for pause in (*callbacks.SCHEDULE, 0.0):
            desk.claim_callback(desk.release(shift)[0])
            desk.do("UPDATE callbacks SET lease_until = now() - interval '1 s'")
            with desk.database.begin() as connection:
                told.append(callbacks.reclaim(connection, limit=10, shift=shift))
            shift += 1.1 * pause + 0.1
        assert shift > 96 * 3600
        assert told == [(1, 0)] * len(callbacks.SCHEDULE) + [(1, 1)]
        assert desk.rows("SELECT state, reason FROM callbacks") == [("dead", "worker_lost")]


class TestSchedule:
    def test_the_whole_schedule(self, desk: Desk, inbox: Inbox, capsys: pytest.CaptureFixture[str]):
        """A receiver that answers 500 for days is tried 14 times over 96 hours or more, then the callback is dead."""
        inbox.answer = lambda _: 500
        desk.tell(callback_url=inbox.url)
        shift = 0.0
        hours: list[float] = []
        pauses: list[float] = []
        since_the_last = """
            SELECT extract(epoch FROM due_at - (
                SELECT max(at + make_interval(secs => seconds)) FROM callback_attempts
            ))::float FROM callbacks
        """
        while "dead" not in desk.states():
            assert desk.deliver(shift) == 1
            hours.append(shift / 3600)
            if "waiting" in desk.states():
                pauses.append(desk.one(since_the_last))
                with desk.at_one_moment():
                    wait = float(desk.one("SELECT extract(epoch FROM due_at - now()) FROM callbacks"))
                    assert desk.release(wait - 0.01) == []  # nothing goes out before its time
                shift = wait + 0.1
        with capsys.disabled():
            print("\nattempt  hours after the first  status")  # noqa: T201 - the table is the point
            for number, hour in enumerate(hours, start=1):
                print(f"{number:7}  {hour:21.4f}  500")  # noqa: T201
        assert len(hours) == 14
        assert 96 <= hours[-1] <= 96 * 1.2
        for planned, pause in zip(callbacks.SCHEDULE, pauses, strict=True):
            assert planned - 0.01 <= pause <= planned * 1.1 + 0.01
        assert attempts(desk) == [(number, 500, "bad_status") for number in range(1, 15)]
        # The same id and the same bytes at every attempt.
        assert len(inbox.counts()) == 1
        assert len({message.body for message in inbox.messages}) == 1
        assert len(inbox.messages) == 14

    def test_waits_differ(self, desk: Desk):
        """Callbacks that fail together do not come back together."""
        desk.tell(8, callback_url=REFUSED)
        desk.do("UPDATE callback_endpoints SET succeeded_at = now()")
        desk.fan_out()
        claims = [desk.claim_callback(callback) for callback in desk.release()]
        assert len(claims) == 8
        failed = callbacks.Attempt(delivered=False, reason="bad_status", status=500, seconds=0.1)
        with desk.database.begin() as connection:  # all at one time of Postgres', so that chance alone tells them apart
            for claim in claims:
                callbacks.record(connection, claim, failed)
        assert len(desk.rows("SELECT DISTINCT due_at FROM callbacks")) > 1

    @pytest.mark.parametrize(
        ("asked", "waited"), [(600.0, 600.0), (1.0, 5.0), (400 * DAY, DAY)], ids=["honoured", "no sooner", "bounded"]
    )
    def test_retry_after(self, desk: Desk, asked: float, waited: float):
        """A receiver that asks for time gets it, within a day, and nothing else is sent to it meanwhile."""
        desk.tell(2, callback_url=REFUSED)
        desk.fan_out()
        [callback] = desk.release()
        with desk.at_one_moment():
            desk.record(desk.claim_callback(callback), 429, reason="throttled", retry_after=asked)
            wait = "SELECT extract(epoch FROM due_at - now())::float FROM callbacks WHERE id = :id"
            assert waited <= desk.one(wait, id=callback) <= waited * 1.1
            assert desk.release(shift=min(asked, waited) - 0.01) == []
            assert len(desk.release(shift=waited * 1.1)) == 1

    def test_what_is_held_says_until_when(self, desk: Desk):
        """What is due says when its receiver is tried again, and that it is held; no longer once the time is up."""
        desk.tell(2, callback_url=REFUSED)
        desk.fan_out()
        [callback] = desk.release()
        desk.record(desk.claim_callback(callback), 429, reason="throttled", retry_after=600.0)
        replay = {
            "tenant": "default",
            "callback": desk.one("SELECT id FROM callbacks WHERE state = 'waiting' AND attempt = 0"),
        }
        said = desk.run(log_of_callbacks.replay, **replay, shift=0.0)
        assert said.next_attempt_at == said.held_until == desk.one("SELECT open_until FROM callback_endpoints")
        desk.do("UPDATE callback_endpoints SET open_until = now()")
        said = desk.run(log_of_callbacks.replay, **replay, shift=0.0)
        assert said.held_until is None
        assert said.next_attempt_at == desk.one("SELECT due_at FROM callbacks WHERE id = :callback", **replay)


class TestAnswers:
    @pytest.mark.parametrize(
        ("status", "reason"), [(301, "redirect"), (302, "redirect"), (404, "bad_status"), (503, "bad_status")]
    )
    def test_a_failure_is_tried_again(self, desk: Desk, inbox: Inbox, status: int, reason: str):
        """Whatever is not 2xx is a failure that is tried again; a redirect is not followed."""
        inbox.answer = lambda _: (status, {"Location": inbox.url + "/elsewhere"})
        desk.tell(callback_url=inbox.url)
        desk.deliver()
        assert desk.states() == ["waiting"]
        assert attempts(desk) == [(1, status, reason)]
        assert [message.path for message in inbox.messages] == ["/hook"]

    def test_nobody_listens(self, desk: Desk):
        """A receiver that is not there is a failure with a reason and without a status."""
        desk.tell(callback_url=REFUSED)
        desk.deliver()
        assert attempts(desk) == [(1, None, "connect_failed")]

    def test_gone_disables_a_registered_endpoint(self, desk: Desk, inbox: Inbox):
        """After 410 nothing more is sent, and what waited dies; replayed once the endpoint is enabled, it arrives."""
        endpoint = desk.add_endpoint(inbox.url)
        inbox.answer = lambda _: 410
        desk.tell(3)
        assert desk.deliver() == 1
        assert desk.rows("SELECT state, disabled_reason FROM callback_endpoints WHERE registered") == [
            ("disabled", "gone")
        ]
        assert desk.deliver() == 0
        desk.sweep()
        assert desk.states() == ["dead"] * 3
        since = desk.one("SELECT now() - interval '1 h'")
        replay = {"tenant": "default", "since": since, "endpoint": None, "shift": 0.0}
        assert desk.run(log_of_callbacks.replay_dead, **replay).replayed == 0
        inbox.answer = lambda _: 204
        desk.run(callback_endpoints.switch, tenant="default", endpoint=endpoint, enabled=True)
        assert desk.run(log_of_callbacks.replay_dead, **replay).replayed == 3
        while desk.deliver():
            pass
        assert desk.states() == ["delivered"] * 3
        assert sorted(inbox.counts().values()) == [1, 1, 2]

    def test_gone_ends_a_request_alone(self, desk: Desk, inbox: Inbox):
        """A request's own URL that is gone ends that callback, and no other to the same origin."""
        inbox.answer = lambda message: 410 if message.path == "/hook/old" else 204
        desk.tell(callback_url=f"{inbox.url}/old")
        desk.deliver()
        desk.tell(callback_url=f"{inbox.url}/new")
        desk.deliver()
        assert desk.states() == ["dead", "delivered"]


class TestReplay:
    def test_a_delivered_callback_goes_out_again_under_its_id(self, desk: Desk, inbox: Inbox):
        """A replay has the id and the bytes of the first time, a fresh signature, and the whole schedule before it."""
        desk.tell(callback_url=inbox.url)
        desk.deliver()
        key = desk.one("SELECT id FROM callbacks")
        said = desk.run(log_of_callbacks.replay, tenant="default", callback=key, shift=0.0)
        assert said.status is CallbackState.WAITING
        assert said.attempts == 0
        desk.deliver()
        first, second = inbox.messages
        assert (first.id, first.body) == (second.id, second.body)
        assert attempts(desk) == [(1, 204, "delivered"), (1, 204, "delivered")]

    def test_what_is_being_sent_is_left_alone(self, desk: Desk):
        """A replay in the middle of an attempt takes nothing out of the worker's hands."""
        desk.tell(callback_url=REFUSED)
        desk.fan_out()
        [key] = desk.release()
        claimed = desk.claim_callback(key)
        desk.run(log_of_callbacks.replay, tenant="default", callback=key, shift=0.0)
        assert desk.record(claimed, 200).state == "delivered"

    def test_nothing_is_replayed_to_a_disabled_endpoint(self, desk: Desk):
        """It would only die again, so that is said instead."""
        endpoint = desk.add_endpoint(REFUSED)
        desk.tell()
        desk.fan_out()
        desk.run(callback_endpoints.switch, tenant="default", endpoint=endpoint, enabled=False)
        key = desk.one("SELECT id FROM callbacks")
        with pytest.raises(Problem, match="disabled"):
            desk.run(log_of_callbacks.replay, tenant="default", callback=key, shift=0.0)

    def test_only_events_since_then(self, desk: Desk):
        """Everything dead of later events goes out again, older ones and delivered ones stay."""
        desk.tell(3, callback_url=REFUSED)
        desk.fan_out()
        desk.do("UPDATE callbacks SET state = 'dead', ended_at = now()")
        middle = desk.one("SELECT at FROM callback_events ORDER BY at OFFSET 1 LIMIT 1")
        replay = {"tenant": "default", "endpoint": None, "shift": 0.0}
        assert desk.run(log_of_callbacks.replay_dead, since=middle, **replay).replayed == 2
        assert desk.run(log_of_callbacks.replay_dead, since=middle - timedelta(days=1), **replay).replayed == 1
