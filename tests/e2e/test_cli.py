"""The command line as a person or a script uses it: a program with output, an exit status, and processes of its own."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import version
from pathlib import Path

import pytest
from support.processes import processes_of
from support.program import ROOT, Cli, Ended, running
from support.rows import PAIR
from support.waiting import wait_until

from infra.local.ports import free_port
from producer.cli.app import make_app
from producer.client import Client
from schemas.problems import INTERNAL, Problem

EXAMPLES = ROOT / "examples" / "first-docket.jsonl"
COMMANDS = [command.name or command.callback.__name__ for command in make_app().registered_commands]


@dataclass
class Service:
    """A whole service that `nightcourt up` runs, with an engine that answers at once."""

    url: str
    folder: Path
    pid: int


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """The program, where nothing runs unless a test asks for it."""
    return Cli(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def service(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that runs beside the commands."""
    folder = tmp_path_factory.mktemp("service")
    data = folder / "data"
    with running(cli, folder, "up", "--data-dir", data, "--port", 0, engine="simulated") as up:
        url = re.search(r"http://\S+", up.until("Ready"))[0]
        # Commands that are told where it is by --server have to be given its key.
        cli.environment["NIGHTCOURT_KEY"] = (data / "key").read_text().strip()
        yield Service(url, data, up.process.pid)
        status, said = up.end(signal.SIGTERM)
        assert status == 0, said


# As while a dataclass is made: what is interrupted in `exec` Python ends by the signal, even where it was caught.
INTERRUPTED_AT_IMPORT = """
import os, signal
exec("os.kill(os.getpid(), signal.SIGINT)\\nwhile True: pass")
"""


class TestLoading:
    @pytest.mark.parametrize(
        "how", [("-m", "producer.cli"), ("-c", "from producer.cli import main; main()")], ids=["module", "script"]
    )
    def test_ctrl_c_while_it_is_loaded(self, cli: Cli, tmp_path: Path, how: tuple[str, str]):
        """The first seconds end as the others do: in a word, and with 130."""
        (tmp_path / "pydantic.py").write_text(INTERRUPTED_AT_IMPORT)
        environment = {**cli.environment, "PYTHONPATH": str(tmp_path)}
        ended = subprocess.run(
            [sys.executable, *how, "submit", EXAMPLES],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "Interrupted.\n")


class TestHelp:
    def test_the_version(self, cli: Cli):
        """--version names the release and nothing else."""
        assert cli("--version") == Ended(0, f"nightcourt {version('nightcourt')}\n", "")

    def test_a_command_that_is_not_there(self, cli: Cli):
        """A command line that cannot be understood ends with 2."""
        assert cli("sumbit").status == 2


BAD_FILES = {
    "empty": ("", "there is nothing in it"),
    "broken line": (f"{json.dumps(PAIR)}\n{{\n", r"line 2: .* at column \d"),
    "unknown field": (f"{json.dumps(PAIR)}\n{json.dumps({**PAIR, 'winner': 'A'})}\n", "line 2: winner: "),
    "bad label": (json.dumps({**PAIR, "label": "C"}), 'line 1: label: is "A" or "B"'),
}


class TestBadInput:
    @pytest.mark.parametrize("name", BAD_FILES)
    def test_a_file_that_cannot_be_used(self, cli: Cli, tmp_path: Path, name: str):
        """The message names the file, the line and the field, and no server is asked."""
        content, says = BAD_FILES[name]
        file = tmp_path / "pairs.jsonl"
        file.write_text(content)
        ended = cli("submit", file)
        assert (ended.status, ended.out) == (1, "")
        assert re.search(f"{re.escape(str(file))}.*{says}", ended.err)

    def test_a_file_that_is_not_there(self, cli: Cli):
        """The message names the file and says what is the matter with it."""
        ended = cli("submit", "nowhere.jsonl")
        assert ended.status == 1
        assert "nowhere.jsonl: No such file or directory." in ended.err

    def test_errors_are_json_where_it_was_asked_for(self, cli: Cli):
        """With --json, standard error holds one problem document, the same as over HTTP."""
        ended = cli("submit", "-", "--json", given=json.dumps({**PAIR, "winner": "A"}))
        problem = json.loads(ended.err)
        assert (ended.status, ended.out, problem["code"]) == (1, "", "bad_input_file")
        assert problem["errors"][0]["field"] == "winner"

    @pytest.mark.parametrize(
        ("command", "settings", "says"),
        [
            ("up", {"lease_seconds": "abc"}, ["NIGHTCOURT_LEASE_SECONDS", "number"]),
            (
                "up",
                {"heartbeat_seconds": 31},
                ["NIGHTCOURT_HEARTBEAT_SECONDS (31)", "NIGHTCOURT_LEASE_SECONDS (60)"],
            ),
            ("doctor", {"database_url": "nonsense"}, ["NIGHTCOURT_DATABASE_URL", "URL of a Postgres"]),
        ],
        ids=["no number", "heartbeat", "no URL"],
    )
    def test_a_setting_that_cannot_be_is_named(self, cli: Cli, command: str, settings: dict, says: list[str]):
        """A wrong setting ends the command at once, in a sentence that names its variable."""
        ended = cli(command, **settings)
        assert ended.status == 1
        for words in says:
            assert words in ended.err


