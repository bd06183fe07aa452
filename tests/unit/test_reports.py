"""A report's page: nothing of others' text becomes markup, every number leads to its rows, and a browser shows it."""

import json
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from support.browser import CHROMIUM, Browser, running_browser
from support.judged import JUDGE, chance

from producer.evals import gold, html, versus
from producer.evals.layout import Figure
from producer.evals.numbers import Number, select
from producer.evals.plots import interval, scale
from producer.evals.rows import Judged, Pair, Row
from producer.evals.style import style

EVIL = '</script><script>document.title = "taken"</script><!-- <img src="http://192.0.2.1/x.png" onerror="run()">'


def judged_pairs(count: int = 40) -> tuple[Judged, dict[str, Pair]]:
    """Pairs of which every fifth has orders that disagree; one holds text that would like to be markup."""
    rows, pairs = [], {}
    for number in range(count):
        d = 4 * (chance(number, "d") - 0.4)
        lean = 5.0 if number % 5 == 0 else 0.0
        ab, ba = "A" if lean + d > 0 else "B", "B" if lean - d > 0 else "A"
        texts = (EVIL, f"{EVIL} {number}", "plain") if number == 7 else (f"Q{number}", f"old {number}", f"new {number}")
        pair = Pair(str(number), *texts, label="B", subset=("x", EVIL)[number % 2], system_a="old", system_b="new")
        pairs[pair.id] = pair
        rows.append(
            Row(
                id=pair.id,
                group=pair.id,
                subset=pair.subset,
                system_a="old",
                system_b="new",
                label="B",
                winner="A" if d > 0 else "B",
                probability_a=1 / (1 + 2.718281828**-d),
                consistent=ab == ba,
                position_bias=lean,
                vote_ab=ab,
                vote_ba=ba,
                log_odds_ab=lean + d,
                log_odds_ba=lean - d,
                style_a=style(texts[1]),
                style_b=style(texts[2]),
            )
        )
    failed = replace(rows[-1], winner=None, probability_a=None, consistent=None, vote_ab=None, vote_ba=None)
    rows[-1] = replace(
        failed, status="errored", error="unparseable", position_bias=None, log_odds_ab=None, log_odds_ba=None
    )
    return Judged(rows, [JUDGE]), pairs


class Elements(HTMLParser):
    """The elements of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "input", "br", "img"}:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Leave an element."""
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        """Note the text within an element."""
        self.texts.setdefault(self._open[-1] if self._open else "", []).append(data)


