"""What happens twice and counts once: `nightcourt batch run` begun again, beside itself, and interrupted."""

import fcntl
import json
import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from support.gate import gated
from support.program import Cli, running
from support.rows import PAIR, write
from support.service import Service
from support.waiting import wait_until
from typer.testing import CliRunner

from producer.cli.app import make_app
from schemas.problems import BAD_INPUT_FILE


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """The program, told of no service."""
    return Cli(tmp_path_factory.mktemp("home"))


class TestFiles:
    @pytest.mark.parametrize("option", [(), ("--baseline",)], ids=["FILE", "BASELINE"])
    @pytest.mark.parametrize(
        ("name", "says"),
        [("pipe", "it is no regular file"), (".", "it is no regular file"), ("no/pairs.jsonl", "No such file")],
    )
    def test_what_cannot_be_read_again(self, tmp_path: Path, name: str, says: str, option: tuple[str, ...]):
        """A pipe is not begun, a slip is told as one of the file, and no server is asked."""
        os.mkfifo(tmp_path / "pipe")
        typed = [*((str(write(tmp_path / "pairs.jsonl", [PAIR])),) if option else ()), *option, str(tmp_path / name)]
        ended = CliRunner().invoke(make_app(["batch"]), ["batch", "run", *typed])
        assert ended.exception.kind is BAD_INPUT_FILE
        assert ended.exception.detail.startswith(f"{tmp_path / name}: {says}")

    def test_a_name_of_nothing(self):
        """It is the folder at hand, and no pair."""
        ended = CliRunner().invoke(make_app(["batch"]), ["batch", "run", ""])
        assert ended.exception.detail.startswith(".: it is no regular file")

    def test_a_file_that_is_cut_while_it_is_sent(self, alone: Cli, tmp_path: Path):
        """It is told as what it is, of the input."""
        file = write(tmp_path / "pairs.jsonl", [PAIR])
        with file.open("ab") as more:
            more.write(f"{json.dumps(PAIR | {'prompt': 'x' * 1000})}\n".encode() * 60_000)
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            running(
                alone, tmp_path, "batch", "run", file, "--server", f"http://127.0.0.1:{server.getsockname()[1]}"
            ) as run,
        ):
            connection, _ = server.accept()
            with connection:
                connection.recv(1)
                os.truncate(file, 1000)
                while connection.recv(1 << 20):
                    pass
            assert run.process.wait(timeout=60) == 1
        assert f"{file}: the file became shorter while it was sent. Nothing was filed." in run.said.read_text()


