"""The embedded stack as a process tree: it comes up, stays up, and ends without a trace, whatever ends it."""

import errno
import http.server
import json
import os
import signal
import stat
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from sqlalchemy import text
from support.processes import processes_of
from support.waiting import wait_until

from infra.local import LocalStackError, part, supervisor
from infra.local import folder as data_folder
from infra.local.child import Child, start_child
from infra.local.folder import DataFolder, StackInfo, running_stack
from infra.local.ports import own_receivers
from infra.local.supervisor import Stack
from infra.local.tree import Program
from infra.settings import Settings
from producer.cli.dashboard import dashboard
from producer.cli.database import open_database
from producer.cli.doctor import examine
from schemas.keys import SpelledKey, spell_key
from schemas.problems import Problem

# Stands for the API: ready as soon as it listens.
API = """
import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"status": "ready"}')
    def log_message(self, *arguments):
        pass
http.server.HTTPServer(("127.0.0.1", int(os.environ["NIGHTCOURT_PORT"])), Handler).serve_forever()
"""
SLEEPER = "import time; time.sleep(600)"
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
STUBBORN = DEAF + SLEEPER
# Connects to what it was told of, as the real one does.
MIGRATE = """
import os, psycopg, redis
psycopg.connect(os.environ["NIGHTCOURT_DATABASE_URL"]).execute("SELECT 1")
redis.Redis.from_url(os.environ["NIGHTCOURT_REDIS_URL"]).ping()
"""
# A supervisor in a process of its own that says what happens, one JSON object a line.
DRIVER = """
import json, sys
from pathlib import Path
from infra.local.supervisor import Stack, run_stack
from infra.local.tree import Program
from infra.settings import Settings

def say(kind, /, **fields):
    print(json.dumps({"kind": kind, **fields}), flush=True)

folder, *programs = map(json.loads, sys.argv[1:])
migrate, *applications = [Program(*each) for each in programs]
options = {"port": 0, "on_event": say, "migrate": migrate, "applications": applications, "fast": True}
settings = Settings(engine="simulated")
"""
RUN = "run_stack(Stack(settings, Path(folder), **options))"
BLOCK = """
try:
    with Stack(settings, Path(folder), **options) as stack:
        while not stack.join(3600):
            pass
except KeyboardInterrupt:
    pass
"""


def program(name: str, code: str, grace_seconds: float = 5.0) -> Program:
    """A small program in the place of a real one."""
    return Program(name, (sys.executable, "-c", code), grace_seconds)


def stack(
    folder: Path,
    *,
    worker: str = SLEEPER,
    migrate: str = MIGRATE,
    settings: Settings | None = None,
    **options: object,
) -> Stack:
    """A stack of real services and small programs, in this process."""
    return Stack(
        settings or Settings(engine="simulated"),
        folder,
        migrate=program("migrate", migrate),
        applications=[program("api", API), program("worker", worker)],
        fast=True,
        **{"port": 0, **options},  # type: ignore[arg-type]
    )