class TestPage:
    def test_no_text_becomes_markup(self):
        """Scripts, comments and images in prompts, responses, names of subsets and of systems stay text."""
        judged, pairs = judged_pairs()
        page = html.render(versus.count(judged, EVIL, "old"), judged, pairs).decode()
        seen = Elements(page)
        names = [name for name, _ in seen.tags]
        assert names.count("script") == 2
        assert "img" not in names
        assert not any(name.startswith("on") for _, attributes in seen.tags for name in attributes)
        data = json.loads(seen.texts["script"][0])
        [row] = [each for each in data["rows"] if each["id"] == "7"]
        assert row["texts"][0] == [{"role": "", "content": EVIL}]

    def test_the_page_fetches_nothing(self):
        """No element of the page has an address but those within it."""
        judged, pairs = judged_pairs()
        seen = Elements(html.render(gold.count(judged), judged, pairs).decode())
        addresses = [attributes[name] for _, attributes in seen.tags for name in ("src", "href") if name in attributes]
        assert addresses
        assert all(address.startswith("#") for address in addresses)
        assert not any("url(" in text or "@import" in text for text in seen.texts["style"])

    def test_every_number_leads_to_its_rows(self):
        """Each link is a number of the data, whose columns select as many rows as it says."""
        judged, pairs = judged_pairs()
        page = html.render(gold.count(judged), judged, pairs).decode()
        seen = Elements(page)
        numbers = json.loads(seen.texts["script"][0])["numbers"]
        links = [attributes["href"] for name, attributes in seen.tags if attributes.get("class") == "number"]
        assert sorted(links) == sorted(f"#n{index}" for index in range(len(numbers)))
        for number in numbers:
            assert len(select(judged.rows, number["where"])) == number["n"]

    def test_a_large_set_is_cut_and_says_so(self):
        """The page holds the hardest pairs and a few of each number, and says how many it leaves out."""
        judged, pairs = judged_pairs(2000)
        result = versus.count(judged, "new", "old")
        page = html.render(result, judged, pairs, most=50).decode()
        data = json.loads(Elements(page).texts["script"][0])
        assert 50 <= len(data["rows"]) < 120
        assert f"{2000 - len(data['rows'])} of 2000 rows are left out" in page
        assert data["rows"][0]["consistent"] is False
        for number in data["numbers"]:
            for wanted in [number["where"], *([number["where"] | number["hit"]] if number["hit"] else [])]:
                there = select(judged.rows, wanted)
                shown = [each for each in data["rows"] if any(each["id"] == row.id for row in there)]
                assert len(shown) >= min(3, len(there))

    def test_long_texts_are_cut_and_pages_stay_small(self):
        """However long answers are, the page is of a size that a browser opens at once."""
        judged, pairs = judged_pairs(300)
        pairs = {name: replace(pair, response_a="long " * 20_000) for name, pair in pairs.items()}
        page = html.render(versus.count(judged, "new", "old"), judged, pairs)
        assert b"more characters]" in page
        assert len(page) < 3_000_000

    def test_many_numbers_make_no_large_page(self):
        """Where every row is a subset of its own, the rows of each number are taken while there is room for texts."""
        judged, pairs = judged_pairs(300)
        judged = Judged([replace(row, subset=row.id) for row in judged.rows], judged.judges)
        pairs = {name: replace(pair, response_a="long " * 20_000) for name, pair in pairs.items()}
        page = html.render(versus.count(judged, "new", "old"), judged, pairs)
        assert len(page) < 3_500_000

    def test_of_many_subsets_the_largest_are_shown(self):
        """Lines name their subsets, so each may be one: the page has the largest and says how many there are."""
        judged, pairs = judged_pairs(300)
        judged = Judged(
            [replace(row, subset=f"s{max(row_number, 3)}") for row_number, row in enumerate(judged.rows)], []
        )
        page = html.render(gold.count(judged), judged, pairs).decode()
        assert "The 200 largest of 297 subsets; the others are in the same report as JSON." in page
        table = page[page.index(">By subset<") :].partition("</table>")[0]
        shown = re.findall(r'<td data-key="(s\d+)">', table)
        assert len(shown) == 200
        assert shown[0] == "s3"

    def test_a_table_is_drawn_in_the_time_that_its_rows_take(self):
        """What a column is drawn over is found once: found for each cell, it would be read as often as it is long."""
        judged, pairs = judged_pairs()
        result = gold.count(judged)
        bins = result.calibration.bins
        many = result.calibration.model_copy(update={"bins": bins * (6000 // len(bins))})
        began = time.thread_time()
        html.render(result.model_copy(update={"calibration": many}), judged, pairs)
        assert time.thread_time() - began < 8

    def test_the_rows_of_a_subset_are_looked_for_among_them(self):
        """The numbers of two hundred subsets do not have all rows of a large set read for each."""
        judged, _ = judged_pairs(300)
        rows = [replace(row, subset=row.id) for row in judged.rows]
        result = gold.count(Judged(rows, judged.judges))
        began = time.thread_time()
        html.render(result, Judged(rows * 100, judged.judges), {})
        assert time.thread_time() - began < 5

    def test_a_lone_surrogate_is_no_accident(self):
        """Text that is no Unicode is written with a question mark, and the page is still one."""
        judged, pairs = judged_pairs(5)
        pairs["0"] = replace(pairs["0"], response_a="half \ud800")
        assert b"half ?" in html.render(gold.count(judged), judged, pairs)

    def test_whose_verdicts_is_said_aloud(self):
        """The caveat of a simulated judge stands at the top and beside the judge."""
        judged, pairs = judged_pairs()
        page = html.render(gold.count(judged), judged, pairs).decode()
        assert page.count(JUDGE.caveat) == 2
        assert "simulated: no model was asked" in page

    def test_an_eval_without_verdicts_has_a_page(self):
        """Nothing decided is no accident: the page says so, and that nobody knows the judge."""
        judged, pairs = judged_pairs(1)
        judged = Judged(judged.rows, [])
        page = html.render(gold.count(judged), judged, pairs).decode()
        assert "No pair has a verdict" in page
        assert "0 of 1 pairs have a verdict" in page


class TestPlots:
    def test_shares_are_drawn_from_nought_to_one(self):
        """Dot and bar stand where the value and the interval are."""
        figure = Figure("x", Number(value=0.5, low=0.25, high=0.75, n=4), even=0.5)
        drawn = interval(figure, scale([figure]))
        assert 'cx="90.0"' in drawn
        x, width = (float(re.search(rf'{name}="([\d.]+)"', drawn)[1]) for name in ('rect class="span" x', "width"))
        assert x == 47.5
        assert width > 0

    def test_points_are_drawn_as_wide_as_they_reach(self):
        """A column of points has one scale, which holds every interval of it."""
        low, high = (Figure("x", Number(value=v, low=v - 9, high=v + 9, n=1), "points") for v in (950, 1040))
        left, right = scale([low, high, "text"])
        assert left < 941
        assert right > 1049


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser that shows the report of a comparison."""
    folder = tmp_path_factory.mktemp("browser")
    judged, pairs = judged_pairs()
    (folder / "report.html").write_bytes(html.render(versus.count(judged, "new", "old"), judged, pairs))
    with running_browser(folder / "profile") as running:
        running.open(f"file://{folder}/report.html")
        running.until("document.querySelectorAll('#list button').length > 0")
        yield running


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian's package chromium)")
class TestInABrowser:
    def test_hostile_text_is_shown_and_does_nothing(self, browser: Browser):
        """The pair that would like to be a script is on the screen letter by letter, and nothing was fetched."""
        browser.run("document.querySelector('#words').value = 'taken'")
        browser.run("document.querySelector('#words').dispatchEvent(new Event('input'))")
        assert EVIL in browser.run("document.querySelector('#pair').textContent")
        assert "against old" in browser.run("document.title")
        browser.run("document.querySelector('#words').value = ''")
        browser.run("document.querySelector('#words').dispatchEvent(new Event('input'))")
        assert [address for address in browser.requests if not address.startswith("file:")] == []
        assert browser.errors == []

    def test_a_click_on_a_number_shows_its_rows(self, browser: Browser):
        """The link of a share leads to its rows, and these part into those that count and the others."""
        numbers = json.loads(browser.run("document.querySelector('#data').textContent"))["numbers"]
        index = next(index for index, each in enumerate(numbers) if each["label"] == "Won")
        number = numbers[index]
        browser.click(f"a.number[href='#n{index}']")
        browser.until(f"location.hash === '#n{index}'")
        shown = "document.querySelectorAll('#list button').length"
        browser.until(f"{shown} === {number['n']}")
        for part, expected in (("hit", number["hits"]), ("other", number["n"] - number["hits"])):
            browser.run(f"document.querySelector('#part').value = '{part}'")
            browser.run("document.querySelector('#part').dispatchEvent(new Event('change'))")
            assert browser.run(shown) == expected
            assert f"{expected} of its {expected} rows are shown" in browser.run(
                "document.querySelector('#count').textContent"
            )

    def test_tables_are_sorted_by_a_click(self, browser: Browser):
        """A click on a column sorts by it, largest first; another turns it round, and says so to a screen reader."""
        column = (
            "[...document.querySelectorAll('table.sortable tbody tr')].map((row) => Number(row.cells[2].dataset.key))"
        )
        button = "table.sortable th:nth-child(3) button"
        browser.click(button)
        falling = browser.run(column)
        assert falling == sorted(falling, reverse=True)
        assert browser.run("document.querySelector('table.sortable th:nth-child(3)').ariaSort") == "descending"
        browser.click(button)
        assert browser.run(column) == sorted(falling)
        assert len(set(falling)) > 1

    def test_pairs_are_walked_through_by_the_keyboard(self, browser: Browser):
        """Arrow keys go from pair to pair; both responses stand side by side with the ballots of both orders."""
        browser.run("location.hash = ''")
        browser.run("document.querySelector('#which').value = ''")
        browser.run("document.querySelector('#which').dispatchEvent(new Event('change'))")
        browser.run("document.querySelector('#list button').focus()")
        first = browser.run("document.querySelector('#pair h3').textContent")
        assert "orders disagree" in first
        browser.press("ArrowDown")
        assert browser.run("document.querySelector('#pair h3').textContent") != first
        assert browser.run("document.activeElement === document.querySelector('#list [aria-current]')")
        assert browser.run("document.querySelectorAll('#pair .sides .text').length") == 2
        assert browser.run("document.querySelectorAll('#pair tbody tr').length") == 2
        browser.press("End")
        assert "unparseable" in browser.run("document.querySelector('#pair').textContent")
