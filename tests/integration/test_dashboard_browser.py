"""The dashboard in a real browser: live progress, focus, replay, and no fault that axe-core calls serious."""

import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import httpx2
import pytest
from sqlalchemy import text
from support.browser import CHROMIUM, Browser, running_browser
from support.court import Court, ScriptedEngine
from support.databases import away
from support.desk import Desk
from support.dockets import batch as insert_batch
from support.edge import served
from support.filed import file_and_judge
from support.inbox import Inbox
from support.keys import a_key, bearer

from infra import docket, roster
from infra.settings import Settings
from producer.api.app import create_app
from schemas import ids
from worker.judging import judge_shard

LINES = 40
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian's package chromium)")

AXE = resources.files("axe_core_python").joinpath("axe.min.js").read_text(encoding="utf-8")
SIGHTS = {"light": (1200, 900), "dark": (390, 900)}
"""A wide window by day, and a narrow one at night."""
TAKEN_FOR_ANOTHER = """
[...document.querySelectorAll('[id^=live_] :is(tbody tr, form)')].filter((each) => !each.dataset.key
    || [...each.parentNode.children].some((other) => other !== each && other.dataset.key === each.dataset.key)
).map((each) => each.outerHTML)
"""
"""What the script that mends a page could take for another row or form."""