class TestSubmit:
    def test_without_a_server(self, cli: Cli):
        """Nothing answers: the sentence names the address and the command that starts a server, and the status is 3."""
        ended = cli("submit", EXAMPLES)
        assert ended.status == 3
        assert ended.out == ""
        assert f"http://127.0.0.1:{cli.environment['NIGHTCOURT_PORT']}" in ended.err
        assert "nightcourt up" in ended.err

    def test_nothing_runs_on_the_folder_that_is_named(self, cli: Cli, service: Service, tmp_path: Path):
        """No other service is asked in its place, be it at the usual address."""
        port = service.url.rpartition(":")[2]
        for asked in (("submit", EXAMPLES), ("batch", "list"), ("keys", "list"), ("purge", "--older-than", "1d")):
            ended = cli(*asked, "--data-dir", tmp_path / "typo", port=port)
            assert (ended.status, ended.out) == (3, ""), asked
            assert f"No stack runs on {tmp_path / 'typo'}." in ended.err
        ended = cli("keys", "list", port=port, data_dir=tmp_path / "typo")
        assert (ended.status, ended.out) == (3, "")
        ended = cli("doctor", "--json", "--data-dir", tmp_path / "typo", port=port)
        assert [(finding["part"], finding["ok"]) for finding in ended.objects] == [("embedded stack", False)]

    def test_no_verdict_at_all_is_no_success(self, cli: Cli, service: Service):
        """Where every comparison errored, a script that goes by the status does not go on."""
        long = {**PAIR, "prompt": "word " * 20_000}
        ended = cli("submit", "-", "--data-dir", service.folder, given=json.dumps(long))
        assert ended.status == 1
        assert "context_length_exceeded" in ended.out
        both = f"{json.dumps(long)}\n{json.dumps(PAIR)}\n"
        assert cli("submit", "-", "--data-dir", service.folder, given=both).status == 0

    def test_the_examples_are_judged(self, cli: Cli, service: Service):
        """A line for each pair with both ballots and the gold label, and a summary with the accuracy and a caveat."""
        ended = cli("submit", EXAMPLES, "--data-dir", service.folder)
        assert ended.status == 0
        lines = [line for line in ended.out.splitlines() if re.search(" gold [AB] ", line)]
        assert len(lines) == 34
        assert all(re.search(r"P\(A\) 0\.\d\d  ballots ab +\S+  ba +\S+", line) for line in lines)
        right = sum(line.endswith("right") for line in lines)
        assert f"Accuracy against the gold labels: {right} of 34 ({right / 34:.1%})" in ended.out
        obvious = sum(line.endswith("right") for line in lines if line.startswith("obvious"))
        assert re.search(rf"^obvious +6 +{obvious} of 6 \({obvious / 6:.1%}\) ", ended.out, re.MULTILINE)
        assert "Mind: Simulated" in ended.out

    def test_json_is_an_object_a_line_and_a_summary(self, cli: Cli, service: Service):
        """A program reads comparisons in the order of the file, then what they add up to."""
        ended = cli("submit", EXAMPLES, "--json", "--server", service.url)
        *comparisons, summary = ended.objects
        rows = [json.loads(line) for line in EXAMPLES.read_text().splitlines()]
        assert [each["custom_id"] for each in comparisons] == [row["custom_id"] for row in rows]
        assert {each["object"] for each in comparisons} == {"comparison"}
        assert [each["label"] for each in comparisons] == [row["label"] for row in rows]
        correct = sum(each["verdict"]["winner"] == row["label"] for each, row in zip(comparisons, rows, strict=True))
        assert (summary["object"], summary["labelled"], summary["correct"]) == ("summary", 34, correct)
        assert summary["accuracy"] == correct / 34
        assert sum(subset["correct"] for subset in summary["subsets"].values()) == correct

    def test_one_pair_through_a_pipe(self, cli: Cli, service: Service):
        """A dash reads standard input, where one object may take many lines; options fill in what it leaves out."""
        ended = cli("submit", "-", "--json", "--order", "ba", "--server", service.url, given=json.dumps(PAIR, indent=2))
        decided, summary = ended.objects
        assert [ballot["order"] for ballot in decided["verdict"]["ballots"]] == ["ba"]
        assert (summary["total"], summary["accuracy"], summary["swap_consistency"]) == (1, None, None)

    def test_ids_instead_of_waiting(self, cli: Cli, service: Service):
        """--no-wait prints an id a line once everything is filed, at an address that may end in /v1."""
        ended = cli("submit", EXAMPLES, "--no-wait", "--server", f"{service.url}/v1")
        assert ended.status == 0
        assert len(ended.out.splitlines()) == 34
        assert all(re.fullmatch(r"cmp_[0-9a-f]{32}", line) for line in ended.out.splitlines())

    @pytest.mark.parametrize("options", [(), ("--json",)], ids=["ids", "json"])
    def test_ctrl_c_while_filing(self, cli: Cli, service: Service, tmp_path: Path, options: tuple[str, ...]):
        """Nothing that was filed is lost sight of: how many were is said, their ids are printed, the status is 130."""
        name = f"many{len(options)}"
        (file := tmp_path / "pairs.jsonl").write_text(
            "".join(json.dumps({**PAIR, "custom_id": f"{name}-{n}"}) + "\n" for n in range(9999))
        )
        with Client(service.url, api_key=cli.environment["NIGHTCOURT_KEY"]) as client:

            def known() -> dict[str, str]:
                mine = [each for each in client.iterate() if str(each.custom_id).startswith(f"{name}-")]
                return {str(each.custom_id): each.id for each in mine}

            command = ("submit", file, "--server", service.url, *options)
            process = cli.start(*command, out=subprocess.PIPE, err=subprocess.PIPE)
            wait_until(known, within=60, what="something is filed")
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
            there = known()
        assert process.returncode == 130
        ids = [json.loads(line)["id"] if options else line for line in out.decode().splitlines()]
        assert err.decode().startswith(f"{len(ids)} of 9999 were filed, and the next one may have been.")
        assert ids == [there[f"{name}-{n}"] for n in range(len(ids))]
        assert 0 < len(ids) <= len(there) <= len(ids) + 1

    @pytest.mark.parametrize("options", [(), ("--json",)], ids=["ids", "json"])
    def test_a_problem_while_filing(self, cli: Cli, service: Service, options: tuple[str, ...]):
        """What was filed before the service said no is told too, and the problem ends the command as ever."""
        rows = [PAIR, PAIR, {**PAIR, "callback_url": "https://receiver.example/"}, PAIR]
        given = "\n".join(map(json.dumps, rows))
        ended = cli("submit", "-", "--server", service.url, *options, given=given)
        said, problem = ended.err.split("\n", 1)
        assert (ended.status, said) == (1, "2 of 4 were filed. What is filed will be judged.")
        assert "There is no secret yet" in problem
        ids = [each["id"] for each in ended.objects] if options else ended.out.splitlines()
        assert [bool(re.fullmatch(r"cmp_[0-9a-f]{32}", each)) for each in ids] == [True, True]

    def test_what_has_no_verdict_is_shown_as_such(self, cli: Cli, service: Service):
        """An errored pair has its reason in the place of a verdict, is counted, and stands in no rate."""
        rows = [{**PAIR, "custom_id": "long", "prompt": "word " * 20_000, "label": "A"}, {**PAIR, "custom_id": "fine"}]
        ended = cli("submit", "-", "--server", service.url, given="\n".join(map(json.dumps, rows)))
        assert ended.status == 0
        assert re.search(
            r"^long +errored context_length_exceeded: the prompt is \d+ tokens long", ended.out, re.MULTILINE
        )
        assert "2 comparisons: 1 succeeded, 1 errored" in ended.out
        assert "Accuracy" not in ended.out

    def test_time_that_is_up(self, cli: Cli, service: Service):
        """Whoever will not wait is told that everything stays filed, and as what, with a status of its own."""
        ended = cli("submit", EXAMPLES, "--timeout", 0, "--json", "--server", service.url)
        assert ended.status == 4
        assert "Everything stays filed" in ended.err
        assert len({each["id"] for each in ended.objects}) == 34

    @pytest.mark.parametrize("options", [(), ("--json",)], ids=["verdicts", "json"])
    def test_a_reader_that_goes_away(self, cli: Cli, service: Service, options: tuple[str, ...]):
        """Where the output is piped into something like `head`, the command ends without a trace."""
        reading, writing = os.pipe()
        os.close(reading)
        process = cli.start("submit", EXAMPLES, "--server", service.url, *options, out=writing, err=subprocess.PIPE)
        os.close(writing)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 1
        assert err == b""


