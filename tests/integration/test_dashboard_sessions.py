"""Signing in to the dashboard: with a key, for as long as the key is good, and for what its scopes let it do."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Connection, text
from support.desk import Desk
from support.dockets import batch as insert_batch
from support.inbox import Inbox
from support.keys import a_key
from support.pages import words

from infra.settings import Settings
from producer import guessing, keys, sessions
from producer.api.app import create_app
from schemas import ids
from schemas.keys import Scope, parse_key


@pytest.fixture
def stranger(database_url: str) -> Iterator[TestClient]:
    """A browser that has not signed in."""
    app = create_app(Settings(database_url=database_url, secret_keys="0123456789abcdef" * 4))
    with TestClient(app, base_url="http://127.0.0.1", follow_redirects=False) as client:
        yield client


def sign_in(browser: TestClient, key: str, **fields: str) -> Any:
    """Send the form that asks for a key."""
    return browser.post("/dashboard/login", data={"key": key, **fields})


def token(browser: TestClient) -> str:
    """What the forms of this session's pages carry."""
    return re.search(r'name="form" value="([0-9a-f]+)"', browser.get("/dashboard/waiting").text)[1]


class TestSigningIn:
    def test_a_good_key_begins_a_session(self, stranger: TestClient, database_url: str):
        """The browser gets a cookie that no script and no other site can use, and goes where it was going."""
        form = stranger.get("/dashboard/batches?after=x").text
        to = re.search(r'name="to" value="([^"]+)"', form)[1]
        answer = sign_in(stranger, a_key(database_url), to=to)
        assert (answer.status_code, answer.headers["location"]) == (303, "/dashboard/batches?after=x")
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert "path=/dashboard" in cookie
        assert stranger.get("/dashboard/").status_code == 200

    @pytest.mark.parametrize("to", ["https://elsewhere.test/", "//elsewhere.test", "/dashboardelse", "/v1/files", ""])
    def test_nobody_is_sent_elsewhere(self, stranger: TestClient, database_url: str, to: str):
        """Whatever a form says, signing in leads to a page of the dashboard."""
        assert sign_in(stranger, a_key(database_url), to=to).headers["location"] == "/dashboard/"

    def test_a_wrong_key_is_told(self, stranger: TestClient, database_url: str):
        """A wrong key begins nothing, and which part of it is wrong is not said."""
        for wrong in ("", "nonsense", a_key(database_url)[:-1] + "_"):
            answer = sign_in(stranger, wrong)
            assert answer.status_code == 401
            assert "unknown, wrong, expired or revoked" in words(answer.text)
            assert "set-cookie" not in answer.headers

    def test_guessing_is_slowed_down_here_too(self, stranger: TestClient, monkeypatch: pytest.MonkeyPatch):
        """After many wrong keys an address has to wait, as it has at the API."""
        monkeypatch.setattr(guessing, "FIRST_SECONDS", guessing.LONGEST_SECONDS)  # it is not over meanwhile
        answers = [sign_in(stranger, f"nck_{'0' * 32}_{number:043}") for number in range(40)]
        assert answers[-1].status_code == 429
        assert int(answers[-1].headers["retry-after"]) > 0
        assert "Too many wrong keys" in words(answers[-1].text)

    def test_looking_takes_a_key_that_may_read(self, stranger: TestClient, database_url: str):
        """A key that may only submit begins no session."""
        answer = sign_in(stranger, a_key(database_url, scopes=[Scope.SUBMIT]))
        assert answer.status_code == 403
        assert "scope `read`" in words(answer.text)

    def test_a_link_from_elsewhere_is_asked_again_from_here(self, stranger: TestClient):
        """A browser keeps the cookie back where another site led here; one step from our own page sends it."""
        answer = stranger.get("/dashboard/batches", headers={"Sec-Fetch-Site": "cross-site"})
        assert '<meta http-equiv="refresh" content="0">' in answer.text

    def test_an_invitation_is_good_once(self, stranger: TestClient, database_url: str, connection: Connection):
        """The address that the command line prints signs one browser in, and nobody after that."""
        invitation = sessions.invite(connection, parse_key(a_key(database_url)).id)
        assert stranger.get("/dashboard/enter", params={"invitation": invitation}).status_code == 303
        assert stranger.get("/dashboard/").status_code == 200
        stranger.cookies.clear()
        again = stranger.get("/dashboard/enter", params={"invitation": invitation})
        assert again.status_code == 401
        assert "used before" in words(again.text)

    def test_an_invitation_is_no_session(self, stranger: TestClient, database_url: str, connection: Connection):
        """What stands in an address cannot be sent as a cookie, and a session's token invites nobody."""
        key = parse_key(a_key(database_url)).id
        stranger.cookies.set("nightcourt_session", sessions.invite(connection, key))
        assert stranger.get("/dashboard/").status_code == 401
        session = sessions.begin(connection, key)
        assert stranger.get("/dashboard/enter", params={"invitation": session}).status_code == 401


