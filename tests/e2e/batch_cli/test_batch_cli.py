"""`nightcourt batch` as a person or a script uses it, over a service whose simulated engine takes its time."""

import gzip
import json
import re
import signal
import subprocess
from pathlib import Path

import pytest
import zstandard
from support.clerk import Clerk, lines
from support.program import BATCH_ID, ROOT, Cli, running
from support.rows import PAIR, read, write
from support.service import Service
from support.waiting import wait_until
from typer.testing import CliRunner

from producer.cli import batch
from producer.cli.app import make_app

EXAMPLES = read(ROOT / "examples" / "first-docket.jsonl")
LONG = "word " * 20_000
"""More than the simulated engine takes in one prompt."""


def test_all_that_can_be_done_to_a_batch_is_a_command():
    """The list of commands is the one that is documented."""
    commands = [command.name or command.callback.__name__ for command in batch.app.registered_commands]
    assert commands == ["run", "status", "list", "pause", "resume", "cancel", "retry", "results"]


class TestRun:
    def test_a_file_is_judged_and_summed_up(self, cli: Cli, service: Service, tmp_path: Path):
        """Results are a comparison a line in the order of the file, and the summary can be recomputed from them."""
        file = write(tmp_path / "pairs.jsonl", EXAMPLES)
        ended = cli("batch", "run", file, "--metadata", "run=7")
        assert ended.status == 0, ended.err
        judged = read(tmp_path / "pairs.results.jsonl")
        assert [each["custom_id"] for each in judged] == [row["custom_id"] for row in EXAMPLES]
        assert {each["status"] for each in judged} == {"succeeded"}
        right = sum(each["verdict"]["winner"] == row["label"] for each, row in zip(judged, EXAMPLES, strict=True))
        agreed = sum(each["verdict"]["consistent"] for each in judged)
        assert f"34 comparisons: 34 succeeded\nAccuracy against the gold labels: {right} of 34" in ended.out
        assert f"naming the same winner: {agreed} of 34" in ended.out
        for topic in {row["topic"] for row in EXAMPLES}:
            assert re.search(rf"^{topic} +\d+( +\d+ of \d+ \(\d+\.\d%\)){{2}}$", ended.out, re.MULTILINE)
        assert re.search(r"\d pairs a second .* \d+ prompt tokens", ended.out)
        assert "Judge: simulated" in ended.out
        assert "Mind: Simulated" in ended.out
        assert f"Results: {tmp_path / 'pairs.results.jsonl'}" in ended.err
        assert service.batch(BATCH_ID.search(ended.err)[0])["metadata"] == {"run": "7"}
        assert list(tmp_path.glob(".*")) == []

    def test_the_same_command_comes_back(self, cli: Cli, service: Service, tmp_path: Path):
        """The file's bytes, the options and the service name the run, wherever the file lies; --fresh files anew."""
        file = write(tmp_path / "pairs.jsonl", [{**PAIR, "custom_id": "back", "subset": "s", "label": "A"}])
        first = cli("batch", "run", file, "--json")
        (elsewhere := tmp_path / "elsewhere").mkdir()
        moved = file.rename(elsewhere / "renamed.jsonl")
        again = cli("batch", "run", moved, "--json", "--output", tmp_path / "out.jsonl")
        [summary], [same] = first.objects, again.objects
        assert "Filed as" not in again.err
        assert f"Back at {summary['batch_id']}, which the same command filed at" in again.err
        assert {**same, "output": None} == {**summary, "output": None}
        assert summary["subsets"]["s"]["labelled"] == 1
        assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "pairs.results.jsonl").read_bytes()
        others = [
            cli("batch", "run", moved, "--json", "--output", elsewhere / "more.jsonl", *more).objects[0]
            for more in (["--fresh"], ["--order", "ab"])
        ]
        assert len({summary["batch_id"], *(other["batch_id"] for other in others)}) == 3

    def test_results_of_another_run_stay(self, cli: Cli, service: Service, tmp_path: Path):
        """Where nobody names the output, what is there and is not of the same run is refused before filing."""
        (tmp_path / "a").mkdir()
        file, results = write(tmp_path / "a" / "pref.jsonl", [{**PAIR, "prompt": "Stays?"}]), "a/pref.results.jsonl"
        other = write(tmp_path / "a" / "pref.json", [{**PAIR, "prompt": "Lost?"}])
        first = cli("batch", "run", file, "--json")
        before = (tmp_path / results).read_bytes()
        filed = len(service.http.get("/v1/batches", params={"limit": 100}).json()["data"])
        for asked in ([other], [file, "--order", "ab"]):
            ended = cli("batch", "run", *asked)
            assert ended.status == 1
            assert f"{tmp_path / results} is there already and is not of this run" in ended.err
        assert (tmp_path / results).read_bytes() == before
        assert len(service.http.get("/v1/batches", params={"limit": 100}).json()["data"]) == filed
        again = cli("batch", "run", file, "--json")
        assert again.objects == first.objects
        [anew] = cli("batch", "run", file, "--fresh", "--json").objects
        assert read(tmp_path / results)[0]["id"].startswith(anew["batch_id"].replace("batch", "cmp"))
        named = cli("batch", "run", file, "--order", "ab", "--output", tmp_path / results)
        assert named.status == 0, named.err
        assert (tmp_path / results).read_bytes() != before
        write(tmp_path / results, [{"notes": "mine"}])
        assert "is not of this run" in cli("batch", "run", file).err

    def test_results_to_standard_output(self, cli: Cli, tmp_path: Path):
        """With --output - the results are all that is on standard output, unless the summary is asked for as JSON."""
        file = write(tmp_path / "pairs.jsonl", [{**PAIR, "custom_id": "one"}, {**PAIR, "custom_id": "two"}])
        ended = cli("batch", "run", file, "--output", "-")
        assert [each["custom_id"] for each in ended.objects] == ["one", "two"]
        assert "2 comparisons: 2 succeeded" in ended.err
        *results, summary = cli("batch", "run", file, "--output", "-", "--json").objects
        assert results == ended.objects
        assert (summary["object"], summary["succeeded"], summary["output"]) == ("summary", 2, None)
        assert list(tmp_path.iterdir()) == [file]
        printed = cli("batch", "results", summary["batch_id"])
        assert printed.out == ended.out

    @pytest.mark.parametrize("kind", ["gz", "zst"])
    def test_a_compressed_file(self, cli: Cli, tmp_path: Path, kind: str):
        """It is sent as it is, and its labels are read from it."""
        data = "".join(json.dumps({**PAIR, "prompt": kind, "label": "A"}) + "\n" for _ in range(3)).encode()
        file = tmp_path / f"pairs.jsonl.{kind}"
        file.write_bytes(gzip.compress(data) if kind == "gz" else zstandard.compress(data))
        [summary] = cli("batch", "run", file, "--json").objects
        assert (summary["total"], summary["labelled"]) == (3, 3)
        assert summary["output"] == str(tmp_path / "pairs.results.jsonl")

    def test_a_compressed_file_that_is_cut(self, cli: Cli, tmp_path: Path):
        """What did not arrive whole is not judged in part."""
        file = tmp_path / "pairs.jsonl.gz"
        file.write_bytes(gzip.compress(json.dumps(PAIR).encode())[:-6])
        ended = cli("batch", "run", file)
        assert ended.status == 1
        assert "compression ends in the middle" in ended.err

    def test_two_systems_outputs(self, cli: Cli, tmp_path: Path):
        """--baseline pairs rows by their instruction, the baseline's as response A, and says which is preferred."""
        rows = [{"instruction": f"Do {n}", "dataset": "d"} for n in (1, 2, 1)]
        ours = [{**row, "output": f"ours {n}", "generator": "ours-v2"} for n, row in enumerate(rows)]
        theirs = [{**row, "output": f"theirs {n}", "generator": "theirs"} for n, row in enumerate(rows)]
        file, baseline = write(tmp_path / "ours.jsonl", ours), tmp_path / "theirs.json"
        baseline.write_text(json.dumps([theirs[1], theirs[0], theirs[2]], indent=1))
        ended = cli("batch", "run", file, "--baseline", baseline, "--output", tmp_path / "out.jsonl")
        assert ended.status == 0, ended.err
        assert re.search(r"^Preferred: theirs \d \(.*%\), ours-v2 \d \(.*%\)$", ended.out, re.MULTILINE)
        results = read(tmp_path / "out.jsonl")
        assert [each["custom_id"] for each in results] == ["0", "1", "2"]
        other = write(tmp_path / "other.jsonl", [*ours, {"instruction": "Do 3", "output": "?"}])
        ended = cli("batch", "run", other, "--baseline", baseline)
        assert ended.status == 1
        assert f"the instruction of row 4 is not in {baseline}" in " ".join(ended.err.split())
        ended = cli("batch", "run", write(other, [*ours, ours[0]]), "--baseline", baseline)
        assert f"the instruction of row 4 is in {baseline} only 2 times" in " ".join(ended.err.split())
        ended = cli("batch", "run", "-")
        assert "save it in a file first" in " ".join(ended.err.split())

    def test_a_parquet_file(self, cli: Cli, tmp_path: Path):
        """Its rows are lines."""
        pa = pytest.importorskip("pyarrow", reason="needs pyarrow: install the extra 'evals'")
        parquet = pytest.importorskip("pyarrow.parquet")
        turns = [{"role": "user", "content": "Which?"}]
        rows = [{"prompt": turns, "chosen": [{"role": "assistant", "content": text}]} for text in ("this", "that")]
        rows = [{**row, "rejected": [{"role": "assistant", "content": "neither"}], "extra": 1.5} for row in rows]
        file = tmp_path / "pairs.parquet"
        parquet.write_table(pa.Table.from_pylist(rows), file)
        [summary] = cli("batch", "run", file, "--json").objects
        assert (summary["succeeded"], summary["labelled"]) == (2, 2)

    def test_a_parquet_file_that_nothing_can_read(self, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        """Where pyarrow is not installed, the message says what to install."""
        (tmp_path / "pyarrow.py").write_text("raise ImportError")
        monkeypatch.setitem(cli.environment, "PYTHONPATH", str(tmp_path))
        (tmp_path / "pairs.parquet").write_bytes(b"PAR1")
        ended = cli("batch", "run", tmp_path / "pairs.parquet")
        assert ended.status == 1
        assert 'pip install "nightcourt[evals]"' in " ".join(ended.err.split())


class TestBadLines:
    ROWS = (json.dumps(PAIR), '{"prompt": "x", }', json.dumps({**PAIR, "winner": "A"}))

    def test_they_fail_the_batch(self, cli: Cli, tmp_path: Path):
        """Nothing runs, and the first ten lines are named with column or field."""
        file = tmp_path / "bad.jsonl"
        file.write_text("\n".join([*self.ROWS, *["{"] * 10]))
        ended = cli("batch", "run", file)
        assert (ended.status, ended.out) == (1, "")
        assert f"{file}: 12 lines are no comparison, and nothing was judged" in ended.err
        assert re.search(r"line 2: .* at column 17", ended.err)
        assert re.search(r"line 3: winner: ", ended.err)
        assert re.findall(r"^ +line (\d+): ", ended.err, re.MULTILINE) == [str(n) for n in range(2, 12)]
        assert "and 2 more" in ended.err
        assert "--on-bad-line skip" in ended.err
        assert list(tmp_path.iterdir()) == [file]
        problem = json.loads(cli("batch", "run", file, "--json").err.splitlines()[-1])
        assert problem["code"] == "bad_input_file"
        assert [each["field"] for each in problem["errors"]] == [f"line {n}" for n in range(2, 14)]

    def test_they_are_skipped(self, cli: Cli, tmp_path: Path):
        """The others are judged, and the bad ones stand among the results with their reasons."""
        file = tmp_path / "bad.jsonl"
        file.write_text("\n".join(self.ROWS))
        ended = cli("batch", "run", file, "--on-bad-line", "skip", "--json")
        [summary] = ended.objects
        assert ended.status == 0
        assert "1 comparison, 2 lines that are none" in ended.err
        assert (summary["total"], summary["succeeded"], summary["reasons"]) == (3, 1, {"bad_line": 2})
        good, *bad = read(tmp_path / "bad.results.jsonl")
        assert (good["status"], [each["error"]["code"] for each in bad]) == ("succeeded", ["bad_line", "bad_line"])
        assert bad[1]["error"]["message"].startswith("winner: ")

    def test_there_is_nothing_but_them(self, cli: Cli, tmp_path: Path):
        """Where they are skipped and no other is there, nobody is told to skip them."""
        (file := tmp_path / "bad.jsonl").write_text("{\n")
        ended = cli("batch", "run", file, "--on-bad-line", "skip")
        assert ended.status == 1
        assert f"{file}: 1 line is no comparison, and nothing was judged" in ended.err
        assert ended.err.endswith("\nMend the file.\n")

    @pytest.mark.parametrize(
        ("content", "says"), [("", "there is nothing in it"), (" \n\n", "there is nothing"), (None, "No such file")]
    )
    def test_a_file_of_nothing(self, cli: Cli, tmp_path: Path, content: str | None, says: str):
        """An empty file and one that is not there are told apart, and nothing is filed."""
        file = tmp_path / "pairs.jsonl"
        if content is not None:
            file.write_text(content)
        ended = cli("batch", "run", file)
        assert ended.status == 1
        assert says in ended.err
        assert "Filed as" not in ended.err


class TestEnds:
    def test_every_line_errored(self, cli: Cli, service: Service, tmp_path: Path):
        """The commonest reason is named, and so is the command that judges the lines again."""
        rows = [{**PAIR, "prompt": LONG, "label": "A"}, {**PAIR, "prompt": f"{LONG}!"}]
        ended = cli("batch", "run", write(tmp_path / "long.jsonl", rows))
        batch_id = BATCH_ID.search(ended.err)[0]
        assert ended.status == 1
        assert "every line errored, most of them with context_length_exceeded" in ended.err
        assert f"nightcourt batch retry {batch_id}" in ended.err
        assert "2 without a verdict: context_length_exceeded" in ended.out
        assert "Accuracy" not in ended.out
        assert len(read(tmp_path / "long.results.jsonl")) == 2
        retried = cli("batch", "retry", batch_id)
        assert (retried.status, retried.out.split()[:2], retried.err) == (0, [batch_id, "in_progress"], "")
        wait_until(lambda: service.batch(batch_id)["status"] == "failed", within=60, what="it has failed again")
        assert "line 1: context_length_exceeded: 2 lines ended so" in cli("batch", "status", batch_id).out

    def test_ctrl_c_leaves_the_batch_running(self, cli: Cli, service: Service, tmp_path: Path):
        """The command ends with 130 and says how to come back; the batch goes on, and can be seen and called off."""
        # Minutes of work: the batch is under way still when the commands have started that look at it.
        rows = [{**PAIR, "prompt": f"Which of {n}? {'more ' * 1000}", "custom_id": str(n)} for n in range(2000)]
        file = write(tmp_path / "many.jsonl", rows)
        with running(cli, tmp_path, "batch", "run", file) as run:
            batch_id = BATCH_ID.search(run.until("Filed as"))[0]
            wait_until(lambda: service.batch(batch_id)["progress"]["decided"], within=60, what="something is decided")
            status, said = run.end(signal.SIGINT)
        assert status == 130
        assert f"Stopped watching {batch_id}. It goes on. The same command comes back to it" in said
        assert f"nightcourt batch status {batch_id}" in said
        assert "Traceback" not in said
        assert not (tmp_path / "many.results.jsonl").exists()
        [now] = cli("batch", "status", batch_id, "--json").objects
        assert (now["status"], now["request_counts"]["total"]) == ("in_progress", 2000)
        so_far = cli("batch", "results", batch_id).objects
        assert now["progress"]["decided"] <= len(so_far) < 2000
        assert cli("batch", "cancel", batch_id).status == 0
        wait_until(lambda: service.batch(batch_id)["status"] == "cancelled", within=60, what="it is cancelled")
        ended = cli("batch", "run", file)
        assert ended.status == 1
        assert f"Back at {batch_id}" in ended.err
        retried = cli("batch", "retry", batch_id)
        assert (retried.status, retried.out.split()[:2]) == (0, [batch_id, "cancelled"])
        assert retried.err.startswith("Nothing errored, so nothing is judged again.")
        assert "nightcourt batch run FILE --fresh" in retried.err
        assert re.search(r"it was cancelled; \d+ lines were not judged", ended.err)
        assert len(read(tmp_path / "many.results.jsonl")) == 2000

    def test_a_batch_that_waits(self, cli: Cli, service: Service, tmp_path: Path):
        """The reason is told while watching and by status; pause and resume answer with how it stands."""
        Clerk(service).create(lines(1))  # an older one, which a list of one leaves out
        file = write(tmp_path / "later.jsonl", [{**PAIR, "prompt": "Later?"}])
        late = ("--not-before", "2999-01-01T00:00+00:00", "--window", "22:00-6:00@Europe/Berlin", "--priority", "5")
        with running(cli, tmp_path, "batch", "run", file, *late) as run:
            said = run.until("0 of 1 judged; waiting: ")
            batch_id = BATCH_ID.search(said)[0]
            run.end(signal.SIGINT)
        assert cli("batch", "pause", batch_id).out.startswith(f"{batch_id}  in_progress (paused)")
        [paused] = cli("batch", "status", batch_id, "--json").objects
        assert paused["paused"]
        assert paused["window"] == {"start": "22:00:00", "end": "06:00:00", "timezone": "Europe/Berlin"}
        assert (paused["priority"], paused["not_before"]) == (5, 32472144000)
        assert paused["expires_at"] == paused["not_before"] + 86400
        assert re.search("0 of 1 decided, waiting: .*time", cli("batch", "resume", batch_id).out)
        listed = cli("batch", "list", "--limit", 1)
        stands = "in_progress  later.jsonl  0 of 1 decided, waiting"
        assert re.match(rf"{batch_id}  \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d\S+  {stands}", listed.out)
        assert f"--after {batch_id}" in listed.err
        *_, oldest = cli("batch", "list", "--limit", 100, "--json").objects
        assert cli("batch", "list", "--after", oldest["id"]).err == "There is no older batch.\n"
        assert cli("batch", "cancel", batch_id, "--json").objects[0]["status"] == "cancelling"
        wait_until(lambda: service.batch(batch_id)["status"] == "cancelled", within=60, what="it is cancelled")
        problem = json.loads(cli("batch", "pause", batch_id, "--json").err)
        assert (problem["code"], problem["title"]) == ("batch_ended", "The batch has already ended")


class TestMistakes:
    def test_without_a_server(self, service: Service, tmp_path: Path):
        """Nothing answers: the sentence names the address, and the status is 3."""
        alone = Cli(tmp_path / "home")
        file = write(tmp_path / "pairs.jsonl", [PAIR])
        ended = alone("batch", "run", file)
        assert (ended.status, ended.out) == (3, "")
        assert f"http://127.0.0.1:{alone.environment['NIGHTCOURT_PORT']}" in ended.err
        assert "nightcourt up" in ended.err

    def test_a_batch_that_is_not_there(self, cli: Cli):
        """The service's problem is printed as it is, in either form."""
        ended = cli("batch", "status", f"batch_{7:032x}")
        assert ended.status == 1
        assert "There is no batch of this id." in ended.err
        ended = cli("batch", "status", f"batch_{7:032x}", "--json")
        problem = json.loads(ended.err)
        assert (ended.status, problem["status"], problem["code"]) == (1, 404, "not_found")
        assert re.fullmatch("req_[0-9a-f]{32}", problem["request_id"])
        assert "looks like batch_" in cli("batch", "results", "../files").err

    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("--window", "at night"),
            ("--window", "22:00-25:00"),
            ("--window", "22:00-06:00@Mars/Olympus"),
            ("--not-before", "tomorrow"),
            ("--order", "sideways"),
            ("--tie-margin", "0.9"),
            ("--completion-window", "1 day"),
            ("--on-bad-line", "cry"),
            ("--metadata", "novalue"),
            ("--output", "/no/such/folder/out.jsonl"),
            ("--output", "/"),
        ],
    )
    def test_an_option_that_cannot_be(self, tmp_path: Path, option: str, value: str):
        """It is named before anything is sent, and the status is 2."""
        file = write(tmp_path / "pairs.jsonl", [PAIR])
        ended = CliRunner().invoke(
            make_app(), ["batch", "run", str(file), "--server", "http://127.0.0.1:9", option, value]
        )
        assert ended.exit_code == 2
        assert option in ended.output

    def test_a_reader_that_goes_away(self, cli: Cli, tmp_path: Path):
        """Results that are piped into something like `head` end without a trace."""
        ended = cli("batch", "run", write(tmp_path / "few.jsonl", [PAIR]))
        batch_id = BATCH_ID.search(ended.err)[0]
        process = cli.start("batch", "results", batch_id, out=subprocess.PIPE, err=subprocess.PIPE)
        process.stdout.close()
        assert process.stderr.read() == b""
        process.wait(timeout=60)
        process.stdin.close()
        process.stderr.close()