class Driver:
    """A supervisor in a process of its own."""

    def __init__(
        self, folder: Path, *, worker: str = SLEEPER, grace: float = 5.0, migrate: str = MIGRATE, how: str = RUN
    ) -> None:
        programs = [program("migrate", migrate), program("api", API), program("worker", worker, grace)]
        said = [[each.name, each.command, each.grace_seconds] for each in programs]
        command = [sys.executable, "-c", DRIVER + how, json.dumps(str(folder)), *map(json.dumps, said)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.heard: list[dict[str, object]] = []

    def hear(self, kind: str, **fields: object) -> dict[str, object]:
        """Read what it says until it has said that."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            event = json.loads(line)
            self.heard.append(event)
            if event["kind"] == kind and fields.items() <= event.items():
                return dict(event)
        raise AssertionError(f"it ended without saying {kind} {fields}, but {self.heard}")

    def end(self) -> int:
        """Hear it out."""
        assert self.process.stdout is not None
        self.heard += [json.loads(line) for line in self.process.stdout]
        return self.process.wait(30)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A data folder, of which no process may be left."""
    yield tmp_path / "data"
    left = processes_of(tmp_path)
    assert not left


@pytest.fixture
def drive(folder: Path) -> Iterator[Callable[..., Driver]]:
    """Starts supervisors on the data folder, none of which outlives the test."""
    drivers: list[Driver] = []

    def start(**options: Any) -> Driver:
        drivers.append(Driver(folder, **options))
        return drivers[-1]

    yield start
    for driver in drivers:
        if driver.process.poll() is None:
            driver.process.kill()
        driver.process.wait()
        if driver.process.stdout is not None:
            driver.process.stdout.close()


def test_it_comes_up_in_order_and_ends_in_reverse(folder: Path, drive: Callable[..., Driver]) -> None:
    """Services, migration, applications; then a Ctrl-C, the same backwards, exit status 0 and no trace."""
    driver = drive()
    driver.hear("ready")
    info = running_stack(folder)
    assert info is not None
    assert info.pid == driver.process.pid
    driver.process.send_signal(signal.SIGINT)
    assert driver.end() == 0
    assert [event["name"] for event in driver.heard if event["kind"] == "starting"] == [
        "postgres",
        "redis",
        "migrate",
        "api",
        "worker",
    ]
    stopped = [event["name"] for event in driver.heard if event["kind"] == "stopped"]
    assert set(stopped[:2]) == {"api", "worker"}
    assert stopped[2:] == ["redis", "postgres"]
    assert not processes_of(folder)
    assert running_stack(folder) is None
    assert not (folder / "stack.json").exists()
    assert "database system is shut down" in (folder / "logs" / "postgres.log").read_text()


def test_nothing_in_the_folder_is_for_others_and_no_secret_is_in_sight(folder: Path) -> None:
    """Every file and folder is its owner's alone, and no argument and no event holds a password."""
    events: list[str] = []
    with stack(folder, on_event=lambda kind, **fields: events.append(f"{kind} {fields}")) as running:
        passwords = [(folder / name / "password").read_text().strip() for name in ("postgres", "redis")]
        shown = "\n".join(events) + repr(running.info)
        for process in psutil.Process().children(recursive=True):
            shown += " ".join(process.cmdline())
        for path in [folder, *folder.iterdir(), *(folder / "logs").iterdir()]:
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
            if path.suffix == ".log":
                shown += path.read_text()
        assert not [password for password in passwords if password in shown]


@pytest.mark.parametrize(
    ("kind", "name", "sig"),
    [
        ("starting", "postgres", signal.SIGINT),
        ("starting", "redis", signal.SIGTERM),
        ("starting", "migrate", signal.SIGINT),
        ("started", "api", signal.SIGTERM),
        ("starting", "worker", signal.SIGHUP),
    ],
)
def test_it_ends_well_in_the_middle_of_its_start(
    folder: Path, drive: Callable[..., Driver], kind: str, name: str, sig: signal.Signals
) -> None:
    """A signal at any moment of the start ends it, exit status 0, with nothing left."""
    driver = drive()
    driver.hear(kind, name=name)
    time.sleep(0.05)
    driver.process.send_signal(sig)
    assert driver.end() == 0
    assert not processes_of(folder)


def test_a_second_signal_hurries(folder: Path, drive: Callable[..., Driver]) -> None:
    """A worker that will not end is killed at the second Ctrl-C, and Postgres still ends properly."""
    driver = drive(worker=STUBBORN, grace=240.0)
    driver.hear("ready")
    driver.process.send_signal(signal.SIGINT)
    driver.hear("stopped", name="api")
    began = time.monotonic()
    driver.process.send_signal(signal.SIGINT)
    assert driver.end() == 0
    assert time.monotonic() - began < 120
    assert "hurrying" in [event["kind"] for event in driver.heard]
    assert "database system is shut down" in (folder / "logs" / "postgres.log").read_text()


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM])
def test_a_block_that_is_interrupted_ends_well(folder: Path, drive: Callable[..., Driver], sig: signal.Signals) -> None:
    """Where the stack serves a `with` block, two signals at once end it as cleanly as one."""
    driver = drive(how=BLOCK)
    driver.hear("ready")
    driver.process.send_signal(sig)
    driver.process.send_signal(sig)
    assert driver.end() == 0
    assert [event["name"] for event in driver.heard if event["kind"] == "stopped"][2:] == ["redis", "postgres"]
    assert not processes_of(folder)


def test_a_killed_supervisor_takes_everything_with_it(folder: Path, drive: Callable[..., Driver]) -> None:
    """After kill -9 of the supervisor all of it is gone within seconds, and the next start finds its data."""
    driver = drive()
    driver.hear("ready")
    driver.process.kill()
    driver.process.wait()
    assert running_stack(folder) is None
    assert (folder / "stack.json").exists()
    wait_until(lambda: not processes_of(folder), within=60, what="all processes to be gone")
    again = drive()
    again.hear("ready")
    again.process.send_signal(signal.SIGTERM)
    assert again.end() == 0