class TestEnding:
    @pytest.mark.parametrize("how", ["revoked", "expired", "deleted", "old", "signed out"])
    def test_a_session_ends(self, stranger: TestClient, database_url: str, connection: Connection, how: str):
        """A session ends at once with its key, whatever ends that, by itself after its time, and when asked to."""
        key = a_key(database_url)
        sign_in(stranger, key)
        assert stranger.get("/dashboard/").status_code == 200
        if how == "revoked":
            keys.revoke(connection, parse_key(key).id)
        elif how == "expired":
            connection.execute(text("UPDATE keys SET expires_at = now()"))
        elif how == "deleted":
            connection.execute(text("DELETE FROM keys"))
        elif how == "old":
            connection.execute(text("UPDATE sessions SET expires_at = now()"))
        else:
            cookie = dict(stranger.cookies)
            assert stranger.post("/dashboard/logout", data={"form": token(stranger)}).status_code == 303
            assert not stranger.cookies
            stranger.cookies.update(cookie)
        assert stranger.get("/dashboard/").status_code == 401

    @pytest.mark.parametrize("how", ["key", "invitation"])
    def test_signing_in_again_ends_the_session_before(
        self, stranger: TestClient, database_url: str, connection: Connection, how: str
    ):
        """The browser forgets its token, so nobody could sign out of it any more; what lets nobody in ends nothing."""
        key = a_key(database_url)
        sign_in(stranger, key)
        before = stranger.cookies["nightcourt_session"]
        assert sign_in(stranger, key[:-1] + "_").status_code == 401
        assert stranger.get("/dashboard/enter", params={"invitation": "x"}).status_code == 401
        assert stranger.get("/dashboard/").status_code == 200
        if how == "key":
            sign_in(stranger, key)
        else:
            stranger.get("/dashboard/enter", params={"invitation": sessions.invite(connection, parse_key(key).id)})
        assert stranger.get("/dashboard/").status_code == 200
        stranger.cookies.clear()
        stranger.cookies.set("nightcourt_session", before)
        assert stranger.get("/dashboard/").status_code == 401

    def test_what_is_kept_signs_nobody_in(self, stranger: TestClient, database_url: str, connection: Connection):
        """Whoever reads the table of sessions has read hashes."""
        sign_in(stranger, a_key(database_url))
        kept = connection.execute(text("SELECT id FROM sessions")).scalar_one()
        assert stranger.cookies["nightcourt_session"].encode() not in bytes(kept)
        stranger.cookies.clear()
        stranger.cookies.set("nightcourt_session", bytes(kept).hex())
        assert stranger.get("/dashboard/").status_code == 401

    def test_a_session_is_nothing_to_the_api(self, stranger: TestClient, database_url: str):
        """A token that was taken from a browser is no key."""
        sign_in(stranger, a_key(database_url))
        session = stranger.cookies["nightcourt_session"]
        assert stranger.get("/v1/batches", headers={"Cookie": f"nightcourt_session={session}"}).status_code == 401
        assert stranger.get("/v1/batches", headers={"Authorization": f"Bearer {session}"}).status_code == 401


