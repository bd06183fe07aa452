"""Pages of the dashboard that no worker is needed for: callbacks, and why something waits."""

import re
from contextlib import closing
from uuid import UUID

import pytest
from fastapi.testclient import TestClient
from sqlalchemy.ext.asyncio import AsyncEngine
from support.desk import Desk
from support.dockets import batch as insert_batch
from support.dockets import reads
from support.inbox import Inbox
from support.pages import words
from support.waiting import wait_until

from producer import callbacks
from producer.dashboard import receivers
from schemas import ids
from schemas.ids import SINGLE_LINE, ComparisonKey
from worker.callbacks import deliver


class TestCallbacks:
    def test_a_receiver_that_fails_stands_first_and_says_since_when(self, client: TestClient, desk: Desk, inbox: Inbox):
        """What needs somebody is at the top: who fails, how often, and when it is tried again."""
        desk.add_endpoint("http://127.0.0.1:9/fails")
        desk.add_endpoint(inbox.url)
        desk.tell()
        desk.deliver()
        page = client.get("/dashboard/callbacks").text
        said = words(page)
        assert "1 receiver fails" in said
        assert page.index("127.0.0.1:9/fails") < page.index(inbox.url)
        assert "1 failure, the first" in said

    def test_a_receiver_that_is_disabled_is_told_of_first(self, client: TestClient, desk: Desk, inbox: Inbox):
        """All do well only where none is disabled; beside one that fails, and what is dead, it is named too."""

        def headline() -> str:
            page = client.get("/dashboard/callbacks").text
            return words(re.search(r'class="headline">([^<]*)</p>', page)[1])

        disabled = desk.add_endpoint("http://127.0.0.1:9/disabled")
        desk.add_endpoint(inbox.url)
        assert headline() == "All receivers do well."
        desk.do("UPDATE callback_endpoints SET state = 'disabled' WHERE id = :id", id=disabled)
        assert headline() == "1 receiver is disabled, and sent nothing."
        desk.do("UPDATE callback_endpoints SET failures = 1 WHERE state = 'enabled'")
        desk.tell()
        desk.fan_out()
        desk.do("UPDATE callbacks SET state = 'dead', ended_at = now()")
        assert headline().startswith("1 receiver fails; 1 receiver is disabled, and sent nothing; ")

    def test_the_log_shows_what_is_asked_for(self, client: TestClient, desk: Desk, inbox: Inbox):
        """The log can be narrowed to a state and to a receiver."""
        fails = desk.add_endpoint("http://127.0.0.1:9/fails")
        desk.add_endpoint(inbox.url)
        desk.tell()
        desk.deliver()

        def rows(query: str) -> int:
            return client.get(f"/dashboard/callbacks{query}").text.count('<th scope="row"><a href="/dashboard/callb')

        assert rows("") == 2
        assert rows("?status=delivered") == 1
        assert rows("?status=dead") == 0
        assert rows(f"?endpoint={ids.endpoint_id(fails)}&status=waiting") == 1
        assert client.get("/dashboard/callbacks?status=lost").status_code == 422

    def test_one_callback_shows_every_attempt(self, client: TestClient, desk: Desk):
        """Each attempt stands with its time, its answer and how long it took."""
        desk.add_endpoint("http://127.0.0.1:9/fails")
        [filing] = desk.tell()
        desk.deliver()
        callback = ids.callback_id(desk.one("SELECT id FROM callbacks"))
        said = words(client.get(f"/dashboard/callbacks/{callback}").text)
        assert "comparison.succeeded" in said
        assert "1 attempt; the last: connect failed" in said
        assert filing.hex[-8:] in said

    def test_those_of_others_are_not_there(self, client: TestClient, desk: Desk, inbox: Inbox):
        """Another tenant's receivers and callbacks are on no page, and their ids are found by nobody."""
        desk.add_endpoint(inbox.url)
        desk.tell()
        desk.deliver()
        for table in ("callbacks", "callback_endpoints"):
            desk.do(f"UPDATE {table} SET tenant = 'other'")  # noqa: S608 - two names of ours
        page = client.get("/dashboard/callbacks")
        assert inbox.url not in page.text
        assert "Nobody is called back yet" in page.text
        callback = ids.callback_id(desk.one("SELECT id FROM callbacks"))
        assert client.get(f"/dashboard/callbacks/{callback}").status_code == 404

    def test_what_is_dead_of_a_receiver_is_sent_again_by_its_owner_alone(self, client: TestClient, desk: Desk):
        """A receiver that a request named will do; another tenant's, and one that is none, are not found."""
        desk.tell(callback_url="http://127.0.0.1:9/named")
        desk.fan_out()
        desk.do("UPDATE callbacks SET state = 'dead', ended_at = now()")
        form = re.search(r'name="form" value="([0-9a-f]+)"', client.get("/dashboard/waiting").text)[1]

        def replay(receiver: str) -> int:
            sent = {"form": form, "endpoint": receiver}
            return client.post("/dashboard/callbacks/replay", data=sent, follow_redirects=False).status_code

        receiver = ids.endpoint_id(desk.one("SELECT id FROM callback_endpoints"))
        for table in ("callbacks", "callback_endpoints"):
            desk.do(f"UPDATE {table} SET tenant = 'other'")  # noqa: S608 - two names of ours
        assert [replay(each) for each in (receiver, f"cep_{0:032x}", "nonsense")] == [404] * 3
        assert desk.states() == ["dead"]
        for table in ("callbacks", "callback_endpoints"):
            desk.do(f"UPDATE {table} SET tenant = 'default'")  # noqa: S608 - two names of ours
        desk.do("UPDATE callback_endpoints SET state = 'disabled'")
        assert replay(receiver) == 409
        desk.do("UPDATE callback_endpoints SET state = 'enabled'")
        assert replay(receiver) == 303
        assert desk.states() == ["waiting"]

    def test_all_that_fail_are_counted_and_registered_ones_stand_first(self, client: TestClient, desk: Desk):
        """However many do, the page says how many and shows so many; an old one that was registered is among them."""
        registered = desk.add_endpoint("http://127.0.0.1:9/registered")
        insert_receivers(desk, 150)
        desk.do("UPDATE callback_endpoints SET failures = 1")
        page = client.get("/dashboard/callbacks").text
        said = words(page)
        assert "151 receivers fail." in said
        assert "And 51 more." in said
        shown = re.findall(r'<th scope="row" class="address"><a [^>]*>([^<]*)</a>', page)
        assert (len(shown), shown[0]) == (100, "http://127.0.0.1:9/registered")
        assert f'<option value="{ids.endpoint_id(registered)}">' in page

    def test_a_filter_stays_whose_receiver_is_not_shown(self, client: TestClient, desk: Desk):
        """Whoever follows one of so many more keeps it when narrowing the log further."""
        hidden = ids.endpoint_id(desk.add_endpoint("http://127.0.0.1:9/does-well"))
        insert_receivers(desk, 100)
        desk.do("UPDATE callback_endpoints SET failures = 1 WHERE NOT registered")
        page = client.get(f"/dashboard/callbacks?endpoint={hidden}").text
        assert f'<option value="{hidden}" selected>' in page

    def test_a_receiver_that_much_waits_for_has_no_more_read_than_is_said(self, client: TestClient, desk: Desk):
        """The page is followed every few seconds: beyond a thousand callbacks it says so, and counts no further."""
        insert_callbacks(desk, desk.add_endpoint("http://127.0.0.1:9/waits"), 8000, "waiting")
        insert_callbacks(desk, desk.add_endpoint("http://127.0.0.1:9/dead"), 8000, "dead")
        page = client.get("/dashboard/callbacks").text
        assert "1,000 or more callbacks are dead" in words(page)
        assert re.findall(r'<td class="right[^"]*">([^<]*)</td>', page)[:4] == [
            "0",
            "1,000 or more",
            "1,000 or more",
            "0",
        ]

        async def look(database: AsyncEngine) -> None:
            async with database.connect() as own:
                await receivers.standing(own, tenant="default")

        with desk.database.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            before = reads(connection, "callbacks")
            desk.run(look)
            # A connection that ends tells what it has read.
            wait_until(lambda: reads(connection, "callbacks") > before, within=60, what="the reads are told")
            assert reads(connection, "callbacks") - before < 5000