class TestRuns:
    def test_two_at_once_make_one_batch(self, alone: Cli, service: Service, tmp_path: Path):
        """The second waits for the first, and goes on where that ended."""
        file = write(tmp_path / "pairs.jsonl", [PAIR | {"prompt": "Twice?"}])
        for name in ("second", "third"):
            (tmp_path / name).mkdir()
        with gated(service.url) as gate:
            asked = ("batch", "run", file, "--server", gate.url)
            gate.unheard = sent = "POST /v1/files"
            with running(alone, tmp_path, *asked, key=service.key) as first:
                wait_until(lambda: sent in gate.seen, within=60, what="the first sends the file")
                gate.unheard = ""
                with running(alone, tmp_path / "second", *asked, key=service.key) as second:
                    second.until("The same command runs already; waiting until it has filed the batch.")
                    assert gate.seen.count(sent) == 1
                    with running(alone, tmp_path / "third", *asked, key=service.key) as third:
                        third.until("The same command runs already")
                        assert third.end(signal.SIGINT)[1].endswith("Stopped waiting; the other one goes on.\n")
                    first.end(signal.SIGINT)
                    assert second.process.wait(timeout=60) == 0, second.said.read_text()
            assert gate.seen.count(sent) == 2
            assert "Back at batch_" in alone(*asked, key=service.key).err
            assert gate.seen.count(sent) == 2

    def test_coming_back_to_a_service_that_is_away(self, alone: Cli, service: Service, tmp_path: Path):
        """It is waited for, and whoever waits no longer is told which batch it is."""
        file = write(tmp_path / "pairs.jsonl", [PAIR | {"prompt": "Back?"}])
        with gated(service.url) as gate:
            asked = ("batch", "run", file, "--server", gate.url)
            [summary] = alone(*asked, "--json", key=service.key).objects
            gate.away = 502
            with running(alone, tmp_path, *asked, key=service.key) as run:
                run.until("Trying until it answers")
                status, said = run.end(signal.SIGINT)
            assert status == 130
            assert f"Stopped before {summary['batch_id']} was found again" in said
            assert "nothing was filed" not in said
            with running(alone, tmp_path, *asked, key=service.key) as run:
                run.until("Trying until it answers")
                gate.away = 0
                assert run.process.wait(timeout=60) == 0, run.said.read_text()

    def test_ctrl_c_in_the_moment_that_it_is_filed(self, alone: Cli, service: Service, tmp_path: Path):
        """It says how to come back, though it stands at telling of the batch still: into a pipe that is full."""
        file = write(tmp_path / "pairs.jsonl", [PAIR | {"prompt": "Just now?"}])
        read_end, write_end = os.pipe()
        room = fcntl.fcntl(write_end, fcntl.F_GETPIPE_SZ)
        with os.fdopen(read_end) as said, os.fdopen(write_end, "wb", buffering=0) as full:
            full.write(b"." * room)
            asked = ("batch", "run", file, "--server", service.url)
            process = alone.start(*asked, out=subprocess.DEVNULL, err=full, key=service.key)
            full.close()
            notes = Path(alone.environment["XDG_STATE_HOME"], "nightcourt", "batch-runs")

            def made() -> str | None:
                runs = [json.loads(each.read_bytes()) for each in notes.glob("*.json")]
                return next((run.get("batch") for run in runs if run["file"] == str(file.resolve())), None)

            batch = wait_until(made, within=60, what="the batch is made")
            process.send_signal(signal.SIGINT)
            told = said.read()
        assert process.wait(timeout=60) == 130
        process.stdin.close()
        assert "The same command" in told
        assert "nothing was filed" not in told
        ended = alone(*asked, key=service.key)
        assert (ended.status, f"Back at {batch}" in ended.err) == (0, True)

    def test_no_line_is_written_twice_into_a_pipe(self, alone: Cli, service: Service, tmp_path: Path):
        """Whatever its name: where results break off for good, the command ends, and says how to come back."""
        file = write(
            tmp_path / "pairs.jsonl", [PAIR | {"prompt": f"Piped {n}?", "custom_id": f"{n}"} for n in range(9)]
        )
        with gated(service.url) as gate:
            gate.cut = "/results"
            ended = alone("batch", "run", file, "--server", gate.url, "--output", "/dev/stdout", key=service.key)
        assert ended.status == 3
        assert "The same command comes back to it" in ended.err
        ids = [each["custom_id"] for each in ended.objects]
        assert ids == [f"{n}" for n in range(len(ids))]
        assert 0 < len(ids) < 9


def test_an_eval_that_ends_its_own_service(alone: Cli, tmp_path: Path):
    """It says when the batch goes on, and does not send anybody to a service that is gone."""
    file = write(tmp_path / "gold.jsonl", [PAIR | {"label": "A"}])
    asked = ("eval", "gold", file, "--data-dir", tmp_path / "data")
    slow = {"engine": "simulated", "simulated_tokens_per_second": 0.01}
    with running(alone, tmp_path, *asked, **slow) as run:
        run.until("0 of 1 judged", within=180)
        status, said = run.end(signal.SIGINT)
    assert status == 130
    assert "It goes on when the same command is given again." in said
    assert "nightcourt batch status" not in said