class Mistaken(BaseHTTPRequestHandler):
    """Answers as the service does where it has made a mistake."""

    document = Problem(INTERNAL, "The mistake is ours.").document("req_7").model_dump(exclude_none=True)

    def do_GET(self) -> None:
        """Answer anything with the same problem."""
        body = json.dumps(self.document).encode()
        self.send_response(500)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keep the test's own output clean."""


class TestProblems:
    @pytest.mark.parametrize("options", [(), ("--json",)], ids=["words", "json"])
    def test_a_mistake_of_the_service(self, cli: Cli, options: tuple[str, ...]):
        """Its problem comes through whole as JSON, and in words it names the id under which the logs say more."""
        with HTTPServer(("127.0.0.1", 0), Mistaken) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            at = f"http://127.0.0.1:{server.server_port}"
            try:
                ended = cli("batch", "status", f"batch_{7:032x}", "--server", at, *options)
            finally:
                server.shutdown()
                thread.join()
        assert (ended.status, ended.out) == (1, "")
        if options:
            assert json.loads(ended.err) == Mistaken.document
        else:
            assert "The mistake is ours.\nThe request's id: req_7" in ended.err

    @pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
    @pytest.mark.parametrize("command", [("--version",), ("plan", "--lines", 9, "--tokens", 9, "--json")], ids=str)
    def test_output_on_a_full_disk(self, tmp_path: Path, command: tuple[object, ...], unbuffered: str):
        """Standard output that takes nothing is a problem like others, whenever the system tells."""
        cli = Cli(tmp_path)
        cli.environment["PYTHONUNBUFFERED"] = unbuffered
        with Path("/dev/full").open("wb") as full:
            process = cli.start(*command, out=full, err=subprocess.PIPE)
            _, err = process.communicate(timeout=60)
        assert process.returncode == 1
        assert b"Standard output or a temporary file: No space left on device." in err
        assert b"Traceback" not in err
        assert b"Exception ignored" not in err

    def test_a_temporary_file_without_room(self, cli: Cli, tmp_path: Path):
        """Where a file that is converted on its way has no room, the message says why."""
        rows = [{"instruction": f"Which {n}?", "output": "this " * 99} for n in range(99)]
        files = [str(tmp_path / name) for name in ("ours.json", "theirs.json")]
        for file in files:
            Path(file).write_text(json.dumps(rows))
        convert = ("batch", "run", files[0], "--baseline", files[1])
        ended = subprocess.run(
            ["/bin/bash", "-c", 'ulimit -f 8; "$@"', "-", sys.executable, "-m", "producer.cli", *convert],
            cwd=ROOT,
            env=cli.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 1
        assert "Standard output or a temporary file: File too large." in ended.stderr
        assert "Traceback" not in ended.stderr


class TestDoctor:
    def test_where_all_is_well(self, cli: Cli, service: Service):
        """Every part is looked at and found well."""
        ended = cli("doctor", "--json", "--data-dir", service.folder, engine="simulated")
        assert ended.status == 0
        assert {finding["part"] for finding in ended.objects} == {
            *("embedded stack", "model", "api", "postgres", "tables", "workers", "docket", "dispatcher", "callbacks"),
            *("logins", "postgres' log", "redis"),
        }
        assert all(finding["ok"] for finding in ended.objects)

    def test_where_nothing_runs(self, cli: Cli, tmp_path: Path):
        """Each part that is missing is named with what to do about it."""
        nowhere = {"database_url": "postgresql://127.0.0.1:9/x", "redis_url": "redis://127.0.0.1:9/0"}
        ended = cli("doctor", "--data-dir", tmp_path, model=tmp_path / "no.gguf", **nowhere)
        assert ended.status == 1
        assert "no.gguf: No such file or directory" in ended.out
        for part, advice in {"api": "nightcourt up", "postgres": "NIGHTCOURT_DATABASE_URL", "redis": "reached"}.items():
            assert re.search(rf"^wrong {part} .*{advice}", ended.out, re.MULTILINE)


class TestMigrate:
    def test_without_a_database(self, tmp_path: Path):
        """Where no database is named that is said, and that the embedded stack's own needs nothing."""
        cli = Cli(tmp_path)
        cli.environment["PGPORT"] = str(free_port())
        ended = cli("migrate")
        assert ended.status == 1
        assert "NIGHTCOURT_DATABASE_URL is not set" in ended.err
        assert "`nightcourt up` migrates its own tables" in ended.err
        named = cli("migrate", database_url="postgresql://127.0.0.1/nightcourt")
        assert named.status == 3
        assert "Is NIGHTCOURT_DATABASE_URL right" in named.err


class TestUp:
    @pytest.mark.parametrize(("command", "content"), [("up", None), ("demo", b"not a model")])
    def test_a_model_that_cannot_be(self, cli: Cli, tmp_path: Path, command: str, content: bytes | None):
        """A model that is missing, or a file of another kind, is told before anything is started."""
        model = tmp_path / "model.gguf"
        if content is not None:
            model.write_bytes(content)
        ended = cli(command, "--data-dir", tmp_path / "data", model=model)
        assert ended.status == 1
        assert f"NIGHTCOURT_MODEL: {model}" in ended.err
        assert processes_of(tmp_path) == []

    def test_what_it_says_when_it_is_ready(self, cli: Cli, tmp_path: Path):
        """What judges, what is no setting, and commands that find it; the tenant of its own key cannot be purged."""
        data = tmp_path / "data"
        with running(cli, tmp_path, "up", "--data-dir", data, "--port", 0, engine="simulated", api_port=1) as up:
            said = up.until("Ctrl-C ends it")
            assert "NIGHTCOURT_API_PORT is no setting" in said
            assert "Judge: simulated; it asks no model" in said
            assert f"nightcourt submit examples/first-docket.jsonl --data-dir {data}" in said
            refused = cli("purge", "--tenant", "default", "--yes", "--data-dir", data)
            assert refused.status == 2
            assert "the embedded stack's own key is of the tenant default" in re.sub(r"[│\s]+", " ", refused.err)

    def test_a_port_that_is_taken(self, cli: Cli, service: Service, tmp_path: Path):
        """The port is named, and nothing is left running."""
        port = service.url.rpartition(":")[2]
        ended = cli("up", "--port", port, "--data-dir", tmp_path / "data", engine="simulated")
        assert ended.status == 1
        assert f"port {port} on 127.0.0.1 is busy" in ended.err
        assert processes_of(tmp_path) == []

    @pytest.mark.parametrize("port", [0, None], ids=["any port", "its port"])
    def test_a_folder_that_is_taken(self, cli: Cli, service: Service, port: int | None):
        """A second stack on the same data is refused and the first is named, on whichever port it was to listen."""
        port = int(service.url.rpartition(":")[2]) if port is None else port
        ended = cli("up", "--data-dir", service.folder, "--port", port, engine="simulated")
        assert ended.status == 1
        assert f"already running (pid {service.pid}) on {service.folder}" in ended.err

    def test_a_folder_that_cannot_be(self, cli: Cli, service: Service):
        """It is told of before a port that is busy, too."""
        ended = cli("up", "--data-dir", "/proc/nope", "--port", service.url.rpartition(":")[2], engine="simulated")
        assert ended.status == 1
        assert "/proc/nope cannot hold nightcourt's data" in ended.err

    @pytest.mark.parametrize(
        ("number", "when", "ends"),
        [
            (signal.SIGTERM, "Ready", (0, "Ended.")),
            (signal.SIGINT, "postgres", (130, "Ended before it was ready.")),
        ],
        ids=["ready", "starting"],
    )
    def test_it_ends_as_it_is_asked_to(
        self, cli: Cli, tmp_path: Path, number: signal.Signals, when: str, ends: tuple[int, str]
    ):
        """By Ctrl-C or SIGTERM it ends with 0 where it was ready, else with 130, and takes every process with it."""
        data = tmp_path / "data"
        with running(cli, tmp_path, "up", "--data-dir", data, "--port", 0, engine="simulated") as up:
            up.until(when)
            status, said = up.end(number)
        assert (status, said.splitlines()[-1]) == ends, said
        assert "\x1b" not in said
        assert "Traceback" not in said
        assert processes_of(tmp_path) == []


class TestDemo:
    def test_an_interrupted_demo(self, cli: Cli, tmp_path: Path):
        """Ctrl-C in the middle ends with 130, says what becomes of the rest, and leaves no process behind."""
        slow = {"engine": "simulated", "simulated_tokens_per_second": 1500}
        with running(cli, tmp_path, "demo", "--data-dir", tmp_path / "data", **slow) as demo:
            demo.until(" gold ")
            status, said = demo.end(signal.SIGINT)
        assert status == 130, said
        assert "what was filed is judged when the stack runs again" in said
        assert "Traceback" not in said
        assert processes_of(tmp_path) == []
