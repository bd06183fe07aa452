"""Producers in a storm: they file, upload and read, try again under the same key, and keep a log of every answer."""

import json
import random
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx2
from chaos.history import Asked, History, Receipt, Seen, Wanted
from support.canaries import MARK
from support.inbox import Message

POISON = "<<poison>>"

_FINAL = {"succeeded", "errored", "cancelled", "expired"}
_LAST_PAUSE = 2.0


@dataclass(frozen=True, slots=True)
class Load:
    """How much is filed. `seconds` is the time over which it is."""

    seconds: float
    singles: int
    batches: int
    lines: int
    """Of each batch."""
    poison: int = 1
    """Comparisons that crash the engine each time, all of them filed singly."""
    callbacks: float = 0.5
    """The share of the others that are told of when they end."""

    @property
    def comparisons(self) -> int:
        """All of them."""
        return self.singles + self.batches * self.lines


def question(key: str) -> str:
    """A question that names what it was filed under, so that the tables can be held to it."""
    return f"Which of the two answers the question of {key} better, and why would that be so? {MARK}"


@dataclass
class Producers:
    """All producers of a storm, and what they know.

    Args:
        apis: where to send; each try may go to another one.
        load: how much.
        seed: what else is left to chance, such as which API.
        headers: of each request.
        callback_url: where what is to be told of goes.
    """

    apis: list[str]
    load: Load
    seed: int
    headers: Mapping[str, str]
    callback_url: str
    history: History = field(default_factory=History)
    give_up: threading.Event = field(default_factory=threading.Event)
    """Set when the storm is long over: what was not answered by now never will be."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _known: list[str] = field(default_factory=list)
    _refused: set[str] = field(default_factory=set)
    _threads: list[threading.Thread] = field(default_factory=list)
    _began: float = 0.0

    def start(self, *, singles: int = 4) -> None:
        """Begin to file.

        Args:
            singles: threads that file single comparisons.
        """
        self._began = time.monotonic()
        for number in range(singles):
            self._spawn(self._file_singles, range(number, self.load.singles, singles))
        self._spawn(self._file_batches, range(self.load.batches))
        self._spawn(self._read)

    def join(self, seconds: float) -> bool:
        """Wait until everything was answered, at most so long. Then whoever still tries gives up, and readers end."""
        deadline = time.monotonic() + seconds
        for thread in self._threads[:-1]:
            thread.join(max(0.0, deadline - time.monotonic()))
        answered = not any(thread.is_alive() for thread in self._threads[:-1])
        self.give_up.set()
        for thread in self._threads:
            thread.join(30)
        return answered

    def take(self, message: Message) -> int:
        """Receive a callback. The first try of a few is refused, as receivers do."""
        body = json.loads(message.body)
        with self._lock:
            self.history.receipts.append(Receipt(message.id, message.body.decode(), body["data"]["id"], body["type"]))
            if message.id.endswith("00") and message.id not in self._refused:
                self._refused.add(message.id)
                return 503
        return 204

    def _spawn(self, work: Any, *arguments: Any) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _wait_for(self, share: float) -> None:
        """Wait for the moment at which so much of the load's time is over."""
        self.give_up.wait(max(0.0, self._began + share * self.load.seconds - time.monotonic()))

    def _file_singles(self, numbers: Iterable[int]) -> None:
        chance = random.Random(f"{self.seed} {numbers}")
        poisoned = {round((n + 0.5) * self.load.singles / self.load.poison) for n in range(self.load.poison)}
        with _clients(self.apis, self.headers) as clients:
            for number in numbers:
                self._wait_for(number / self.load.singles)
                key = f"single-{number}"
                wanted = Wanted(
                    callbacks=chance.random() < self.load.callbacks, poison=frozenset([0] if number in poisoned else [])
                )
                body = {
                    "prompt": question(key) + (f" {POISON}" if wanted.poison else ""),
                    "response_a": "This one, since it says what it knows and how.",
                    "response_b": "That one, since it says less and means more.",
                    "custom_id": key,
                }
                if wanted.callbacks:
                    body["callback_url"] = self.callback_url
                self.history.wanted[key] = wanted
                if chance.random() < 0.05:
                    # Two at once under one key, each to an API of its own: a retry that overtook its request.
                    twin = threading.Thread(
                        target=self._insist, args=(clients[::-1], chance, "/v1/comparisons", key, body)
                    )
                    twin.start()
                    self._insist(clients, chance, "/v1/comparisons", key, body)
                    twin.join()
                else:
                    self._insist(clients, chance, "/v1/comparisons", key, body)
                if chance.random() < 0.05:
                    self._insist(clients, chance, "/v1/comparisons", key, body)

    def _file_batches(self, numbers: Iterable[int]) -> None:
        chance = random.Random(f"{self.seed} batches")
        with _clients(self.apis, self.headers) as clients:
            for number in numbers:
                self._wait_for(number / self.load.batches)
                key = f"batch-{number}"
                wanted = Wanted(callbacks=True, line_callbacks=number % 4 == 0, may_cancel=number % 8 == 5)
                self.history.wanted[key] = wanted
                file = self._upload(clients, chance, key)
                if file is None:
                    continue
                body = {
                    "input_file_id": file,
                    "endpoint": "/v1/comparisons",
                    "completion_window": "24h",
                    "metadata": {"key": key},
                    "callback_url": self.callback_url,
                    "callback_comparisons": wanted.line_callbacks,
                }
                batch = self._insist(clients, chance, "/v1/batches", key, body)
                if batch is None:
                    continue
                if wanted.may_cancel:
                    self._spawn_operator(batch, "cancel")
                elif number % 8 == 3:
                    self._spawn_operator(batch, "pause", "resume")

    def _spawn_operator(self, batch: str, *commands: str) -> None:
        """Somebody who calls a batch off, or holds it up for a while."""

        def work() -> None:
            chance = random.Random(f"{self.seed} {batch}")
            with _clients(self.apis, self.headers) as clients:
                for command in commands:
                    self.give_up.wait(2.0)
                    # Neither has a key, and both may be said twice.
                    self._insist(clients, chance, f"/v1/batches/{batch}/{command}", f"{command} {batch}", None)

        threading.Thread(target=work, daemon=True).start()

    def _upload(self, clients: list[httpx2.Client], chance: random.Random, key: str) -> str | None:
        rows = [
            {
                "custom_id": f"{key}-{line}",
                "prompt": question(f"{key}, line {line},"),
                "response_a": "This one, since it says what it knows and how.",
                "response_b": "That one, since it says less and means more.",
            }
            for line in range(1, self.load.lines + 1)
        ]
        data = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
        for client in self._tries(clients, chance):
            answer = self._send(
                client,
                f"upload {key}",
                "/v1/files",
                files={"file": (f"{key}.jsonl", data)},
                data={"purpose": "batch"},
                timeout=30,
            )
            if answer is not None and answer.status_code == 200:
                return answer.json()["id"]
        return None

    def _insist(
        self, clients: list[httpx2.Client], chance: random.Random, path: str, key: str, body: Any
    ) -> str | None:
        """Send until it is taken, always under the same key; returns the id that it was taken as."""
        for client in self._tries(clients, chance):
            answer = self._send(client, key, path, json=body, headers={"Idempotency-Key": key})
            if answer is not None and answer.status_code in {200, 202}:
                return answer.json()["id"]
            if answer is not None and answer.status_code == 409:
                return None  # a batch that has ended is neither paused nor cancelled any more
        return None

    def _tries(self, clients: list[httpx2.Client], chance: random.Random) -> Iterator[httpx2.Client]:
        pause, first = 0.1, chance.randrange(len(clients))
        while not self.give_up.is_set():
            yield clients[first % len(clients)]
            first += 1
            self.give_up.wait(pause * chance.uniform(0.5, 1.5))
            pause = min(pause * 2, _LAST_PAUSE)

    def _send(self, client: httpx2.Client, key: str, path: str, **content: Any) -> httpx2.Response | None:
        answer = None
        with suppress(httpx2.RequestError):
            answer = client.post(path, **content)
        filed = answer is not None and answer.status_code in {200, 202} and path in {"/v1/comparisons", "/v1/batches"}
        asked = Asked(
            key=key,
            at=time.monotonic() - self._began,
            status=None if answer is None else answer.status_code,
            id=answer.json()["id"] if answer is not None and filed else None,
        )
        with self._lock:
            self.history.asked.append(asked)
            if asked.id is not None and path == "/v1/comparisons":
                self._known.append(asked.id)
        return answer

    def _read(self) -> None:
        """Look at what was filed, again and again: what has ended once has ended so for ever."""
        chance = random.Random(f"{self.seed} readers")
        with _clients(self.apis, self.headers) as clients:
            while not self.give_up.wait(0.2):
                with self._lock:
                    chosen = chance.choice(self._known) if self._known else None
                if chosen is None:
                    continue
                try:
                    answer = chance.choice(clients).get(f"/v1/comparisons/{chosen}")
                except httpx2.RequestError:
                    continue
                if answer.status_code == 200 and answer.json()["status"] in _FINAL:
                    self.history.seen.append(Seen(chosen, outcome_of(answer.json())))


def outcome_of(comparison: Mapping[str, Any]) -> str:
    """All of a comparison's outcome that may never change."""
    return json.dumps(
        {name: comparison.get(name) for name in ("status", "verdict", "error", "decided_at")}, sort_keys=True
    )


class _clients:  # noqa: N801 - reads as the context manager that it is
    """A client for each API, for a thread's own use."""

    def __init__(self, apis: list[str], headers: Mapping[str, str]) -> None:
        timeout = httpx2.Timeout(8.0, connect=3.0)
        self._clients = [
            httpx2.Client(base_url=url, headers=dict(headers), timeout=timeout, trust_env=False) for url in apis
        ]

    def __enter__(self) -> list[httpx2.Client]:
        return self._clients

    def __exit__(self, *_: object) -> None:
        for client in self._clients:
            client.close()
