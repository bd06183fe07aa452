"""The dashboard in a real browser: live progress."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text
from support.browser import CHROMIUM, Browser, running_browser
from support.court import Court
from support.dockets import batch as insert_batch
from support.edge import served
from support.keys import a_key, bearer

from infra import docket
from infra.settings import Settings
from producer.api.app import create_app
from schemas import ids
from worker.judging import judge_shard

LINES = 40
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian's package chromium)")


@pytest.fixture
def browser(tmp_path: Path, database_url: str) -> Iterator[Browser]:
    """A browser of the test's own, which sends a key."""
    with running_browser(tmp_path / "browser") as browser:
        browser("Network.setExtraHTTPHeaders", headers=bearer(a_key(database_url)))
        yield browser


@pytest.fixture
def site(database_url: str) -> Iterator[str]:
    """The address of an API on the test's own database."""
    with served(create_app(Settings(database_url=database_url))) as url:
        yield url


def judge(court: Court, most: int) -> None:
    """Judge so many shards of batches, at most."""
    for shard in docket.release_bulk(court.connection, room=most, limit=most):
        judge_shard(court.bench, shard)


def test_a_batch_is_seen_to_get_on_and_to_end(site: str, browser: Browser, court: Court):
    """Without a reload the counts and the bar grow, the page says that it is live, and then that it is over."""
    court.bench.engine.log_odds = lambda _: 2.0
    name = ids.batch_id(insert_batch(court.connection, LINES))
    browser.open(f"{site}/dashboard/batches/{name}")
    decided = "Number(document.querySelector('main .bar').getAttribute('aria-valuenow'))"
    browser.until("document.getElementById('pulse').textContent === 'live'")
    assert browser.run(decided) == 0
    browser.run("document.querySelector('summary').focus()")
    judge(court, LINES // 4)
    browser.until(f"{decided} === {LINES // 4}")
    judge(court, LINES)
    court.connection.execute(text("UPDATE batches SET status = 'completed', ended_at = now(), open = false"))
    browser.until("document.querySelector('#live_stand .status').textContent === 'completed'")
    assert browser.run(decided) == LINES
    assert browser.run("document.querySelector('#news').textContent").startswith("completed")
    assert browser.run("document.getElementById('pulse').hidden")
    assert not browser.run("document.getElementById('stale').hidden")
    assert browser.run("document.activeElement.tagName") == "SUMMARY"
    assert browser.errors == []
