"""The process tree of the embedded stack: what is started in which order, kept alive, and ended backwards."""

import json
import secrets
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from infra import roles
from infra.environment import child_environment
from infra.local import LocalStackError, StartCancelledError
from infra.local.child import Child, start_child
from infra.local.folder import DataFolder, keep_secret
from infra.local.part import OnEvent, Part, reason
from infra.local.postgres import Postgres, start_postgres
from infra.local.redis import Redis, start_redis


@dataclass(frozen=True)
class Program:
    """An application process: how it is started, and how long it may take to end."""

    name: str
    command: Sequence[str]
    grace_seconds: float
    process: str | None = None
    """Which process of the service it is, whose role it logs in to Postgres as; None for the owner of the tables."""


def _module(*arguments: str) -> tuple[str, ...]:
    # -P: a folder called `worker` where the user happens to stand is not our worker.
    return (sys.executable, "-P", "-m", *arguments)


_SEALING = (None, "api", "callbacks")
"""Who has to do with sealed secrets: what migrates, and the processes that make them and sign by them."""

MIGRATE = Program("migrate", _module("producer.cli", "migrate"), 10.0)


CONNECTIONS = {"api": 16, "dispatcher": 8, "worker": 15, "callbacks": 13}
"""How many connections to Postgres each process has at the most (docs/deployment.md)."""
_MORE_CONNECTIONS = 20
"""For what migrates, commands, whoever looks into it, and those that Postgres keeps for itself."""


def applications(workers: int, *, drain_seconds: float, callback_seconds: float) -> tuple[Program, ...]:
    """What runs on top of the databases, with so many worker processes."""
    # A worker that is asked to end finishes the shards in its hands, or gives them back after a while.
    names = ["worker", *(f"worker-{number}" for number in range(2, workers + 1))]
    return (
        Program("api", _module("producer.cli", "api"), 10.0, "api"),
        Program("dispatcher", _module("producer.cli", "dispatcher"), 10.0, "dispatcher"),
        *(Program(name, _module("worker.app"), drain_seconds + 5.0, "worker") for name in names),
        # It finishes what it is sending, which takes no longer than an attempt's deadline.
        Program("callbacks", _module("worker.callbacks_app"), callback_seconds + 5.0, "callbacks"),
    )


