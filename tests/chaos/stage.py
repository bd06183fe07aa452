"""The stage of a storm: all processes of the service, each started, hurt and started again by the test.

Every process reaches Postgres and Redis by a link of its own, so that it can be cut off alone. Whatever ends without
having been told to is started again, as a supervisor would, and noted.
"""

import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

import psycopg
import redis
from chaos.audit import AUDIT
from chaos.hosts import Cable, Machine
from chaos.plan import STORES
from chaos.proxy import Link, Proxy
from sqlalchemy.engine import make_url
from support.keys import a_key, bearer
from support.waiting import wait_until

from infra import roles
from infra.environment import child_environment
from infra.local.child import Child, start_child
from infra.local.ports import free_port
from infra.local.postgres import start_postgres
from infra.local.redis import start_redis
from infra.migrating import migrate

LEASE_SECONDS = 6.0

# Short times, so that what a fault leaves behind is taken up within seconds.
SETTINGS = {
    "engine": "simulated",
    "lease_seconds": LEASE_SECONDS,
    "heartbeat_seconds": 1.0,
    "sweep_seconds": 0.5,
    "hint_seconds": 4.0,
    "poll_seconds": 0.05,
    "drain_seconds": 4.0,
    "callback_deadline_seconds": 3.0,
    "callback_slots": 32,
    "callback_allow": "127.0.0.1",
    "secret_keys": "0123456789abcdef" * 4,
    "simulated_poison": "<<poison>>",
    "log_format": "json",
}

COUNTS = {"api": 2, "dispatcher": 2, "worker": 3, "callbacks": 2}

_COMMANDS = {
    "api": ("producer.cli", "api"),
    "dispatcher": ("producer.cli", "dispatcher"),
    "worker": ("worker.app",),
    "callbacks": ("worker.callbacks_app",),
}
PASSWORD = "of-the-test"  # noqa: S105
"""Of each process at Postgres, where it has a role of its own."""
_RESTART_SECONDS = 0.5
_GRACE_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class End:
    """A process that ended though nobody told it to."""

    name: str
    status: int
    at: float


@dataclass
class Actor:
    """One process, or one store, over all of its lives."""

    name: str
    launch: Callable[[], Child]
    child: Child | None = None
    lives: int = 0
    waiting: bool = False
    """Whether it is down because it was told to be."""
    asleep: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)
    """One fault at a time."""


