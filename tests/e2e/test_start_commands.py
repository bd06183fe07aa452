"""The compose file's commands, run without docker: with the packages of their image alone, on a read-only system."""

import re
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url
from support.containers import Container
from support.deployed import DOCKERFILE, ROOT, compose, stages
from support.keys import bearer
from support.waiting import wait_until
from typer.main import get_command

from infra.environment import child_environment
from infra.local.ports import free_port
from infra.local.postgres import Postgres
from infra.local.redis import Redis
from producer.cli.app import make_app

COMMANDS = get_command(make_app()).commands
RUNNING = [
    name
    for name, service in compose(profiles={"cpu"})["services"].items()
    if "build" in service
    and name != "migrate"
    and (service["command"][0] != "nightcourt" or service["command"][1] in COMMANDS)
]
OF_DEBIAN_SLIM = {
    "ld-linux-x86-64",
    "libc",
    "libdl",
    "libgcc_s",
    "libm",
    "libpthread",
    "libresolv",
    "librt",
    "libstdc++",
    "libz",
}
"""What the slim image has: the C library, and what apt and dpkg themselves stand on."""
ENDED_WELL = {0, -signal.SIGTERM}
"""The HTTP server, once it has shut down, ends itself by the signal that it was sent."""
OF_PACKAGES = {"libgomp1": "libgomp"}


@pytest.fixture(scope="module")
def stores(postgres: Postgres, redis_server: Redis) -> Iterator[dict[str, str]]:
    """A database without tables and a Redis, as settings."""
    name = f"deployed_{uuid.uuid4().hex}"
    url = make_url(postgres.url)
    admin = create_engine(url.set(drivername="postgresql+psycopg", database="postgres"), isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f'CREATE DATABASE "{name}"'))
    yield {
        "NIGHTCOURT_DATABASE_URL": url.set(database=name).render_as_string(hide_password=False),
        "NIGHTCOURT_REDIS_URL": redis_server.service_url.removesuffix("0") + "7",
    }
    with admin.connect() as connection:
        connection.execute(text(f'DROP DATABASE "{name}" WITH (FORCE)'))
    admin.dispose()


def run_stack(folder: Path, stores: dict[str, str], **programs: Path) -> Iterator[dict[str, Container]]:
    """Migrate, then run everything that a plain `docker compose up` would, until the block ends."""
    port = free_port()

    def container(name: str) -> Container:
        chosen = programs.get("judge_cpu" if name == "judge-cpu" else "service", Path(sys.executable).parent)
        return Container(name, folder / name, stores, port, programs=chosen)

    migration = container("migrate")
    running = {name: container(name) for name in RUNNING}
    try:
        migration.start()
        assert migration.process.wait(timeout=120) == 0, migration.said()
        for each in running.values():
            each.start()
        for each in running.values():
            wait_until(each.healthy, within=120, every=0.5, what=f"{each.name} is healthy")
        running["api"].headers = bearer(migration.run("nightcourt", "keys", "create").strip())
        yield running
    finally:
        for each in (migration, *running.values()):
            each.kill()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, stores: dict[str, str]) -> Iterator[dict[str, Container]]:
    """The stack, of the tests' own Python."""
    yield from run_stack(tmp_path_factory.mktemp("stack"), stores)


def judged(stack: dict[str, Container]) -> str:
    """File a comparison, wait for it, and say what became of it."""
    port = stack["api"].port
    body = {"prompt": "Which?", "response_a": "this", "response_b": "that", "metadata": {"n": uuid.uuid4().hex}}
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=70, headers=stack["api"].headers) as client:
        answer = client.post("/v1/comparisons", json=body, headers={"Prefer": "wait=60"})
        answer.raise_for_status()
        return answer.json()["status"]


class TestStack:
    def test_it_is_sealed(self, stack):
        """Each process can write to its own /tmp alone, where this machine lets us take the rest away."""
        if any(each.sealed is None for each in stack.values()):
            pytest.skip("neither root nor user namespaces here: the commands ran on a system that they could write to")
        for each in stack.values():
            status = Path(f"/proc/{each.process.pid}/status").read_text()
            assert re.search(r"^CapBnd:\s*0+$", status, re.MULTILINE), each.name
            mounts = Path(f"/proc/{each.process.pid}/mounts").read_text().splitlines()
            assert any(re.search(r" / \S+ ro\b", line) for line in mounts), each.name

    def test_it_judges(self, stack):
        """What is filed over HTTP gets its verdict from the small judge."""
        assert judged(stack) == "succeeded"

    def test_it_counts_what_a_batch_comes_to(self, stack):
        """The image of the service holds the statistics that a batch's report is made with."""
        api = stack["api"]
        line = b'{"prompt": "Which?", "response_a": "this", "response_b": "that", "label": "A"}'
        with httpx2.Client(base_url=f"http://127.0.0.1:{api.port}", timeout=70, headers=api.headers) as client:
            form = {"files": {"file": ("pairs.jsonl", line)}, "data": {"purpose": "batch"}}
            file = client.post("/v1/files", **form).raise_for_status().json()["id"]
            asked = {"input_file_id": file, "endpoint": "/v1/comparisons", "completion_window": "1h"}
            batch = client.post("/v1/batches", json=asked).raise_for_status().json()["id"]
            report = client.get(f"/v1/batches/{batch}/report")
            assert report.status_code == 200, report.text
            assert report.json()["kind"] == "gold"

    def test_prometheus_could_read_all_of_it(self, stack):
        """Every process but the API, which has them on its own port, serves its numbers where its image says."""
        for name, each in stack.items():
            port = each.port if name == "api" else each.metrics_port
            text = httpx2.get(f"http://127.0.0.1:{port}/metrics").raise_for_status().text
            assert "nightcourt_build_info{" in text, name

    def test_a_frozen_dispatcher_is_found(self, stack):
        """A process that does not get on has no pulse, and has one again when it does."""
        dispatcher = stack["dispatcher"]
        dispatcher.process.send_signal(signal.SIGSTOP)
        try:
            wait_until(lambda: not dispatcher.healthy(within="1"), within=120, what="the pulse stops")
        finally:
            dispatcher.process.send_signal(signal.SIGCONT)
        wait_until(lambda: dispatcher.healthy(within="1"), within=120, what="the pulse is back")

    def test_it_ends_when_it_is_told_to(self, stack):
        """SIGTERM ends each of them well, judges first."""
        for name in reversed(RUNNING):
            assert stack[name].end() in ENDED_WELL, stack[name].said()


