"""`nightcourt eval curate` over a thousand rows with planted noise, and a simulated judge that knows the truth."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from support import trl
from support.judged import chance
from support.program import Cli, program_of
from support.rows import read, write
from support.service import Service, running_service
from typer.testing import CliRunner

from producer.cli.app import make_app
from producer.cli.eval_inputs import read_preferences
from producer.cli.eval_runs import require_free
from producer.cli.training import write_training
from producer.evals.curating import training_rows
from producer.evals.rows import Row
from schemas.problems import BAD_OUTPUT_FILE, Problem

ROWS = 1000


def noisy(folder: Path) -> tuple[Path, set[str]]:
    """Preference rows of which every tenth or so is labelled wrong, with repeats and rubbish; and which are wrong."""
    wrong = {f"row-{number}" for number in range(ROWS - 20) if chance(number, "noise") < 0.1}
    rows = []
    for number in range(ROWS - 20):
        name = f"row-{number}"
        better, worse = f"good {number} {{{{strength=4}}}}", f"bad {number} {{{{strength=0}}}}"
        chosen, rejected = (worse, better) if name in wrong else (better, worse)
        rows.append({"id": name, "prompt": f"Q{number}", "chosen": chosen, "rejected": rejected})
    for number in range(10):
        rows.append({**rows[number], "id": f"again-{number}"})
        turned = {"chosen": rows[number]["rejected"], "rejected": rows[number]["chosen"]}
        rows.insert(500 + number, {**rows[number], **turned, "id": f"turned-{number}"})
    return write(folder / "rows.jsonl", rows), wrong


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that prefers by marks."""
    with running_service(tmp_path_factory.mktemp("curate") / "data", simulated_strengths=True) as running:
        yield running


@pytest.fixture(scope="module")
def cli(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """The program, told by its environment which service to use."""
    return program_of(service.folder, tmp_path_factory.mktemp("home"))


class Judged(NamedTuple):
    """Rows that were curated once."""

    folder: Path
    file: Path
    wrong: set[str]
    out: str


@pytest.fixture(scope="module")
def judged(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Judged:
    """The thousand rows, curated."""
    folder = tmp_path_factory.mktemp("judged")
    file, wrong = noisy(folder)
    ended = cli("eval", "curate", file, "--write", folder / "out.jsonl", "--output", folder / "report")
    assert ended.status == 0, ended.err
    return Judged(folder, file, wrong, ended.out)


class TestCurate:
    def test_planted_noise_is_found_and_every_row_is_counted(self, judged: Judged):
        """A thousand rows: the counts add up, nearly all wrong labels are flipped or out, and no right one is."""
        folder, wrong = judged.folder, judged.wrong
        assert "Mind: Simulated" in judged.out
        datasheet = json.loads((folder / "out.jsonl.datasheet.json").read_text())
        assert datasheet == json.loads((folder / "report" / "report.json").read_text())
        counts = {each["fate"]: each["rows"]["hits"] for each in datasheet["fates"]}
        assert sum(counts.values()) == datasheet["pairs"] == datasheet["source"]["rows"] == ROWS
        rows = read(folder / "report" / "rows.jsonl")
        assert Counter(row["fate"] for row in rows) == {fate: count for fate, count in counts.items() if count}
        flipped = {row["id"] for row in rows if row["fate"] == "flipped"}
        kept = {row["id"] for row in rows if row["fate"] == "kept"}
        assert flipped <= wrong
        assert len(flipped) > 0.75 * len(wrong) > 50
        assert len(kept & wrong) < 0.02 * len(wrong)
        assert counts["duplicate"] == counts["contradiction"] == 10
        written = read(folder / "out.jsonl")
        trl.check(written, "dpo")
        assert len(written) == counts["kept"] + counts["flipped"] == datasheet["written"]["rows"]
        assert sum(row["chosen"].startswith("bad") for row in written) == len(kept & wrong)
        assert {row["id"] for row in written if row["flipped"]} == flipped
        assert {row["id"] for row in written if not row["flipped"]} == kept

    def test_again_is_the_same_to_the_byte(self, cli: Cli, judged: Judged, tmp_path: Path):
        """Judged anew, the same rows give the same training file and the same datasheet."""
        again = tmp_path / "out.jsonl"
        ended = cli("eval", "curate", judged.file, "--write", again, "--fresh", "--json")
        assert ended.status == 0, ended.err
        assert again.read_bytes() == (judged.folder / "out.jsonl").read_bytes()
        sheet = "out.jsonl.datasheet.json"
        assert (tmp_path / sheet).read_bytes() == (judged.folder / sheet).read_bytes()

    def test_a_training_file_of_other_rows_stays(self, judged: Judged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        """Under the name that nobody gave; of the same rows it is made again, and what is named is written over."""
        monkeypatch.chdir(tmp_path)
        (tmp_path / "curated.jsonl").write_text("somebody's\n")
        with pytest.raises(
            Problem, match=r"curated\.jsonl is there already and was not made of .*; nothing was judged"
        ):
            require_free(Path("curated.jsonl"), judged.file)
        require_free(Path("curated2.jsonl"), judged.file)
        require_free(judged.folder / "out.jsonl", judged.file)
        asked = ["eval", "curate", str(judged.file), "--server", "http://127.0.0.1:9"]
        ended = CliRunner().invoke(make_app(["eval"]), asked)
        assert isinstance(ended.exception, Problem)
        assert ended.exception.kind is BAD_OUTPUT_FILE
        assert (tmp_path / "curated.jsonl").read_text() == "somebody's\n"

    @pytest.mark.parametrize("form", trl.FORMATS)
    def test_data_sets_load(self, judged: Judged, tmp_path: Path, form: str):
        """Every form loads by the library datasets, as lines and as Parquet, with the columns that TRL documents."""
        datasets = pytest.importorskip("datasets", reason="the library datasets, 300 MB with what it needs, is absent")
        source = read_preferences(judged.file)
        rows = [
            Row(id=pair.id, group=pair.id, label=pair.label, fate="kept", probability_a=0.8) for pair in source.pairs
        ]
        for kind, suffix in (("json", "jsonl"), ("parquet", "parquet")):
            file = tmp_path / f"out.{suffix}"
            write_training(list(training_rows(rows, source, form)), file)
            loaded = datasets.load_dataset(kind, data_files=str(file), split="train", cache_dir=str(tmp_path / "cache"))
            trl.check(loaded.to_list(), form)

    def test_rows_that_are_none_can_be_left_out(self, cli: Cli, tmp_path: Path):
        """By default a bad line refuses the file by its number; skipped, it is a fate like the others."""
        file = tmp_path / "rows.jsonl"
        good = {"prompt": "Q", "chosen": "x {{strength=5}}", "rejected": "y {{strength=0}}"}
        file.write_text(json.dumps(good) + "\n{}\n")
        ended = cli("eval", "curate", file, "--write", tmp_path / "out.jsonl")
        assert ended.status == 1
        assert "line 2" in ended.err
        assert not (tmp_path / "out.jsonl").exists()
        [datasheet] = cli(
            "eval", "curate", file, "--write", tmp_path / "out.jsonl", "--on-bad-line", "skip", "--json"
        ).objects
        counts = {each["fate"]: each["rows"]["hits"] for each in datasheet["fates"]}
        assert (counts["kept"], counts["unreadable"]) == (1, 1)
