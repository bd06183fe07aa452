"""Running what an image would run, without docker: its command, its environment, its packages, and a sealed system."""

import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy.engine import make_url

from infra.local.ports import free_port
from support.deployed import ROOT, TMP, compose, stages

_SEAL = """
mount --bind "$0" "$0"
mount -o remount,ro,bind /
exec setpriv --no-new-privs --inh-caps=-all --bounding-set=-all -- "$@"
"""


def seal(writable: Path) -> list[str] | None:
    """What to put before a command so that it can write to one folder alone and has no capability.

    None where this machine does not let us: it takes Linux' user namespaces, or root.
    """
    if not shutil.which("unshare") or not shutil.which("setpriv"):
        return None
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    prefix = ["unshare", "--mount", *user, "sh", "-ec", _SEAL, str(writable)]
    outside = writable.parent / "sealed"
    tried = subprocess.run(
        [*prefix, "sh", "-c", f"touch {writable}/in && ! touch {outside} 2>/dev/null"], capture_output=True, check=False
    )
    return prefix if tried.returncode == 0 else None


@dataclass
class Container:
    """A service of the compose file, run as a process.

    Its /tmp is a folder of its own; whatever names /tmp is made to name that.
    """

    name: str
    scratch: Path
    stores: dict[str, str]
    port: int
    programs: Path = Path(sys.executable).parent
    """Where `python` and `nightcourt` are. Beside the tests' own Python, only the packages of the image are seen."""
    process: subprocess.Popen | None = None
    headers: dict[str, str] = field(default_factory=dict)
    """What a request to it needs."""
    metrics_port: int = field(default_factory=free_port)
    """The same port in every container is another for each process here."""
    service: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.service = compose()["services"][self.name]
        self.stage = stages()[self.service["build"]["target"]]
        self.scratch.mkdir()
        self.sealed = seal(self.scratch)

    @property
    def environment(self) -> dict[str, str]:
        """What the process is given: the image's environment under that of the service, and of ours what tests need."""
        given = self.stage.environment | self.service.get("environment", {})
        ours = {name: self._moved(value) for name, value in given.items() if name != "PATH"}
        ours |= self.stores | self._login(given)
        ours["NIGHTCOURT_METRICS_HOST"] = "127.0.0.1"
        ours["NIGHTCOURT_METRICS_PORT"] = str(self.metrics_port)
        ours |= {"PATH": f"{self.programs}:/usr/bin:/bin", "TMPDIR": str(self.scratch), "PYTHONFAULTHANDLER": "1"}
        if "NIGHTCOURT_PORT" in ours:
            ours |= {"NIGHTCOURT_PORT": str(self.port), "NIGHTCOURT_HOST": "127.0.0.1"}
        if self.programs == Path(sys.executable).parent:
            lock = ROOT / "requirements" / f"{self.stage.name}.txt"
            ours |= {"PYTHONPATH": str(ROOT / "tests" / "support" / "locked"), "NIGHTCOURT_TEST_LOCK": str(lock)}
        return ours

    def _login(self, given: dict[str, str]) -> dict[str, str]:
        """Where the tables are, by the login that the compose file gives the service; the owner's is the tests' own."""
        told, here = (make_url(each["NIGHTCOURT_DATABASE_URL"]) for each in (given, self.stores))
        url = here if told.username == "nightcourt" else here.set(username=told.username, password=told.password)
        return {"NIGHTCOURT_DATABASE_URL": url.render_as_string(hide_password=False)}

    def start(self) -> None:
        """Start the service's command."""
        command = self.service["command"]
        program = [str(self.programs / command[0]), *command[1:]]
        with (self.scratch.parent / f"{self.name}.log").open("wb") as log:
            self.process = subprocess.Popen(
                [*(self.sealed or []), *program],
                cwd=self.scratch,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def healthy(self, *, within: str | None = None) -> bool:
        """Run the service's health check once; `within` takes the place of the seconds that a pulse is allowed."""
        assert self.process is not None
        assert self.process.poll() is None, self.said()
        check = self.service["healthcheck"]["test"][1:]
        if within is not None:
            check = [*check[:-1], within]
        command = [str(self.programs / check[0]), *(self._moved(word) for word in check[1:])]
        ended = subprocess.run(
            [word.replace(":8300/", f":{self.port}/") for word in command],
            cwd=self.scratch,
            env=self.environment,
            capture_output=True,
            check=False,
            timeout=120,
        )
        return ended.returncode == 0

    def run(self, *command: str) -> str:
        """What `docker compose run` of another command in this service says on standard output."""
        program = [str(self.programs / command[0]), *command[1:]]
        return subprocess.run(
            program, cwd=self.scratch, env=self.environment, capture_output=True, check=True, timeout=120, text=True
        ).stdout

    def end(self) -> int:
        """Tell it to end as docker would, and give it the time that docker would."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)  # it tells where each of its threads is
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=10)
            raise AssertionError(self.said()) from None

    def kill(self) -> None:
        """See that nothing is left, whatever happened."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def said(self) -> str:
        """What it has logged."""
        return (self.scratch.parent / f"{self.name}.log").read_text()

    def _moved(self, value: str) -> str:
        return str(self.scratch) + value.removeprefix(TMP) if value.startswith(TMP) else value