class TestActing:
    def status(self, connection: Connection) -> tuple[str, bool]:
        """Where the only batch stands, and whether it is paused."""
        return tuple(connection.execute(text("SELECT status, paused FROM batches")).one())

    def test_a_batch_is_paused_resumed_and_cancelled(
        self, stranger: TestClient, database_url: str, connection: Connection
    ):
        """Each is a button on the batch's page, for a key that may submit."""
        sign_in(stranger, a_key(database_url, scopes=[Scope.READ, Scope.SUBMIT]))
        path = f"/dashboard/batches/{ids.batch_id(insert_batch(connection, 3))}"
        form = {"form": token(stranger)}
        for action, expected in (
            ("pause", ("in_progress", True)),
            ("resume", ("in_progress", False)),
            ("cancel", ("cancelling", False)),
        ):
            assert f'action="{path}/{action}"' in stranger.get(path).text
            answer = stranger.post(f"{path}/{action}", data=form)
            assert (answer.status_code, answer.headers["location"]) == (303, path)
            assert self.status(connection) == expected
        answer = stranger.post(f"{path}/pause", data=form)
        assert answer.status_code == 409
        assert "batch_ended" in answer.text

    @pytest.mark.parametrize(
        ("data", "headers"),
        [
            ({}, {}),
            ({"form": "0" * 64}, {}),
            ({"form": None}, {"Origin": "https://elsewhere.test"}),
            ({"form": None}, {"Sec-Fetch-Site": "cross-site"}),
            ({"form": None}, {"Sec-Fetch-Site": "same-site"}),
        ],
        ids=["no token", "a wrong one", "another origin", "another site", "a neighbour"],
    )
    def test_a_form_of_another_page_does_nothing(
        self, stranger: TestClient, database_url: str, connection: Connection, data: dict[str, Any], headers: Any
    ):
        """Only a page of this session can have sent a form, and only from here."""
        sign_in(stranger, a_key(database_url))
        path = f"/dashboard/batches/{ids.batch_id(insert_batch(connection, 1))}/cancel"
        sent = {name: value or token(stranger) for name, value in data.items()}
        answer = stranger.post(path, data=sent, headers=headers)
        assert answer.status_code == 403
        assert "form_refused" in answer.text
        assert self.status(connection) == ("in_progress", False)

    def test_a_key_does_what_its_scopes_let_it(self, stranger: TestClient, database_url: str, desk: Desk, inbox: Inbox):
        """Who may only read sees no buttons, and is refused what they would have done."""
        desk.add_endpoint(inbox.url)
        desk.tell()
        desk.deliver()
        callback = ids.callback_id(desk.one("SELECT id FROM callbacks"))
        sign_in(stranger, a_key(database_url, scopes=[Scope.READ, Scope.SUBMIT]))
        path = f"/dashboard/callbacks/{callback}"
        assert "Send again" not in stranger.get(path).text
        answer = stranger.post(f"{path}/replay", data={"form": token(stranger)})
        assert answer.status_code == 403
        assert "scope_missing" in answer.text
        assert desk.states() == ["delivered"]

    def test_the_batch_of_another_tenant_cannot_be_touched(
        self, stranger: TestClient, database_url: str, connection: Connection
    ):
        """Another tenant's batch is not there to be cancelled."""
        sign_in(stranger, a_key(database_url, tenant="other"))
        path = f"/dashboard/batches/{ids.batch_id(insert_batch(connection, 1))}/cancel"
        assert stranger.post(path, data={"form": token(stranger)}).status_code == 404
        assert self.status(connection) == ("in_progress", False)

    def test_what_is_dead_goes_out_again(self, stranger: TestClient, database_url: str, desk: Desk, inbox: Inbox):
        """One callback, or everything dead of a receiver, is sent again by a key that may administer."""
        endpoint = ids.endpoint_id(desk.add_endpoint(inbox.url))
        desk.tell(3)
        desk.fan_out()
        desk.do("UPDATE callbacks SET state = 'dead', ended_at = now()")
        sign_in(stranger, a_key(database_url))
        form = {"form": token(stranger)}
        callback = ids.callback_id(desk.one("SELECT min(id::text)::uuid FROM callbacks"))
        assert stranger.post(f"/dashboard/callbacks/{callback}/replay", data=form).status_code == 303
        assert sorted(desk.states()) == ["dead", "dead", "waiting"]
        page = stranger.get("/dashboard/callbacks").text
        assert f'name="endpoint" value="{endpoint}"' in page
        answer = stranger.post("/dashboard/callbacks/replay", data={**form, "endpoint": endpoint})
        assert "2 callbacks go out again" in words(stranger.get(answer.headers["location"]).text)
        assert desk.states() == ["waiting"] * 3