class Stage:
    """Everything that runs; `with Stage(...) as stage:` starts it all and ends it after.

    Args:
        folder: where everything is kept, logs too.
        counts: how many there are of each kind of process.
        settings: beside `SETTINGS`, and in place of them.
        environment: variables of all processes beside the settings.
        proved: which workers hold a lock by which others know that they died.
        without: a protection to take out of all processes, of those in `without.py`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        counts: Mapping[str, int] | None = None,
        settings: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
        proved: Callable[[str], bool] = lambda _: True,
        without: str | None = None,
    ) -> None:
        self.folder = folder
        self.counts = dict(COUNTS if counts is None else counts)
        self.ends: list[End] = []
        self.actors: dict[str, Actor] = {}
        self.links: dict[tuple[str, str], Link | Cable] = {}
        self.urls: dict[str, str] = {}
        """Of the stores themselves, past all links."""
        self.apis: list[str] = []
        self.headers: dict[str, str] = {}
        """Of each request to them."""
        self.proxy = Proxy()
        self.began = time.monotonic()
        self._settings = {**SETTINGS, **(settings or {})}
        self._environment = dict(environment or {})
        self._proved = proved
        self._run = ("-m",) if without is None else (str(Path(__file__).with_name("without.py")), without)
        self._ports: dict[str, int] = {}
        self._stop = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="keeper", daemon=True)

    # -- beginning and end

    def __enter__(self) -> Self:
        try:
            (self.folder / "logs").mkdir(parents=True)
            self.add("postgres", self._launch_postgres)
            self.add("redis", self._launch_redis)
            migrate(self.urls["postgres"], dict.fromkeys(roles.PROCESSES, PASSWORD))
            self.headers |= bearer(a_key(self.urls["postgres"]))
            self.execute(AUDIT)
            for kind, count in self.counts.items():
                for number in range(1, count + 1):
                    self.add_process(kind, number)
            self._keeper.start()
            for url in self.apis:
                wait_until(partial(_answers, url), within=90, what=f"{url} answers")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End everything: the service at once, the stores properly."""
        self._stop.set()
        if self._keeper.is_alive():
            self._keeper.join()
        for actor in reversed(self.actors.values()):
            if actor.child is not None:
                actor.child.send(signal.SIGCONT)
                if actor.name == "postgres":
                    actor.child.stop(signal.SIGINT, 20)
                else:
                    actor.child.kill()
        self.proxy.close()

    def add(self, name: str, launch: Callable[[], Child]) -> Actor:
        """Start something, and keep it running from now on."""
        actor = Actor(name, launch)
        actor.child = launch()
        actor.lives = 1
        self.actors[name] = actor
        return actor

    def add_process(self, kind: str, number: int, *, at: Machine | None = None) -> Actor:
        """Start a process of the service.

        Args:
            kind: api, dispatcher, worker or callbacks.
            number: from 1.
            at: the machine that it runs on, from which nobody reaches it; this one when None.
        """
        name = f"{kind}-{number}"
        urls = {}
        for store in STORES:
            cable = None if at is None else at.cables[store]
            port = make_url(self.urls[store]).port or 0
            link = self.proxy.link(port, listen=None if cable is None else cable.listen())
            self.links[name, store] = cable or link
            urls[store] = _at(self.urls[store], "127.0.0.1" if cable is None else cable.address, link.port)
        urls["postgres"] = roles.url_as(urls["postgres"], kind, PASSWORD)
        variables = {f"NIGHTCOURT_{key.upper()}": str(value) for key, value in self._settings.items()}
        variables |= {"NIGHTCOURT_DATABASE_URL": urls["postgres"], "NIGHTCOURT_REDIS_URL": urls["redis"]}
        if kind == "api":
            port = free_port()
            variables["NIGHTCOURT_PORT"] = str(port)
            self.apis.append(f"http://127.0.0.1:{port}")
        if kind == "worker" and self._proved(name):
            variables["NIGHTCOURT_PRESENCE_DIR"] = str(self.folder / "presence")
        command = [*(at.through if at else ()), sys.executable, "-P", *self._run, *_COMMANDS[kind]]
        environment = child_environment({**variables, **self._environment})
        return self.add(
            name, lambda: start_child(name, command, log=self.folder / "logs" / f"{name}.log", environment=environment)
        )

    def _launch_postgres(self) -> Child:
        server = start_postgres(
            self.folder / "postgres",
            port=self._ports.get("postgres"),
            log=self.folder / "logs" / "postgres.log",
            cancelled=self._stop.is_set,
        )
        self._ports["postgres"], self.urls["postgres"] = server.port, server.url
        return server.child

    def _launch_redis(self) -> Child:
        server = start_redis(
            self.folder / "redis",
            port=self._ports.get("redis"),
            log=self.folder / "logs" / "redis.log",
            cancelled=self._stop.is_set,
        )
        self._ports["redis"], self.urls["redis"] = server.port, server.url
        return server.child

    # -- what can be done to them

    def names(self, kind: str) -> list[str]:
        """All processes of a kind."""
        return [name for name in self.actors if name.startswith(f"{kind}-")]

    def pid(self, name: str) -> int:
        """The process that plays a part now."""
        child = self.actors[name].child
        assert child is not None, name
        return child.pid

    def end(self, name: str, number: signal.Signals, *, down_seconds: float) -> None:
        """End something by a signal, and start it again after a while; what ignores the signal is killed in the end."""
        actor = self.actors[name]
        with actor.lock:
            actor.waiting = True
            if actor.child is not None:
                if number == signal.SIGKILL:
                    actor.child.kill()
                else:
                    actor.child.stop(number, _GRACE_SECONDS)
            self._stop.wait(down_seconds)
            self._start(actor)
            actor.waiting = False

    def freeze(self, name: str, seconds: float) -> None:
        """Stop something in its tracks, and let it go on after a while."""
        actor = self.actors[name]
        with actor.lock:
            if actor.child is None:
                return
            actor.child.send(signal.SIGSTOP)
            actor.asleep = True
            self._stop.wait(seconds)
            actor.child.send(signal.SIGCONT)
            actor.asleep = False

    def flush(self) -> None:
        """Let Redis forget everything, if it is there."""
        try:
            with redis.Redis.from_url(self.urls["redis"], socket_timeout=2, socket_connect_timeout=2) as client:
                client.flushall()
        except redis.RedisError:
            pass  # it is down or frozen: that is another fault's doing

    def mend(self) -> None:
        """Make every link whole and see that everything runs."""
        for link in self.links.values():
            link.mend()
        wait_until(
            lambda: all(
                not a.waiting and not a.asleep and a.child and a.child.poll() is None for a in self.actors.values()
            ),
            within=90,
            what="everything runs again",
        )

    def _start(self, actor: Actor) -> None:
        deadline = time.monotonic() + 60
        while not self._stop.is_set():
            try:
                actor.child = actor.launch()
            except Exception:
                # Postgres may find what its last life left behind, for a moment.
                if time.monotonic() > deadline:
                    raise
                self._stop.wait(_RESTART_SECONDS)
            else:
                actor.lives += 1
                return

    def _keep(self) -> None:
        """Start again what ended by itself, and note that it did."""
        while not self._stop.wait(0.1):
            for actor in tuple(self.actors.values()):
                if not actor.lock.acquire(blocking=False):
                    continue
                try:
                    status = None if actor.child is None else actor.child.poll()
                    if status is not None:
                        self.ends.append(End(actor.name, status, time.monotonic() - self.began))
                        self._stop.wait(_RESTART_SECONDS)
                        self._start(actor)
                finally:
                    actor.lock.release()

    # -- looking at the tables

    def execute(self, statement: str) -> None:
        """Change the database by hand."""
        with psycopg.connect(self.urls["postgres"], autocommit=True) as connection:
            connection.execute(statement)

    def rows(self, statement: str, *values: Any) -> list[Any]:
        """Ask the database, past all links."""
        with psycopg.connect(self.urls["postgres"], autocommit=True, connect_timeout=5) as connection:
            return connection.execute(statement, values or None).fetchall()


def _at(url: str, host: str, port: int) -> str:
    return make_url(url).set(host=host, port=port).render_as_string(hide_password=False)


def _answers(url: str) -> bool:
    import httpx2  # noqa: PLC0415

    try:
        return httpx2.get(f"{url}/readyz", trust_env=False, timeout=5).status_code == 200
    except httpx2.TransportError:
        return False
