"""Signing in to the dashboard: how often, where it leads, and behind what proxy."""

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from support.canaries import watch_answer
from support.keys import a_key, bearer
from support.pages import words

from infra.settings import Settings
from producer.api.app import create_app
from schemas.keys import KeyLimits


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