def faults(browser: Browser) -> list[str]:
    """What axe-core finds on the page that is serious or critical, by day and at night; and what we find beside it."""
    found = [f"no key of its own: {each}" for each in browser.run(TAKEN_FOR_ANOTHER)]
    browser.run(f"{AXE}; true")
    for scheme, (width, height) in SIGHTS.items():
        browser("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        browser("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        if (beyond := browser.run("(e => e.scrollWidth - e.clientWidth)(document.documentElement)")) > 0:
            found.append(f"{scheme} {width}: the whole page is {beyond} pixels too wide")
        violations = browser.run("axe.run({resultTypes: ['violations']}).then((result) => result.violations)")
        found += [
            f"{scheme} {width}: {each['id']}: {each['help']}: {each['nodes'][0]['html']}"
            for each in violations
            if each["impact"] in {"serious", "critical"}
        ]
    return found


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    """A browser of the test's own."""
    with running_browser(tmp_path / "browser") as browser:
        yield browser


@pytest.fixture
def key(database_url: str) -> str:
    """A key that may do everything."""
    return a_key(database_url)


@pytest.fixture
def site(database_url: str) -> Iterator[str]:
    """The address of an API on the test's own database."""
    with served(create_app(Settings(database_url=database_url, secret_keys="0123456789abcdef" * 4))) as url:
        yield url


def sign_in(browser: Browser, site: str, key: str, path: str) -> None:
    """Go to a page, and sign in on the way there as a person would."""
    browser.open(f"{site}/dashboard{path}")
    browser.click("#key")
    browser("Input.insertText", text=key)
    browser.click("form.ask button")
    browser.until("document.readyState === 'complete' && !document.querySelector('#key')")


def judge(court: Court, most: int) -> None:
    """Judge so many shards of batches, at most."""
    for shard in docket.release_bulk(court.connection, room=most, limit=most):
        judge_shard(court.bench, shard)


def test_a_batch_is_seen_to_get_on_and_to_end(site: str, key: str, browser: Browser, court: Court):
    """Without a reload the counts and the bar grow, the page says that it is live, and then that it is over."""
    court.bench.engine._engine.log_odds = lambda _: 2.0
    name = ids.batch_id(insert_batch(court.connection, LINES))
    sign_in(browser, site, key, f"/batches/{name}")
    decided = "Number(document.querySelector('main .bar').getAttribute('aria-valuenow'))"
    browser.until(LIVE)
    assert browser.run(decided) == 0
    browser.run("document.querySelector('.options summary').focus()")
    judge(court, LINES // 4)
    browser.until(f"{decided} === {LINES // 4}")
    judge(court, LINES)
    court.connection.execute(text("UPDATE batches SET status = 'completed', ended_at = now(), open = false"))
    browser.until("document.querySelector('#live_stand .status').textContent === 'completed'")
    assert browser.run(decided) == LINES
    assert browser.run("document.querySelector('#news').textContent").startswith("completed")
    browser.until("document.getElementById('pulse').hidden")  # which is told after the last of it
    assert not browser.run("document.getElementById('stale').hidden")
    assert browser.run("document.activeElement.tagName") == "SUMMARY"
    assert [error for error in browser.errors if "401" not in error] == []


LIVE = "document.getElementById('pulse').textContent === 'live'"
HIDDEN = "Object.defineProperty(document, 'hidden', {get: () => window.unseen !== false})"
"""As a tab that was opened in the background, until the page is looked at."""
HASTE = "const late = setTimeout; window.setTimeout = (what, when) => late(what, when / 20)"


def look_at(browser: Browser, *, seen: bool) -> None:
    """Come to a page's tab, or leave it for another."""
    browser.run(f"window.unseen = {json.dumps(not seen)}; document.dispatchEvent(new Event('visibilitychange'))")


def test_a_page_has_one_stream_while_it_is_looked_at_and_none_before(site: str, key: str, browser: Browser):
    """A tab opened in the background asks for nothing; each look at it asks once."""
    sign_in(browser, site, key, "/")
    browser("Page.addScriptToEvaluateOnNewDocument", source=HIDDEN)
    browser.requests.clear()
    browser.open(f"{site}/dashboard/")
    for _ in range(2):
        look_at(browser, seen=True)
        browser.until(LIVE)
        look_at(browser, seen=False)
        browser.run("document.getElementById('pulse').textContent = ''")
    assert [path.removeprefix(site) for path in browser.requests if path.endswith("/events")] == [
        "/dashboard/events"
    ] * 2


def test_a_page_is_live_again_after_its_stream_was_refused(site: str, key: str, browser: Browser, database_url: str):
    """A browser asks no more where the answer was a 503, so the page does, and is live when Postgres is back."""
    sign_in(browser, site, key, "/")
    browser("Page.addScriptToEvaluateOnNewDocument", source=f"{HIDDEN}; {HASTE}")
    browser.open(f"{site}/dashboard/")
    with away(database_url):
        look_at(browser, seen=True)
        browser.until("document.getElementById('pulse').textContent === 'not live'")
    browser.until(LIVE)


def test_a_dead_callback_is_sent_again(site: str, key: str, browser: Browser, desk: Desk, inbox: Inbox):
    """A receiver that was mended gets what it missed, by a button on the callback's page."""
    endpoint = desk.add_endpoint(inbox.url)
    desk.tell()
    desk.fan_out()
    desk.do("UPDATE callbacks SET state = 'dead', ended_at = now()")
    callback = ids.callback_id(desk.one("SELECT id FROM callbacks"))
    sign_in(browser, site, key, f"/callbacks/{callback}")
    assert browser.run("document.querySelector('.headline .status').textContent") == "dead"
    browser.click(".actions button")
    browser.until("document.querySelector('.headline .status').textContent === 'waiting'")
    assert desk.deliver() == 1
    assert len(inbox.messages) == 1
    browser.open(f"{site}/dashboard/callbacks?endpoint={ids.endpoint_id(endpoint)}")
    assert (
        browser.run("document.querySelector('#log ~ .wide tbody .status, tbody .delivered').textContent") == "delivered"
    )


RECEIVERS = "[...document.querySelectorAll('#live_receivers tbody tr')]"
FOCUSED = "document.activeElement"


@pytest.fixture
def two(desk: Desk) -> list[str]:
    """Two receivers with a dead callback each, in the order in which they are shown: the first of them fails."""
    addresses = ["http://127.0.0.1:9/alpha", "http://127.0.0.1:9/beta"]
    for address in addresses:
        desk.add_endpoint(address)
    desk.tell()
    desk.fan_out()
    desk.do("UPDATE callbacks SET state = 'dead', ended_at = now()")
    fails_alone(desk, addresses[0])
    return addresses


def fails_alone(desk: Desk, address: str) -> None:
    """Have one receiver fail, which is shown first then, and no other."""
    desk.do("UPDATE callback_endpoints SET failures = (url = :url)::int", url=address)


@pytest.mark.parametrize("at", [0, 1])
def test_a_focused_button_stays_that_of_its_receiver(
    site: str, key: str, browser: Browser, desk: Desk, two: list[str], at: int
):
    """Whoever is about to send again what is dead for one receiver does so, wherever its row has gone meanwhile."""
    sign_in(browser, site, key, "/callbacks")
    browser.until(LIVE)
    browser.run(f"{RECEIVERS}[{at}].querySelector('button').focus()")
    fails_alone(desk, two[1])
    browser.until(f"{RECEIVERS}[0].textContent.includes({json.dumps(two[1])})")
    assert browser.run(f"{RECEIVERS}.map((row) => row.querySelector('a').textContent)") == two[::-1]
    assert two[at] in browser.run(f"{FOCUSED}.ariaLabel")
    browser.press("Enter")
    browser.until("location.search === '?replayed=1'")
    states = desk.rows("SELECT e.url, c.state FROM callbacks c JOIN callback_endpoints e ON e.id = c.endpoint_id")
    assert {row.url: row.state for row in states} == {two[at]: "waiting", two[1 - at]: "dead"}


def test_words_that_were_chosen_stay_so_when_their_row_moves(
    site: str, key: str, browser: Browser, desk: Desk, two: list[str]
):
    """An address that somebody is about to copy is still selected, and still that address."""
    sign_in(browser, site, key, "/callbacks")
    browser.until(LIVE)
    browser.run(f"getSelection().selectAllChildren({RECEIVERS}[1].querySelector('a'))")
    fails_alone(desk, two[1])
    browser.until(f"{RECEIVERS}[0].textContent.includes({json.dumps(two[1])})")
    assert browser.run("getSelection().toString()") == two[1]


def test_the_focus_of_a_button_that_is_gone_is_on_no_other(
    site: str, key: str, browser: Browser, desk: Desk, two: list[str]
):
    """When nothing is dead any more for a receiver, its button goes, and its focus goes to the heading above."""
    sign_in(browser, site, key, "/callbacks")
    browser.until(LIVE)
    browser.run(f"{RECEIVERS}[0].querySelector('button').focus()")
    desk.do(
        "UPDATE callbacks SET state = 'waiting', ended_at = NULL "
        "WHERE endpoint_id = (SELECT id FROM callback_endpoints WHERE url = :url)",
        url=two[0],
    )
    browser.until("document.querySelectorAll('#live_receivers button').length === 1")
    assert browser.run(f"{FOCUSED}.id") == "receivers"


def test_a_button_never_turns_into_its_opposite(site: str, key: str, browser: Browser, court: Court):
    """Whoever is about to pause a batch that another has paused just now does not resume it."""
    name = ids.batch_id(insert_batch(court.connection, LINES))
    sign_in(browser, site, key, f"/batches/{name}")
    browser.until(LIVE)
    browser.run("window.before = document.querySelector('#live_actions button'); before.focus()")
    court.connection.execute(text("UPDATE batches SET paused = true"))
    browser.until("document.querySelector('#live_actions button').textContent === 'Resume'")
    assert browser.run("[before.textContent, before.isConnected]") == ["Pause", False]
    assert browser.run(f"{FOCUSED}.tagName") == "H1"
    browser.press("Enter")
    browser.press("Tab")
    assert browser.run(f"{FOCUSED}.textContent") == "Resume"
    assert court.connection.execute(text("SELECT paused FROM batches")).scalar_one()


LEAP = "const real = Date.now; let ahead = 0; Date.now = () => real() + (ahead += 60000)"
"""Each look at the clock finds it a minute further, so that whatever is said now and then is said each time."""
HEAR = """
window.heard = [];
new MutationObserver(([{ target }]) => heard.push(target.textContent)).observe(news, { childList: true });
"""
"""Note what is said; `news` is the element of that id."""


def test_what_is_said_is_how_it_stands_and_said_once(site: str, key: str, browser: Browser, desk: Desk, two: list[str]):
    """Those who hear the page hear its live headline when that is another, and not what was done before it came."""
    sign_in(browser, site, key, "/callbacks")
    browser("Page.addScriptToEvaluateOnNewDocument", source=LEAP)
    browser.open(f"{site}/dashboard/callbacks?replayed=5")
    browser.run(HEAR)
    first = f"{RECEIVERS}[0].textContent"
    browser.until(LIVE)
    fails_alone(desk, two[1])
    browser.until(f"{first}.includes({json.dumps(two[1])})")
    assert browser.run("heard") == []
    desk.do("UPDATE callback_endpoints SET failures = 1")
    said = "2 receivers fail; 2 callbacks are dead."
    browser.until(f"document.querySelector('#live_headline').textContent.trim() === {json.dumps(said)}")
    desk.do("UPDATE callback_endpoints SET failures = 3")
    browser.until(f"{first}.includes('3 failures')")
    assert browser.run("heard") == [said]


def test_no_page_has_a_serious_fault(
    site: str,
    key: str,
    browser: Browser,
    court: Court,
    engine: ScriptedEngine,
    desk: Desk,
    inbox: Inbox,
    tmp_path: Path,
):
    """On every page axe-core finds nothing serious, no script or policy complains, and rows and forms have keys."""
    with httpx2.Client(base_url=site, timeout=60, headers=bearer(key)) as client:
        filed = file_and_judge(client, court, engine)
    card = {"model": "hash", "simulated": True, "caveat": "Simulated: no model was asked."}
    roster.report(court.connection, worker="w", slots=8, bulk_slots=4, engine=card)
    under_way = ids.batch_id(insert_batch(court.connection, LINES))
    desk.add_endpoint("http://127.0.0.1:9/fails")
    desk.add_endpoint(inbox.url)
    desk.tell()
    desk.deliver()
    callback = ids.callback_id(desk.one("SELECT id FROM callbacks ORDER BY attempt DESC, state DESC LIMIT 1"))
    desk.do("UPDATE callbacks SET state = 'dead', ended_at = now() WHERE state = 'waiting'")
    desk.do("DELETE FROM outcomes WHERE judge_id = 'jdg_test'")
    paths = {
        "now": "/",
        "batches": "/batches",
        "batch": f"/batches/{filed.batch}",
        "batch under way": f"/batches/{under_way}",
        "comparison": f"/comparisons/{filed.results[0]['id']}",
        "errored": f"/comparisons/{filed.results[6]['id']}",
        "report": f"/batches/{filed.batch}/report",
        "callbacks": "/callbacks",
        "callback": f"/callbacks/{callback}",
        "waiting": f"/waiting?id={filed.batch}",
    }
    browser.open(f"{site}/dashboard/")
    found = {"login": faults(browser)}
    browser.errors.clear()  # it says that the page was a 401
    sign_in(browser, site, key, "/")
    browser.errors.clear()
    for name, path in paths.items():
        browser.open(f"{site}/dashboard{path}")
        found[name] = faults(browser)
        for scheme, size in SIGHTS.items():
            browser.screenshot(tmp_path / f"{name}-{scheme}.png", width=size[0], height=size[1], dark=scheme == "dark")
    assert {name: each for name, each in found.items() if each} == {}
    assert browser.errors == []
    assert [address for address in browser.requests if not address.startswith(site)] == []