def insert_receivers(desk: Desk, count: int) -> None:
    """Put in receivers that requests named, all newer than what is there."""
    desk.do(
        """INSERT INTO callback_endpoints (id, tenant, url, registered)
           SELECT ('ffffffff-0000-7000-8000-' || lpad(n::text, 12, '0'))::uuid, 'default', 'http://named-' || n, false
           FROM generate_series(1, :count) n""",
        count=count,
    )


def insert_callbacks(desk: Desk, endpoint: UUID, count: int, state: str) -> None:
    """Put in callbacks of a receiver."""
    desk.do(
        """WITH told AS (
               INSERT INTO callback_events (id, tenant, type, subject_id, line, at, fanned_out)
               SELECT gen_random_uuid(), 'default', 'comparison.succeeded', gen_random_uuid(), 0, now(), true
               FROM generate_series(1, :count) RETURNING id
           )
           INSERT INTO callbacks (id, tenant, event_id, endpoint_id, url, state, due_at, ended_at)
           SELECT gen_random_uuid(), 'default', id, :endpoint, '', :state, now(),
                  CASE WHEN :state = 'dead' THEN now() END FROM told""",
        count=count,
        endpoint=endpoint,
        state=state,
    )


class TestWaiting:
    def ask(self, client: TestClient, name: str) -> str:
        """Ask why something waits."""
        return words(client.get("/dashboard/waiting", params={"id": name}).text)

    def test_a_paused_batch_says_so(self, client: TestClient, desk: Desk):
        """A batch tells what it waits for and what to do, and so does each of its lines."""
        with closing(desk.database.connect()) as connection, connection.begin():
            batch = insert_batch(connection, 1, is_open=False)
        desk.do("UPDATE batches SET paused = true")
        assert "in progress It waits: it is paused; resume it." in self.ask(client, ids.batch_id(batch))
        line = ids.comparison_id(ComparisonKey(batch, 1))
        assert "queued It waits: its batch is paused; resume it." in self.ask(client, f" {line} ")

    def test_a_comparison_without_a_worker_says_so(self, client: TestClient, desk: Desk):
        """Where there is nobody to judge, that is the reason."""
        single = ids.comparison_id(ComparisonKey(desk.file(), SINGLE_LINE))
        assert "no worker was heard of lately; start one." in self.ask(client, single)

    def test_a_callback_that_failed_says_how(self, client: TestClient, desk: Desk):
        """A callback tells how its last attempt ended."""
        desk.add_endpoint("http://127.0.0.1:9/fails")
        desk.tell()
        desk.deliver()
        callback = ids.callback_id(desk.one("SELECT id FROM callbacks"))
        assert "the last of 1 ended with connect failed" in self.ask(client, callback)

    def test_a_callback_that_is_held_says_until_when(self, client: TestClient, desk: Desk):
        """A hold is named, with its end and what ends it now, whether its receiver is registered or not."""
        desk.add_endpoint("http://127.0.0.1:9/fails")
        desk.tell(callback_url="http://127.0.0.1:9/named")
        desk.fan_out()
        desk.do("UPDATE callback_endpoints SET failures = 5, open_until = '2999-01-01 00:00:00+00'")
        found = desk.rows("SELECT id, endpoint_id FROM callbacks")
        assert len(found) == 2
        for row in found:
            callback, now = ids.callback_id(row.id), f"nightcourt callbacks enable {ids.endpoint_id(row.endpoint_id)}"
            for said in (self.ask(client, callback), words(client.get(f"/dashboard/callbacks/{callback}").text)):
                assert "Nothing is tried at its receiver until 2999-01-01 00:00:00 UTC" in said
                assert now in said

    def test_a_callback_that_is_sent_again_is_not_new(self, client: TestClient, desk: Desk):
        """Before any attempt it waits for the first; sent again after some it does not."""
        desk.add_endpoint("http://127.0.0.1:9/fails")
        desk.tell()
        desk.fan_out()
        key = desk.one("SELECT id FROM callbacks")
        assert "It waits for its first attempt." in self.ask(client, ids.callback_id(key))
        desk.deliver()
        desk.run(callbacks.replay, tenant="default", callback=key, shift=0.0)
        assert "It waits to be sent again." in self.ask(client, ids.callback_id(key))

    def test_a_callback_that_cannot_be_signed_says_so(self, client: TestClient, desk: Desk):
        """Nothing was tried, so nothing is said of attempts."""
        desk.add_endpoint("http://127.0.0.1:9/fails")
        desk.tell()
        desk.fan_out()
        desk.do("UPDATE callback_secrets SET secret = ''")
        [callback] = desk.release()
        deliver(desk.courier(), callback)
        assert "It waits until its secret opens" in self.ask(client, ids.callback_id(callback))

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("nonsense", "That is no id."),
            ("cmp_00000000000070008000000000000000", "There is no comparison"),
            ("batch_00000000000070008000000000000000", "There is no batch of this id."),
        ],
    )
    def test_what_is_no_id_is_told(self, client: TestClient, name: str, said: str):
        """Whatever is typed in, the page answers, and the field keeps it to be mended."""
        answer = client.get("/dashboard/waiting", params={"id": name})
        assert answer.status_code == 404
        assert said in words(answer.text)
        assert f'value="{name}"' in answer.text

    def test_nothing_asked_nothing_answered(self, client: TestClient):
        """The page without an id is the question alone."""
        answer = client.get("/dashboard/waiting")
        assert answer.status_code == 200
        assert "It waits" not in answer.text