def test_a_start_right_after_the_kill_succeeds(folder: Path, drive: Callable[..., Driver]) -> None:
    """Whoever starts it again at once need not wait for the old processes to be gone."""
    driver = drive()
    driver.hear("ready")
    driver.process.kill()
    driver.process.wait()
    again = drive()
    again.hear("ready")
    again.process.send_signal(signal.SIGTERM)
    assert again.end() == 0


def test_a_killed_part_is_started_again(folder: Path) -> None:
    """Whether worker, Redis or Postgres, what is killed comes back, where the others were told that it is."""
    events: list[tuple[str, dict[str, object]]] = []
    with stack(folder, on_event=lambda kind, **fields: events.append((kind, fields))) as running:
        before = running.info
        pids = {fields["name"]: fields["pid"] for kind, fields in events if kind == "started"}
        for name in ("worker", "redis", "postgres"):
            pid = pids[name]
            assert isinstance(pid, int)
            os.kill(pid, signal.SIGKILL)

        def again() -> set[object]:
            return {fields["name"] for kind, fields in events if kind == "started" and fields["again"]}

        wait_until(lambda: again() == {"worker", "redis", "postgres"}, within=60, what="all to be back")
        reasons = {fields["name"]: fields["reason"] for kind, fields in events if kind == "died"}
        assert reasons["worker"] == "by signal 9 (Killed)"
        # The same URLs: a migration connects to both.
        done = subprocess.run(
            [sys.executable, "-c", MIGRATE],
            env={"NIGHTCOURT_DATABASE_URL": before.database_url, "NIGHTCOURT_REDIS_URL": before.redis_url},
            check=False,
        )
        assert done.returncode == 0


