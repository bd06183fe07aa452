"""`nightcourt batch run` over a night in which the service is away, files change, and Ctrl-C is pressed."""

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from support.gate import Gate, gated
from support.program import BATCH_ID, Cli, Running, running
from support.rows import PAIR, read, write
from support.service import Service
from support.waiting import wait_until


@contextmanager
def watched(cli: Cli, service: Service, folder: Path, file: Path, *options: object) -> Iterator[tuple[Running, Gate]]:
    """A run whose batch is held, behind a gateway."""
    with gated(service.url) as gate:
        asked = ("batch", "run", file, "--server", gate.url, *options)
        service.signal("worker", signal.SIGSTOP)  # nothing of it is judged before it is held
        with running(cli, folder, *asked, key=service.key) as run:
            try:
                batch_id = BATCH_ID.search(run.until("Filed as"))[0]
                service.http.post(f"/v1/batches/{batch_id}/pause").raise_for_status()
            finally:
                service.signal("worker", signal.SIGCONT)
            yield run, gate
            service.http.post(f"/v1/batches/{batch_id}/resume").raise_for_status()
            assert run.process.wait(timeout=120) == 0, run.said.read_text()


def night(name: str) -> list[dict]:
    """Pairs that take seconds to judge. Those of another name have been asked nowhere, so no verdict is reused."""
    return [{**PAIR, "prompt": f"{name} {n}? {'more ' * 200}", "label": "A"} for n in range(400)]


class TestNights:
    def test_the_service_is_away_for_a_while(self, cli: Cli, service: Service, tmp_path: Path):
        """The command says so once and goes on; in the morning the results are there."""
        file = write(tmp_path / "night.jsonl", night("Away"))
        with watched(cli, service, tmp_path, file) as (run, gate):
            gate.away = 502
            said = run.until("Trying until it answers")
            assert f"{gate.url}/v1/batches/" in said
            before = len(gate.seen)
            wait_until(lambda: len(gate.seen) > before + 6, within=60, what="it has tried again and again")
            gate.away = 0
        assert run.said.read_text().count("Trying until it answers") == 1
        assert len(read(tmp_path / "night.results.jsonl")) == 400

    def test_what_does_not_pass_ends_the_watching(self, cli: Cli, service: Service, tmp_path: Path):
        """Whatever it is, the command says which batch goes on, and how to come back to it."""
        file = write(tmp_path / "refused.jsonl", [{**PAIR, "prompt": "Refused?"}])
        late = ("--not-before", "2999-01-01T00:00+00:00")
        with (
            gated(service.url) as gate,
            running(cli, tmp_path, "batch", "run", file, "--server", gate.url, *late, key=service.key) as run,
        ):
            batch_id = BATCH_ID.search(run.until("Filed as"))[0]
            gate.away = 403
            assert run.process.wait(timeout=120) == 3
            assert f"{batch_id} is filed. It goes on. The same command comes back to it" in run.said.read_text()
        service.http.post(f"/v1/batches/{batch_id}/cancel").raise_for_status()

    def test_single_pairs_are_waited_for_too(self, cli: Cli, service: Service, tmp_path: Path):
        """`submit` goes on in the same way, for as long as its --timeout lets it."""
        file = write(tmp_path / "few.jsonl", [{**PAIR, "prompt": f"Single {n}?"} for n in range(30)])
        with gated(service.url) as gate:
            asked = ("submit", file, "--server", gate.url)
            with running(cli, tmp_path, *asked, key=service.key) as run:
                wait_until(lambda: any(each.startswith("GET") for each in gate.seen), within=60, what="it waits")
                gate.away = 502
                run.until("Trying until it answers")
                gate.away = 0
                assert run.process.wait(timeout=120) == 0, run.said.read_text()

    def test_the_file_is_another_by_the_morning(self, cli: Cli, service: Service, tmp_path: Path):
        """Results are written all the same, and held against no label of other lines."""
        file = write(tmp_path / "edited.jsonl", rows := night("Edited"))
        with watched(cli, service, tmp_path, file, "--json") as (run, _):
            write(file, [{**row, "label": "B"} for row in reversed(rows)])
        *_, said, summary, _ = run.said.read_text().splitlines()
        assert f"{file} was changed after it was filed" in said
        assert (json.loads(summary)["accuracy"], json.loads(summary)["succeeded"]) == (None, 400)
        assert len(read(tmp_path / "edited.results.jsonl")) == 400

    def test_ctrl_c_while_the_batch_is_made(self, cli: Cli, service: Service, tmp_path: Path):
        """Whether it was made is not known; the same command finds it, and files nothing twice."""
        file = write(tmp_path / "once.jsonl", [{**PAIR, "prompt": "Once?"}])
        with gated(service.url) as gate:
            asked = ("batch", "run", file, "--server", gate.url, "--metadata", "of=once")
            for kept in ("unheard", "unanswered"):
                setattr(gate, kept, "POST /v1/batches")
                before = gate.seen.count("POST /v1/batches")
                with running(cli, tmp_path, *asked, key=service.key) as run:
                    wait_until(
                        lambda: gate.seen.count("POST /v1/batches") > before,  # noqa: B023 - called at once
                        within=60,
                        what="the batch is asked for",
                    )
                    status, said = run.end(signal.SIGINT)
                assert status == 130
                assert "it may be there. The same command makes sure of it." in said
                assert "nothing was filed" not in said
                setattr(gate, kept, "")
            ended = cli(*asked, key=service.key)
            again = cli(*asked, key=service.key)
            assert gate.seen.count("POST /v1/files") == 1
        assert (ended.status, again.status) == (0, 0), ended.err
        assert "the file had arrived before" in ended.err
        page = service.http.get("/v1/batches", params={"limit": 100}).json()["data"]
        [made] = [each["id"] for each in page if (each["metadata"] or {}).get("of") == "once"]
        assert f"Filed as {made}" in ended.err
        assert f"Back at {made}" in again.err

    def test_a_file_that_was_deleted_since(self, cli: Cli, service: Service, tmp_path: Path):
        """What arrived and was deleted before a batch was made of it is sent anew."""
        file = write(tmp_path / "gone.jsonl", [{**PAIR, "prompt": "Gone?"}])
        with gated(service.url) as gate:
            asked = ("batch", "run", file, "--server", gate.url)
            gate.unheard = "POST /v1/batches"
            with running(cli, tmp_path, *asked, key=service.key) as run:
                wait_until(lambda: gate.unheard in gate.seen, within=60, what="the batch is asked for")
                run.end(signal.SIGINT)
            with psycopg.connect(service.database_url) as database:
                database.execute("DELETE FROM files WHERE filename = 'gone.jsonl'")
            gate.unheard = ""
            ended = cli(*asked, key=service.key)
        assert ended.status == 0, ended.err
        assert "Filed as" in ended.err
        assert gate.seen.count("POST /v1/files") == 2
