"""A whole service of real processes for end-to-end tests: the embedded stack, on a folder of the test's own."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2

from infra.local.supervisor import Stack
from infra.settings import Settings
from support.canaries import canary, watch, watch_answer, watch_errors
from support.collector import collecting
from support.keys import bearer

QUESTION = {
    "prompt": f"Which? {canary('Prompt')}",
    "response_a": f"this {canary('ResponseA')}",
    "response_b": f"that {canary('ResponseB')}",
}

# Of leases nobody waits for the end here: a worker that died is proved dead, and one that was kept waiting is not.
IMPATIENT = {"lease_seconds": 60.0, "heartbeat_seconds": 0.5, "sweep_seconds": 0.5, "hint_seconds": 3.0}


class Service:
    """A running stack, with the few things that tests do to it."""

    def __init__(self, stack: Stack, folder: Path, pids: dict[str, int]) -> None:
        self.url = stack.info.api_url
        self.database_url = stack.info.database_url
        self.redis_url = stack.info.redis_url
        self.metrics = stack.info.metrics
        self.folder = folder
        self._pids = pids
        self.key = stack.info.key
        """An admin key of the tenant `default`, by which the stack's own commands come in."""
        self.headers = bearer(self.key)
        """What a request needs that is not sent by `http`."""
        self.http = httpx2.Client(
            base_url=self.url, timeout=70, headers=self.headers, event_hooks={"response": [watch_answer]}
        )

    def file(self, body: dict[str, Any] | None = None, *, wait: float = 0, **headers: str) -> httpx2.Response:
        """File a comparison, with headers whose dashes are written as underscores."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if wait:
            sent["Prefer"] = f"wait={wait:g}"
        return self.http.post("/v1/comparisons", json=body or QUESTION, headers=sent)

    def read(self, comparison_id: str, *, wait: float = 0) -> dict[str, Any]:
        """Read a comparison."""
        headers = {"Prefer": f"wait={wait:g}"} if wait else {}
        answer = self.http.get(f"/v1/comparisons/{comparison_id}", headers=headers)
        answer.raise_for_status()
        return answer.json()

    def batch(self, batch_id: str) -> dict[str, Any]:
        """Read a batch."""
        answer = self.http.get(f"/v1/batches/{batch_id}")
        answer.raise_for_status()
        return answer.json()

    def pid(self, part: str) -> int:
        """The process that is a part of this stack now: postgres, redis, api, dispatcher or worker."""
        return self._pids[part]

    def signal(self, part: str, number: signal.Signals) -> None:
        """Send a signal to a part, unless it is between two lives."""
        with suppress(ProcessLookupError):
            os.kill(self.pid(part), number)

    def numbers(self, part: str) -> str:
        """What a part serves to Prometheus, as text."""
        return httpx2.get(f"http://{self.metrics[part]}/metrics").raise_for_status().text

    def log(self, part: str) -> list[dict[str, Any]]:
        """The JSON lines that a part has logged so far, without one that it is at."""
        whole, _, _ = (self.folder / "logs" / f"{part}.log").read_text().rpartition("\n")
        return [json.loads(line) for line in whole.splitlines() if line.startswith("{")]


@contextmanager
def running_service(folder: Path, *, durable: bool = False, **settings: Any) -> Iterator[Service]:
    """Run a service until the block ends; a durable one whose Postgres loses nothing when it is killed."""
    telling = {"engine": "simulated", "workers": 1, "log_level": "debug"}
    pids: dict[str, int] = {}

    def note(kind: str, /, **fields: Any) -> None:
        if kind == "started":
            pids[fields["name"]] = fields["pid"]

    with (
        collecting() as collector,
        Stack(
            Settings(**{**telling, "traces_endpoint": collector.url, **settings}),
            folder,
            port=0,
            fast=not durable,
            on_event=note,
        ) as stack,
    ):
        service = Service(stack, folder.resolve(), pids)
        try:
            yield service
        finally:
            service.http.close()
            watch_errors(service.database_url)
            for part in service.metrics:
                with suppress(httpx2.HTTPError):
                    watch(f"metrics of {part}", service.numbers(part))
            stack.hurry()  # an engine that takes hours is not waited for
