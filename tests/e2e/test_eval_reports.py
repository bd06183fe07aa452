"""Reports end to end: judged by a real model on the embedded stack, written as a page, looked at in a browser."""

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.browser import CHROMIUM, running_browser
from support.program import Cli
from support.rows import read, write
from support.service import Service, running_service
from support.waiting import wait_until

SYSTEMS = ("curt", "wordy")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian's package chromium)")


def outputs(folder: Path, prompts: int) -> list[Path]:
    """AlpacaEval outputs of two systems."""
    files = []
    for name in SYSTEMS:
        rows = [
            {
                "instruction": f"What is {number} and {number}?",
                "output": f"{2 * number}." if name == "curt" else f"Adding them makes {2 * number}. Ask for more!",
                "generator": name,
                "dataset": "even" if number % 2 == 0 else "odd",
            }
            for number in range(prompts)
        ]
        files.append(write(folder / f"{name}.jsonl", rows))
    return files


@needs_browser
@pytest.mark.skipif(find_spec("xllamacpp") is None, reason="the wheel of the llama_cpp engine is not installed")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("prompts", [4, pytest.param(40, marks=pytest.mark.slow)])
def test_from_two_files_to_a_page_that_works(tmp_path: Path, prompts: int):
    """One command starts the stack, judges by the embedded model and writes a page; sorting and pairs work in it."""
    cli = Cli(tmp_path)
    cli.within = 600.0
    report = tmp_path / "report"
    ended = cli("eval", "versus", *outputs(tmp_path, prompts), "--data-dir", tmp_path / "data", "--output", report)
    assert ended.status == 0, ended.err
    assert f"Report: {report / 'report.html'}" in " ".join(ended.err.split())
    figures = json.loads((report / "report.json").read_text())
    with running_browser(tmp_path / "browser") as browser:
        browser.open(f"file://{report}/report.html")
        browser.until("document.querySelectorAll('#list button').length > 0")
        assert "stand-in" in browser.run("document.querySelector('.caveat').textContent")
        assert f"{figures['wins']['value']:.1%}" in browser.run("document.body.textContent")
        numbers = json.loads(browser.run("document.querySelector('#data').textContent"))["numbers"]
        won = next(index for index, number in enumerate(numbers) if number["label"] == "Won")
        browser.click(f"a.number[href='#n{won}']")
        browser.until(f"document.querySelectorAll('#list button').length === {figures['wins']['n']}")
        browser.click("#list li:nth-child(2) button")
        assert browser.run("document.querySelectorAll('#pair .sides .text').length") == 2
        assert browser.run("document.querySelectorAll('#pair tbody tr').length") == 2
        column = "[...document.querySelectorAll('table.sortable tbody tr')].map((row) => row.cells[0].textContent)"
        assert browser.run(column) == ["even", "odd"]
        browser.click("table.sortable th button")
        browser.click("table.sortable th button")
        assert browser.run(column) == ["odd", "even"]
        browser.screenshot(tmp_path / "report.png")
        assert browser.errors == []
        assert [address for address in browser.requests if not address.startswith("file:")] == []
    assert (tmp_path / "report.png").stat().st_size > 10_000


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that prefers by marks."""
    with running_service(tmp_path_factory.mktemp("reports") / "data", simulated_strengths=True) as running:
        yield running


class TestEveryEval:
    @pytest.mark.parametrize("command", ["versus", "tournament", "rewardbench", "gold", "calibrate", "curate", "audit"])
    def test_has_a_page_of_the_same_figures(self, service: Service, tmp_path: Path, command: str):
        """Each command writes report.html beside report.json; its links and its labels are those of the figures."""
        rows = [
            {
                "prompt": f"Q{number}",
                "chosen": f"It is {number}. {{{{strength={2 * (number % 3)}}}}}",
                "rejected": f"It is not {number}. Or so they say. {{{{strength=1}}}}",
                "subset": ("hep-go", "math-prm")[number % 2],
            }
            for number in range(40)
        ]
        pairs = write(tmp_path / "pairs.jsonl", rows)
        files = outputs(tmp_path, 10) if command in {"versus", "tournament"} else [pairs]
        options = ["--write", tmp_path / "out.jsonl"] if command in {"calibrate", "curate"} else []
        options += ["--controlled", 10] if command == "audit" else []
        cli = Cli(tmp_path)
        ended = cli(
            "eval", command, *files, *options, "--output", tmp_path / "report", server=service.url, key=service.key
        )
        assert ended.status == 0, ended.err
        page = (tmp_path / "report" / "report.html").read_text()
        report = json.loads((tmp_path / "report" / "report.json").read_text())
        assert report["kind"] == command
        assert report["caveat"] in page
        assert "simulated: no model was asked" in page
        data = json.loads(page.split('id="data">')[1].split("</script>")[0])
        columns = read(tmp_path / "report" / "rows.jsonl")
        assert len(data["rows"]) == len(columns) == report["pairs"]
        assert all(row["texts"] for row in data["rows"])
        assert data["numbers"]
        for number in data["numbers"]:
            found = [
                row
                for row in columns
                if all(
                    row[name] in wanted
                    if isinstance(wanted, list)
                    else (wanted in row[name] if isinstance(row[name], list) else row[name] == wanted)
                    for name, wanted in number["where"].items()
                )
            ]
            assert len(found) == number["n"], number


class TestOverHttp:
    def test_a_batch_says_what_its_verdicts_say(self, service: Service):
        """Accuracy, consistency and their intervals come by one request, and labels from the lines themselves."""
        rows = [
            {
                "id": str(n),
                "prompt": f"Q{n}",
                "chosen": "yes {{strength=4}}",
                "rejected": "no {{strength=0}}",
                "subset": "s",
            }
            for n in range(60)
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows) + json.dumps(
            {"custom_id": "p", "prompt": "tab\tand \\ é", "response_a": "x", "response_b": "y"}
        )
        sent = service.http.post("/v1/files", files={"file": ("b.jsonl", lines)}, data={"purpose": "batch"}).json()
        asked = {"input_file_id": sent["id"], "endpoint": "/v1/comparisons", "completion_window": "24h"}
        batch = service.http.post("/v1/batches", json=asked).json()["id"]
        wait_until(
            lambda: service.http.get(f"/v1/batches/{batch}").json()["status"] == "completed",
            within=60,
            what="the batch is completed",
        )
        report = service.http.get(f"/v1/batches/{batch}/report").json()
        assert (report["kind"], report["pairs"], report["labelled"]) == ("gold", 61, 60)
        assert report["accuracy"]["value"] > 0.9
        assert report["consistent"]["n"] == 61
        assert [part["subset"] for part in report["subsets"]] == ["s"]
        assert report["judges"][0]["simulated"]
        assert report["caveat"].startswith("Simulated")
        missing = service.http.get("/v1/batches/batch_00000000000000000000000000000000/report")
        assert missing.status_code == 404