class ProcessTree:
    """Postgres, Redis and the applications on top. Used from one thread.

    Attributes:
        postgres: None before its first start.
        redis: None before its first start.
        metrics_ports: Where each application serves its metrics, by name, in all of its lives.
    """

    def __init__(
        self,
        folder: DataFolder,
        variables: Mapping[str, str],
        *,
        migrate: Program,
        applications: Sequence[Program],
        metrics_ports: Mapping[str, int],
        fast: bool,
        report: OnEvent,
        stopping: Callable[[], bool],
        hurried: Callable[[], bool],
    ) -> None:
        """Nothing is started yet.

        Args:
            folder: Where everything is kept.
            variables: The environment of the applications, beside where Postgres and Redis are.
            migrate: Brings the database up to date, and ends.
            applications: What runs on top, in the order of starting.
            metrics_ports: As in the attribute.
            fast: Give up the database's safety against a crash of the machine.
            report: Hears what happens.
            stopping: Whether all this is to end; asked again and again.
            hurried: Whether to end without waiting for work in hand; asked again and again.
        """
        self.postgres: Postgres | None = None
        self.redis: Redis | None = None
        self._folder = folder
        self._variables = dict(variables)
        self._migrate_program = migrate
        self._programs = applications
        self.metrics_ports = metrics_ports
        self._fast = fast
        self._report = report
        self._stopping = stopping
        self._hurried = hurried
        self._parts: list[Part] = []
        self._keys = Path(variables.get("NIGHTCOURT_SECRET_KEYS_FILE", folder.path / "secret-keys"))

    def start(self, ends: ExitStack) -> None:
        """Start everything, in order.

        Args:
            ends: Learns how to end what was started so far, also when this fails half-way.

        Raises:
            StartCancelledError: It was to end.
            LocalStackError: Something cannot run.
        """
        ends.callback(self._end_postgres)
        self._add("postgres", self._launch_postgres)
        ends.callback(self._end_redis)
        self._add("redis", self._launch_redis)
        self._migrate()
        ends.callback(self._end_applications)
        for program in self._programs:
            self._add(program.name, partial(self._launch, program))

    def look_after(self, *, was_ready: bool) -> None:
        """Start again what died; `was_ready` says whether the stack ever was.

        Raises:
            LocalStackError: Something died too often before the stack was ever ready.
        """
        for part in self._parts:
            part.look_after(was_ready=was_ready)

    def pid(self, name: str) -> int | None:
        """The process id of a part; None while it is dead."""
        return next((part.running.pid for part in self._parts if part.name == name and part.running), None)

    def _check_wanted(self) -> None:
        if self._stopping():
            raise StartCancelledError("starting was cancelled")

    def _add(self, name: str, launch: Callable[[], Child]) -> None:
        self._check_wanted()
        part = Part(name, launch, log=self._folder.log(name), report=self._report)
        self._parts.append(part)
        part.start()

    def _launch_postgres(self) -> Child:
        self.postgres = start_postgres(
            self._folder.part("postgres"),
            # In its next life it has to be where the applications were told that it is.
            port=self.postgres.port if self.postgres else None,
            log=self._folder.log("postgres"),
            fast=self._fast,
            connections=sum(CONNECTIONS.get(each.process or "", 0) for each in self._programs) + _MORE_CONNECTIONS,
            cancelled=self._stopping,
        )
        return self.postgres.child

    def _launch_redis(self) -> Child:
        self.redis = start_redis(
            self._folder.part("redis"),
            port=self.redis.port if self.redis else None,
            log=self._folder.log("redis"),
            cancelled=self._stopping,
        )
        self._variables["NIGHTCOURT_REDIS_URL"] = self.redis.service_url
        return self.redis.child

    def _launch(self, program: Program) -> Child:
        return start_child(
            program.name,
            program.command,
            log=self._folder.log(program.name),
            environment=child_environment(
                self._variables
                | self._database(program)
                | {"NIGHTCOURT_METRICS_PORT": str(self.metrics_ports.get(program.name, 0))}
            ),
        )

    def _database(self, program: Program) -> dict[str, str]:
        """Where Postgres is, by the login that a program has, and what it seals secrets by there if it does."""
        if self.postgres is None:
            raise AssertionError("Postgres is started first")
        kept = self._folder.part("roles")
        passwords: dict[str, str] = {process: keep_secret(kept / process) for process in roles.PROCESSES}
        told = {"NIGHTCOURT_DATABASE_URL": self.postgres.url}
        if program.process is None:
            told["NIGHTCOURT_ROLE_PASSWORDS"] = json.dumps(passwords)
        else:
            url = roles.url_as(self.postgres.url, program.process, passwords[program.process])
            told["NIGHTCOURT_DATABASE_URL"] = url
        if program.process in _SEALING and "NIGHTCOURT_SECRET_KEYS" not in self._variables:
            keep_secret(self._keys, secrets.token_hex)
            told["NIGHTCOURT_SECRET_KEYS_FILE"] = str(self._keys)
        return told

    def _migrate(self) -> None:
        self._check_wanted()
        program = self._migrate_program
        began = time.monotonic()
        self._report("starting", name=program.name)
        child = self._launch(program)
        while (status := child.wait(60, unless=self._stopping)) is None:
            if self._stopping():
                child.stop(signal.SIGTERM, program.grace_seconds)
                self._check_wanted()
        if status != 0:
            raise LocalStackError(
                f"the database could not be brought up to date: {program.name} ended {reason(status)}:\n"
                f"{child.tail()}\n(all of it is in {child.log})"
            )
        self._report("migrated", seconds=time.monotonic() - began)

    def _end_applications(self) -> None:
        """Ask all of them at once, and kill each whose time is up, or all when hurried."""
        grace = {program.name: program.grace_seconds for program in self._programs}
        left = {part.name: part.running for part in self._parts if part.name in grace and part.running}
        began = time.monotonic()
        for child in left.values():
            child.send(signal.SIGTERM)
        while left:
            for name, child in list(left.items()):
                if self._hurried() or time.monotonic() - began > grace[name]:
                    child.kill()
                if child.poll() is not None:
                    del left[name]
                    self._report("stopped", name=name)
            time.sleep(0.02)

    def _end_redis(self) -> None:
        if self.redis is not None:
            self.redis.stop()
            self._report("stopped", name="redis")

    def _end_postgres(self) -> None:
        if self.postgres is not None:
            self.postgres.stop()
            self._report("stopped", name="postgres")