def moved(words: str, folder: Path) -> str:
    """A command of the Dockerfile with the folders of its image in a folder of the test's own."""
    return re.sub(r"(?<![\w.])/(tools|wheels|opt/nightcourt)\b", rf"{folder}/\1", words)


def build(stage: str, folder: Path) -> None:
    """Do what the Dockerfile does up to a stage, in a folder, without docker."""
    known = stages()
    wanted = known[stage]
    if wanted.base in known and known[wanted.base].base in known:
        build(wanted.base, folder)
    source = folder / "src"
    source.mkdir(exist_ok=True)
    for instruction, rest in wanted.lines:
        if instruction == "COPY" and rest.startswith("--from=wheel"):
            build("wheel", folder)
        elif instruction == "COPY":
            *names, target = rest.split()
            for name in names:
                place = source / target if target != "./" else source
                if (ROOT / name).is_dir():
                    shutil.copytree(ROOT / name, place, dirs_exist_ok=True)
                else:
                    place.mkdir(exist_ok=True)
                    shutil.copy(ROOT / name, place)
        elif instruction == "RUN":
            python = Path(sys.executable).resolve().parent
            environment = child_environment({"PATH": f"{python}:{child_environment({})['PATH']}"})
            environment.pop("PYTHONPATH", None)
            subprocess.run(["/bin/sh", "-ec", moved(rest, folder)], cwd=source, env=environment, check=True)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The environments of the images, made by the Dockerfile's own commands in clean folders."""
    folders = {}
    for image in ("service", "judge-cpu", "judge-gpu"):
        folders[image] = tmp_path_factory.mktemp(image)
        build(f"{image}-environment", folders[image])
    return {image: folder / "opt" / "nightcourt" for image, folder in folders.items()}


@pytest.mark.slow
@pytest.mark.timeout(1200)
class TestInstalls:
    def test_what_is_installed_judges(self, built, tmp_path, stores):
        """The stack runs on what the Dockerfile installs, and on nothing else."""
        for stack in run_stack(
            tmp_path, stores, service=built["service"] / "bin", judge_cpu=built["judge-cpu"] / "bin"
        ):
            assert judged(stack) == "succeeded"
            for name in reversed(RUNNING):
                assert stack[name].end() in ENDED_WELL, stack[name].said()

    def test_a_judge_for_gpus_can_be_loaded(self, built):
        """Without TensorRT-LLM, which is NVIDIA's image's to bring, worker and command line are all there."""
        for command in (["python", "-c", "import worker.app"], ["nightcourt", "--version"]):
            program = built["judge-gpu"] / "bin" / command[0]
            subprocess.run([program, *command[1:]], cwd="/", env={"HOME": "/nowhere"}, check=True)

    @pytest.mark.parametrize("image", ["service", "judge-cpu"])
    def test_the_system_libraries_are_there(self, built, image):
        """What the wheels ask of the system is in the slim image, or is installed into it by name."""
        ldd = shutil.which("ldd")
        if ldd is None:
            pytest.skip("ldd is not on this machine")
        installed = {library for package, library in OF_PACKAGES.items() if f"{package}=" in str(stages()[image].lines)}
        asked, libraries = set(), list(built[image].rglob("*.so*"))
        # A wheel's own are found by whoever loads them, which ldd, asked of one of them alone, does not know.
        brought = {library.name.partition(".so")[0] for library in libraries}
        for library in libraries:
            said = subprocess.run([ldd, library], capture_output=True, text=True, check=False).stdout
            for name, _, path in re.findall(r"^\s*(\S+?)\.so\S*( => (\S+))?", said, re.MULTILINE):
                if not path.startswith(str(built[image])):
                    asked.add(Path(name).name)
        assert asked - {"linux-vdso"} - OF_DEBIAN_SLIM - brought == installed

    def test_the_dockerfile_is_the_one_that_was_run(self):
        """Each RUN of a stage that builds is understood here: it names no folder that was not moved."""
        for name, stage in stages().items():
            if name.endswith("environment") or name in {"tools", "wheel"}:
                left = moved(" ".join(stage.all("RUN")), Path("/clean"))
                assert not re.search(r"(?<![\w.])/(?!clean)\w", left.replace("/bin/pip", "")), DOCKERFILE
