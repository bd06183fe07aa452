"""Signing in to the dashboard: how often, where it leads, and behind what proxy."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Connection
from support.canaries import watch_answer
from support.keys import a_key, bearer
from support.pages import words

from infra.settings import Settings
from producer import sessions
from producer.api.app import create_app
from schemas.keys import KeyLimits, parse_key


@pytest.fixture
def browser(database_url: str) -> Iterator[TestClient]:
    """A browser that has not signed in, and follows nothing by itself."""
    app = create_app(Settings(database_url=database_url, secret_keys="0123456789abcdef" * 4))
    with TestClient(app, base_url="http://127.0.0.1", follow_redirects=False) as client:
        client.event_hooks = {"response": [watch_answer]}
        yield client


def sign_in(browser: TestClient, key: str, headers: dict[str, str] | None = None, **fields: str) -> Any:
    """Send the form that asks for a key."""
    return browser.post("/dashboard/login", data={"key": key, **fields}, headers=headers)


class TestHowOften:
    def test_pages_count_among_the_requests_of_their_key(self, browser: TestClient, database_url: str):
        """Signing in and each page are requests of the key, at whose limit both are refused, as the API's are."""
        key = a_key(database_url, limits=KeyLimits(requests_per_second=0.2))
        signed = sign_in(browser, key)
        assert (signed.status_code, signed.headers["ratelimit"]) == (303, '"requests";r=1;t=5')
        assert browser.get("/dashboard/").status_code == 200
        for refused in (browser.get("/dashboard/batches"), browser.get("/v1/batches", headers=bearer(key))):
            assert refused.status_code == 429
            assert 0 < int(refused.headers["retry-after"]) <= 5
            assert refused.headers["ratelimit"].startswith('"requests";r=0;')
        assert "rate_limited" in browser.get("/dashboard/events").text

    def test_signing_in_over_and_over_is_refused(self, browser: TestClient, database_url: str):
        """At its limit a key begins no session, and the form says when to come again."""
        key = a_key(database_url, limits=KeyLimits(requests_per_second=0.01))
        assert sign_in(browser, key).status_code == 303
        again = sign_in(browser, key)
        assert again.status_code == 429
        assert "set-cookie" not in again.headers
        assert int(again.headers["retry-after"]) > 0
        assert "more requests than it may" in words(again.text)
        assert sign_in(browser, a_key(database_url)).status_code == 303


def where(browser: TestClient, key: str, page: str) -> str:
    """Where the form of a page leads, sent as it stands there."""
    return sign_in(browser, key, to=re.search(r'name="to" value="([^"]*)"', page)[1]).headers["location"]


class TestWhere:
    def test_after_signing_out_one_signs_in_again(self, browser: TestClient, database_url: str):
        """The page that signing out leads to leads in, not to itself."""
        key = a_key(database_url)
        sign_in(browser, key)
        form = re.search(r'name="form" value="([0-9a-f]+)"', browser.get("/dashboard/waiting").text)[1]
        left = browser.post("/dashboard/logout", data={"form": form})
        assert where(browser, key, browser.get(left.headers["location"]).text) == "/dashboard/"

    def test_an_address_that_was_used_before_leads_in_by_a_key(
        self, browser: TestClient, database_url: str, connection: Connection
    ):
        """The form beside "this address was used before" does not lead to that address again."""
        key = a_key(database_url)
        invitation = {"invitation": sessions.invite(connection, parse_key(key).id)}
        browser.get("/dashboard/enter", params=invitation)
        browser.cookies.clear()
        again = browser.get("/dashboard/enter", params=invitation)
        assert "used before" in words(again.text)
        assert where(browser, key, again.text) == "/dashboard/"

    @pytest.mark.parametrize("door", ["/dashboard/login", "/dashboard/enter?invitation=x"])
    def test_a_form_never_leads_to_a_door(self, browser: TestClient, database_url: str, door: str):
        """Whatever a form says, whoever has signed in is not asked to again."""
        assert sign_in(browser, a_key(database_url), to=door).headers["location"] == "/dashboard/"


def test_no_browser_is_asked_to_keep_the_key(browser: TestClient):
    """The field that takes a key asks not to be filled in again."""
    assert 'autocomplete="off"' in re.search(r'<input id="key"[^>]*>', browser.get("/dashboard/").text)[0]


class TestBehindAProxy:
    @pytest.mark.parametrize(
        ("site", "origin", "taken"),
        [
            ("same-origin", "https://court.test", True),
            ("none", "https://court.test", True),
            ("same-site", "https://10.0.0.7:8300", False),
            ("cross-site", "https://10.0.0.7:8300", False),
            (None, "https://10.0.0.7:8300", True),
            (None, None, True),
            (None, "https://court.test", False),
            (None, "https://[", False),
        ],
    )
    def test_the_browser_says_who_sent_a_form(
        self, browser: TestClient, database_url: str, site: str | None, origin: str | None, *, taken: bool
    ):
        """Where a browser says which site sent a form, that decides, whatever became of `Host`; else `Host` does."""
        headers = {"Host": "10.0.0.7:8300", "Sec-Fetch-Site": site, "Origin": origin}
        sent = {name: value for name, value in headers.items() if value is not None}
        assert sign_in(browser, a_key(database_url), sent).status_code == (303 if taken else 403)

    def test_it_says_what_is_wrong_with_the_proxy(self, browser: TestClient, database_url: str):
        """Whoever is refused since `Host` was changed on the way is told of it."""
        refused = sign_in(browser, a_key(database_url), {"Host": "10.0.0.7:8300", "Origin": "http://court.test"})
        assert "has to pass Host on" in words(refused.text).replace("`", "")