def test_a_part_that_will_not_live_fails_the_start(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five deaths in a row before the stack was ever ready end it, with what the part said last."""
    monkeypatch.setattr(part, "_FIRST_DELAY", 0.01)
    monkeypatch.setattr(part, "_LAST_DELAY", 0.01)
    slow_api = "import time; time.sleep(600)"
    broken = Stack(
        Settings(engine="simulated"),
        folder,
        port=0,
        migrate=program("migrate", ""),
        applications=[program("api", slow_api), program("worker", "raise SystemExit('no such model')")],
        fast=True,
    )
    with pytest.raises(LocalStackError, match=r"worker ended 5 times in a row .* with status 1:\nno such model"):
        broken.__enter__()
    assert not processes_of(folder)


def test_a_failed_migration_fails_the_start(folder: Path) -> None:
    """The error says what the migration said, and nothing is left running."""
    with pytest.raises(LocalStackError, match=r"(?s)brought up to date: migrate ended with status 1:.*wrong head"):
        stack(folder, migrate="raise SystemExit('wrong head')").__enter__()


def test_a_start_takes_as_long_as_a_migration(folder: Path) -> None:
    """The time to be ready counts from when all is started: before that Postgres may recover, and tables change."""
    with stack(folder, migrate="import time; time.sleep(10)", ready_within=10.0) as running:
        assert running.ready(0)


@pytest.mark.parametrize("name", ["workers", "postgres"])
def test_a_folder_that_cannot_be_used_is_named(folder: Path, name: str) -> None:
    """What another user left in it, say: the message has the data folder and what in it is wrong, and is no trace."""
    DataFolder(folder).close()
    (folder / name).write_text("no folder")
    with pytest.raises(LocalStackError, match=rf"^{folder} cannot hold .*: {folder / name}\): .*--data-dir"):
        stack(folder).__enter__()


def test_a_folder_on_a_full_disk_is_named(folder: Path) -> None:
    """Where not even the lock can be written, as on a full disk."""
    folder.mkdir()
    (folder / "nightcourt.lock").symlink_to("/dev/full")
    with pytest.raises(LocalStackError, match=rf"^{folder} cannot hold nightcourt's data \(.*--data-dir"):
        DataFolder(folder)


def test_a_part_that_cannot_be_started_again_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many processes at the moment of its death take nothing else down: it is started once there is room."""
    monkeypatch.setattr(part, "_FIRST_DELAY", 0.01)
    monkeypatch.setattr(part, "_LAST_DELAY", 0.01)
    reasons: list[object] = []
    refusals = iter([None, OSError(errno.EAGAIN, "Resource temporarily unavailable")])

    def launch() -> Child:
        if (refusal := next(refusals, None)) is not None:
            raise refusal
        return start_child("sleeper", [sys.executable, "-c", SLEEPER], log=tmp_path / "log")

    def hear(_kind: str, /, **fields: object) -> None:
        reasons.extend([fields["reason"]] if "reason" in fields else [])

    sleeper = part.Part("sleeper", launch, log=tmp_path / "log", report=hear)
    sleeper.start()
    assert sleeper.running is not None
    sleeper.running.kill()

    def lives_again() -> bool:
        sleeper.look_after(was_ready=True)
        return sleeper.running is not None and len(reasons) == 2

    wait_until(lives_again, within=60, what="its next life")
    assert reasons == ["by signal 9 (Killed)", "[Errno 11] Resource temporarily unavailable"]
    sleeper.running.kill()


def test_logs_stay_small_while_it_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has grown large is cut, and what was in it kept once; who writes to it writes on."""
    monkeypatch.setattr(data_folder, "_LOG_BYTES", 10_000)
    monkeypatch.setattr(supervisor, "_TRIM_SECONDS", 0.2)
    said = "import itertools, time\nfor line in itertools.count():\n    print(line, flush=True)\n    time.sleep(0.0001)"
    with stack(folder, worker=said):
        log, kept = folder / "logs" / "worker.log", folder / "logs" / "worker.log.1"
        wait_until(kept.exists, within=60, what="the log to be cut")
        first = kept.read_bytes()
        wait_until(lambda: kept.read_bytes() != first, within=60, what="the log to be cut again")
        assert stat.S_IMODE(kept.stat().st_mode) == 0o600
        assert b"\0" not in wait_until(log.read_bytes, within=60, what="the worker to write on")


def test_postgres_has_room_for_the_workers(folder: Path) -> None:
    """Each takes up to fifteen connections, and a hundred in all are too few for eight of them."""
    workers = [Program(f"worker-{each}", (sys.executable, "-c", SLEEPER), 5.0, "worker") for each in range(8)]
    with (
        Stack(
            Settings(engine="simulated"),
            folder,
            port=0,
            migrate=program("migrate", MIGRATE),
            applications=[program("api", API), *workers],
            fast=True,
        ) as running,
        psycopg.connect(running.info.database_url) as connection,
    ):
        assert connection.execute("SELECT current_setting('max_connections')::int").fetchone() == (8 * 15 + 20,)


def test_the_applications_are_those_that_the_settings_say() -> None:
    """Simulated workers, one for each core that this process may use, and as long to end as callbacks may take."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        programs = Stack(Settings(engine="simulated", callback_deadline_seconds=77.0))._applications
    finally:
        os.sched_setaffinity(0, allowed)
    assert [each.name for each in programs] == ["api", "dispatcher", "worker", "callbacks"]
    assert programs[-1].grace_seconds > 77.0


def test_libpqs_variables_are_not_for_the_embedded_stack(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has set them for another database starts a stack, and uses its Postgres from commands, all the same."""
    DataFolder(folder).close()
    (folder / "key").write_text(spell_key(SpelledKey(uuid.uuid4(), "x" * 43)))
    monkeypatch.setenv("PGSERVICE", "elsewhere")
    with stack(folder):
        monkeypatch.setenv("PGSERVICE", "elsewhere")
        with open_database(folder, application="test") as database, database.connect() as connection:
            assert connection.execute(text("SELECT 1")).scalar() == 1
        monkeypatch.setenv("PGSERVICE", "elsewhere")
        found = {each.part: each for each in examine(Settings(engine="simulated", data_dir=folder))}
        assert found["postgres"].ok
        monkeypatch.setenv("PGSERVICE", "elsewhere")
        with pytest.raises(Problem, match=r"cannot be used just now \(ProgrammingError\)"):  # of the tables missing
            dashboard(folder)


def test_a_second_start_on_the_same_folder_is_refused(folder: Path) -> None:
    """It says who runs there and what to do, and touches nothing."""
    with DataFolder(folder) as held:
        with pytest.raises(LocalStackError) as refused:
            DataFolder(folder)
        assert str(refused.value) == (
            f"already running (pid {os.getpid()}) on {held.path}: stop it, or choose another folder with --data-dir"
        )
    DataFolder(folder).close()


def test_stale_files_say_nothing(folder: Path) -> None:
    """What a killed stack left behind is not believed, not even when its pid is alive or comes back."""
    assert running_stack(folder) is None
    stale = StackInfo.model_validate(
        {
            "pid": os.getpid(),
            "api_url": "http://127.0.0.1:1",
            "database_url": "postgresql://",
            "redis_url": "redis://",
            "started_at": "2026-01-01T00:00:00Z",
        }
    )
    held = DataFolder(folder)
    held.publish(stale)
    assert running_stack(folder) == stale
    left = (folder / "stack.json").read_text()
    held.close()
    (folder / "stack.json").write_text(left)
    assert running_stack(folder) is None
    with DataFolder(folder):
        # It is still starting, and what the file said belonged to the one before.
        assert running_stack(folder) is None


def test_a_folder_full_of_other_things_is_refused(tmp_path: Path) -> None:
    """A slip of the finger does not scatter databases over somebody's home."""
    (tmp_path / "letter.txt").write_text("Dear judge,")
    with pytest.raises(LocalStackError, match="not made by nightcourt"):
        DataFolder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_a_busy_port_is_an_error_only_where_it_was_asked_for(folder: Path) -> None:
    """The port that was asked for has to be free; the usual one gives way to another."""
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as other:
        busy = other.server_port
        with pytest.raises(LocalStackError, match=rf"port {busy} on 127.0.0.1 is busy: .*--port"):
            stack(folder, port=busy).start()
        asked = Settings(engine="simulated", port=busy)
        with pytest.raises(LocalStackError, match=rf"port {busy} on 127.0.0.1 is busy"):
            Stack(asked, folder).start()
        usual = Settings(engine="simulated")
        usual.__dict__["port"] = busy  # as if it were the usual one, which others may be using just now: nobody set it
        with stack(folder, port=None, settings=usual) as running:
            assert not running.info.api_url.endswith(f":{busy}")


def test_children_see_the_callers_settings_and_none_of_libpqs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the caller set and where things are reach the children; a PGSSLMODE for another database does not."""
    monkeypatch.setenv("PGSSLMODE", "require")
    monkeypatch.setenv("SOMETHING_ELSE", "stays")
    worker = (
        "import json, os, pathlib\n"
        "seen = pathlib.Path(os.environ['NIGHTCOURT_DATA_DIR'], 'seen')\n"  # passwords among it: no line of a log
        "seen.with_suffix('.new').write_text(json.dumps(dict(os.environ)))\n"
        "seen.with_suffix('.new').rename(seen)\n" + SLEEPER
    )
    with stack(folder, worker=worker):
        wait_until((folder / "seen").exists, within=60, what="the worker's environment")
        seen = json.loads((folder / "seen").read_text())
    assert seen["SOMETHING_ELSE"] == "stays"
    assert "PGSSLMODE" not in seen
    assert seen["NIGHTCOURT_ENGINE"] == "simulated"
    assert seen["NIGHTCOURT_DATABASE_URL"].startswith("postgresql://nightcourt:")
    assert seen["NIGHTCOURT_DATA_DIR"] == str(folder)
    assert seen["NIGHTCOURT_CALLBACK_ALLOW"] == "127.0.0.1,::1,localhost"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.1"])  # noqa: S104 (nothing is bound)
def test_callbacks_stay_out_of_this_machine_where_others_can_file_work(host: str) -> None:
    """An API that other machines reach lets nobody on them send requests to what listens here for this one alone."""
    assert own_receivers(host) == ""


def lives(pid: int) -> bool:
    """Tell whether a process runs; one that has ended may be there until whoever inherited it looks."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_child_leaves_no_descendants(tmp_path: Path) -> None:
    """A child that ignores SIGTERM is killed, with its children, also those that left its group."""
    code = (
        DEAF + "import subprocess; subprocess.Popen(['/bin/sleep', '61']); "
        "subprocess.Popen(['/bin/sleep', '62'], start_new_session=True); " + SLEEPER
    )
    child = start_child("stubborn", [sys.executable, "-c", code], log=tmp_path / "log")
    process = psutil.Process(child.pid)
    family = wait_until(lambda: len(process.children()) == 2 and process.children(), within=60, what="both children")
    assert child.stop(signal.SIGTERM, 0.2) == -signal.SIGKILL
    wait_until(lambda: not any(lives(each.pid) for each in family), within=60, what="the children to be gone")


def test_a_group_is_cleared_when_its_leader_ends_by_itself(tmp_path: Path) -> None:
    """What a child started and left running in its group goes when it goes."""
    code = "import subprocess; print(subprocess.Popen(['/bin/sleep', '63']).pid, flush=True)"
    child = start_child("careless", [sys.executable, "-c", code], log=tmp_path / "log")
    assert child.wait(60) == 0
    left = int(child.tail())
    wait_until(lambda: not lives(left), within=60, what="what it left behind to be gone")
