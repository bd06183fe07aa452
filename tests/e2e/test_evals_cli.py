"""`nightcourt eval`, from files to reports, over a service whose simulated engine prefers by marks in the answers."""

import csv
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.program import ROOT, Cli, program_of
from support.rows import read, write
from support.service import Service, running_service

from producer.cli import evals
from producer.cli.destinations import OF_SYSTEMS, REPORT

COMMANDS = [command.name or command.callback.__name__ for command in evals.app.registered_commands]
STRENGTHS = {"gold": 4.0, "silver": 2.0, "bronze": 0.0}
PROMPTS = 60
BROKEN = "at this the engine fails"


def outputs(folder: Path, prompts: int = PROMPTS) -> dict[str, Path]:
    """AlpacaEval outputs of three systems whose answers say how strong they are."""
    return {
        name: write(
            folder / f"{name}.jsonl",
            [
                {
                    "instruction": f"Question {number}",
                    "output": f"{name} says {number} {{{{strength={strength}}}}}",
                    "generator": name,
                    "dataset": "even" if number % 2 else "odd",
                }
                for number in range(prompts)
            ],
        )
        for name, strength in STRENGTHS.items()
    }


def labelled(folder: Path, count: int = 120) -> Path:
    """Gold pairs: the label is the stronger answer, three times in four."""
    rows = []
    for number in range(count):
        better, worse = f"good {{{{strength=3}}}} {number}", f"bad {{{{strength=0}}}} {number}"
        if number % 4 == 0:
            better, worse = worse, better
        subset = ("hep-go", "math-prm")[number % 2]
        rows.append({"id": number, "prompt": f"Q{number}", "chosen": better, "rejected": worse, "subset": subset})
    return write(folder / "gold.jsonl", rows)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that prefers by marks."""
    with running_service(
        tmp_path_factory.mktemp("evals") / "data", simulated_strengths=True, simulated_fail=BROKEN
    ) as running:
        yield running


@pytest.fixture(scope="module")
def cli(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """The program, told by its environment which service to use."""
    return program_of(service.folder, tmp_path_factory.mktemp("home"))


def batches(service: Service) -> int:
    """How many batches there are."""
    return len(service.http.get("/v1/batches", params={"limit": 100}).json()["data"])


class TestHelp:
    def test_nothing_else_loads_the_statistics(self):
        """The command line and the client start without them."""
        libraries = "{'numpy', 'scipy', 'pandas', 'evalica'}"
        load = "import producer.client, sys; from producer.cli.app import make_app; make_app()"
        check = f"{load}; sys.exit(bool({libraries} & set(sys.modules)))"
        assert subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=False).returncode == 0

    def test_without_the_extra_it_says_what_to_install(self, tmp_path: Path):
        """Where the statistics are missing, the command that brings them is named, without a trace."""
        (hidden := tmp_path / "scipy").mkdir()
        (hidden / "__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'scipy'\", name='scipy')\n")
        program = Cli(tmp_path)
        program.environment["PYTHONPATH"] = str(tmp_path)
        ended = program("eval", "gold", labelled(tmp_path))
        assert ended.status == 1
        assert 'pip install "nightcourt[evals]"' in ended.err


class TestVersus:
    def test_two_systems(self, cli: Cli, tmp_path: Path):
        """The stronger wins, the report names its rows, and every output says that nobody was asked."""
        files = outputs(tmp_path)
        ended = cli("eval", "versus", files["gold"], files["silver"], "--output", tmp_path / "report")
        assert ended.status == 0, ended.err
        assert "The difference is real: this judge prefers gold to silver" in ended.out
        assert "Mind: Simulated" in ended.out
        assert {each.name for each in (tmp_path / "report").iterdir()} == {*REPORT, *OF_SYSTEMS}
        report = json.loads((tmp_path / "report" / "report.json").read_text())
        rows = read(tmp_path / "report" / "rows.jsonl")
        wins = report["wins"]
        found = [
            row for row in rows if all(row[name] == value for name, value in (wins["where"] | wins["hit"]).items())
        ]
        assert len(found) == wins["hits"] > PROMPTS / 2
        assert [part["subset"] for part in report["subsets"]] == ["even", "odd"]
        annotations = json.loads((tmp_path / "report" / "annotations.json").read_text())
        assert len(annotations) == PROMPTS
        mean = sum(each["preference"] for each in annotations) / PROMPTS - 1
        assert mean == pytest.approx(report["win_rate"]["value"])
        assert all(each["caveat"] for each in annotations)
        table = list(csv.DictReader((tmp_path / "report" / "comparisons.csv").read_text().splitlines()))
        assert {(row["left"], row["right"]) for row in table} == {("silver", "gold")}

    def test_verdicts_given_before(self, cli: Cli, service: Service, tmp_path: Path):
        """The results of `batch run --baseline` give the same report, without a service."""
        files = outputs(tmp_path)
        judged = cli("batch", "run", files["gold"], "--baseline", files["silver"], "--output", tmp_path / "r.jsonl")
        assert judged.status == 0, judged.err
        asked = ("eval", "versus", files["gold"], files["silver"], "--json")
        [again] = cli(*asked, "--verdicts", tmp_path / "r.jsonl", server="http://127.0.0.1:9").objects
        [whole] = cli(*asked).objects
        assert again == whole
        lines = (tmp_path / "r.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / "r.jsonl").write_text("".join(lines[:-2]))
        ended = cli(*asked, "--verdicts", tmp_path / "r.jsonl")
        assert ended.status == 1
        assert "2 have no line here, the first is 58" in ended.err


class TestTournament:
    def test_the_known_order_comes_back(self, cli: Cli, service: Service, tmp_path: Path):
        """Three systems, best last on the command line, best first on the board; again, nothing is judged anew."""
        files = outputs(tmp_path)
        asked = ("eval", "tournament", *reversed(files.values()))
        ended = cli(*asked, "--output", tmp_path / "report")
        assert ended.status == 0, ended.err
        lines = ended.out.splitlines()
        order = [line.split()[0] for line in lines[lines.index("Leaderboard") + 2 :][:3]]
        assert order == ["gold", "silver", "bronze"]
        assert re.search(r"^gold +silver .* yes", ended.out, re.MULTILINE)
        assert "180 of 180 possible matches, schedule full" in ended.out
        assert "Mind: Simulated" in ended.out
        before = batches(service)
        [again] = cli(*asked, "--json").objects
        assert batches(service) == before
        assert again == json.loads((tmp_path / "report" / "report.json").read_text())

    def test_an_adaptive_one_goes_on_where_it_was(self, cli: Cli, service: Service, tmp_path: Path):
        """A round is a batch; with a larger budget the first rounds are those that were judged already."""
        files = outputs(tmp_path, prompts=50)
        asked = ("eval", "tournament", *files.values(), "--schedule", "adaptive", "--round-size", "20", "--json")
        before = batches(service)
        [short] = cli(*asked, "--budget", "40").objects
        assert batches(service) == before + 2
        ended = cli(*asked, "--budget", "60")
        [longer] = ended.objects
        assert batches(service) == before + 3
        assert ended.err.count("Back at batch_") == 2
        assert longer["rounds"][:2] == short["rounds"]
        assert (short["decided"], longer["decided"]) == (40, 60)

    def test_a_round_without_a_verdict_ends_nothing(self, cli: Cli, tmp_path: Path):
        """A match on a prompt that is too long for the judge is a round of its own here: the others are rated."""
        files = outputs(tmp_path, prompts=3)
        for file in files.values():
            rows = read(file)
            write(file, [{**row, "instruction": row["instruction"] * (1 + 5000 * (row is rows[1]))} for row in rows])
        asked = ("--schedule", "adaptive", "--round-size", "1", "--budget", "3", "--json")
        ended = cli("eval", "tournament", files["gold"], files["bronze"], *asked)
        [report] = ended.objects
        assert (report["decided"], report["without_verdict"]) == (2, {"context_length_exceeded": 1})
        assert "has no verdict. context_length_exceeded: 1 lines ended so" in ended.err
        assert "`nightcourt batch retry batch_" in ended.err

    @pytest.mark.parametrize(("broken_from", "asked_for"), [(0, 1), (2, 4)])
    def test_it_ends_where_the_engine_is_broken(
        self, cli: Cli, service: Service, tmp_path: Path, broken_from: int, asked_for: int
    ):
        """A round may fail by itself once there are verdicts; the next one that fails too ends it, with the reason."""
        files = outputs(tmp_path, prompts=6)
        sound = set(np.random.default_rng(0).permutation(6)[:broken_from])  # as a tournament draws them
        for file in files.values():
            rows = read(file)
            asks = [f"{broken_from}: {n}{'' if n in sound else f' {BROKEN}'}" for n in range(6)]
            write(file, [{**row, "instruction": ask} for row, ask in zip(rows, asks, strict=True)])
        before = batches(service)
        asked = ("--schedule", "adaptive", "--round-size", "1", "--budget", "6")
        ended = cli("eval", "tournament", files["gold"], files["bronze"], *asked)
        assert (ended.status, batches(service) - before) == (1, asked_for)
        assert "every line errored, most of them with engine_failed" in ended.err

    @pytest.mark.parametrize(
        ("options", "why"),
        [
            (["--schedule", "adaptive"], "--budget or --target"),
            (["--schedule", "baseline"], "--baseline"),
            (["--baseline", "nobody", "--schedule", "baseline"], "No file is of nobody"),
        ],
    )
    def test_what_cannot_be_played(self, cli: Cli, tmp_path: Path, options: list[str], why: str):
        """Options that contradict each other are told before anything is judged."""
        ended = cli("eval", "tournament", *outputs(tmp_path, prompts=2).values(), *options)
        assert ended.status != 0
        assert why in " ".join(ended.err.replace("│", " ").split())

    def test_systems_must_answer_the_same(self, cli: Cli, tmp_path: Path):
        """A file with other instructions is named."""
        files = outputs(tmp_path, prompts=3)
        write(files["silver"], [{"instruction": "Else", "output": "x", "generator": "silver"}])
        ended = cli("eval", "tournament", *files.values())
        assert ended.status == 1
        assert "silver.jsonl: its instructions are not those of" in ended.err


class TestLabels:
    def test_gold(self, cli: Cli, tmp_path: Path):
        """Accuracy is about the share of labels that are right, with its interval and what the judge is."""
        [report] = cli("eval", "gold", labelled(tmp_path), "--json").objects
        assert 0.6 < report["accuracy"]["value"] < 0.85
        assert report["accuracy"]["low"] < 0.75 < report["accuracy"]["high"]
        assert (report["judges"][0]["simulated"], bool(report["caveat"])) == (True, True)
        shown = cli("eval", "gold", labelled(tmp_path))
        hits, n = report["accuracy"]["hits"], report["accuracy"]["n"]
        assert re.search(rf"^Accuracy .*, {hits} of {n}\.", shown.out, re.MULTILINE)
        assert "Krippendorff's alpha" in shown.out

    def test_rewardbench(self, cli: Cli, tmp_path: Path):
        """Sections and overall stand next to published figures with their sources, and what differs is said."""
        ended = cli("eval", "rewardbench", labelled(tmp_path))
        assert ended.status == 0, ended.err
        assert "Reasoning" in ended.out
        assert "Skywork-Critic-Llama-3.1-8B" in ended.out
        assert "made with profile card, so they compare in tendency alone" in ended.out
        assert "Mind: Simulated" in ended.out

    def test_calibrate(self, cli: Cli, service: Service, tmp_path: Path):
        """The written file names the judge, and a worker that is given it says so in every verdict."""
        file = tmp_path / "calibration.json"
        ended = cli("eval", "calibrate", labelled(tmp_path), "--write", file)
        assert ended.status == 0, ended.err
        written = json.loads(file.read_text())
        assert written["temperature"] > 1.2  # the judge is surer than three right labels in four allow
        assert written["log_loss_after"] < written["log_loss_before"]
        with running_service(tmp_path / "data", simulated_strengths=True, calibration_file=file) as calibrated:
            answer = calibrated.file(wait=30).json()
        judge = answer["verdict"]["judge"]
        assert judge["temperature"] == written["temperature"]
        assert judge["calibration"].startswith("sha256:")

    @pytest.mark.parametrize(
        ("row", "why"),
        [
            ({"prompt": "?", "response_a": "x", "response_b": "y"}, "no line has a label"),
            ({"prompt": "?", "response_a": "x"}, "line 1: response_b"),
        ],
    )
    def test_files_that_cannot_be_used(self, cli: Cli, tmp_path: Path, row: dict, why: str):
        """What is missing is named with its line before anything is judged."""
        ended = cli("eval", "gold", write(tmp_path / "pairs.jsonl", [row]))
        assert ended.status == 1
        assert why in ended.err

    def test_ids_must_be_unique(self, cli: Cli, tmp_path: Path):
        """Two lines of one id could not be told apart in a report."""
        row = {"id": "x", "prompt": "?", "response_a": "x", "response_b": "y", "label": "A"}
        ended = cli("eval", "gold", write(tmp_path / "pairs.jsonl", [row, row]))
        assert "line 2: another line has the same id" in ended.err
