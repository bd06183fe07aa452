"""Someone who files batches with a service over HTTP, and what they file."""

import json
from typing import Any

from support.service import Service
from support.waiting import wait_until


def lines(count: int, **changes: Any) -> bytes:
    """Make a file of bare pairs, each unlike the others."""
    rows = (
        {
            "custom_id": f"row-{n}",
            "prompt": f"Question {n}?",
            "response_a": f"this {n}",
            "response_b": "that",
            **changes,
        }
        for n in range(1, count + 1)
    )
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def adds_up(batch: dict[str, Any]) -> bool:
    """Whether every line of an ended batch is accounted for."""
    counts = batch["request_counts"]
    ended = counts["succeeded"] + counts["errored"] + counts["cancelled"] + counts["expired"]
    return counts["total"] == ended == counts["completed"] + counts["failed"]


class Clerk:
    """Someone who files batches with a service, and reads them."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.http = service.http

    def upload(self, data: bytes, name: str = "pairs.jsonl") -> Any:
        """Upload a file and give the answer."""
        return self.http.post("/v1/files", files={"file": (name, data)}, data={"purpose": "batch"})

    def create(self, data: bytes, **options: Any) -> dict[str, Any]:
        """Upload a file and make a batch of it."""
        body = {
            "input_file_id": self.upload(data).json()["id"],
            "endpoint": "/v1/comparisons",
            "completion_window": "24h",
            **options,
        }
        answer = self.http.post("/v1/batches", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def read(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Read a batch as it stands."""
        return self.service.batch(batch["id"])

    def act(self, batch: dict[str, Any], action: str) -> Any:
        """Pause, resume, cancel or retry a batch."""
        return self.http.post(f"/v1/batches/{batch['id']}/{action}")

    def until(self, batch: dict[str, Any], *statuses: str, within: float = 60) -> dict[str, Any]:
        """Wait until a batch has come to one of these statuses."""
        return wait_until(
            lambda: found if (found := self.read(batch))["status"] in statuses else None,
            within=within,
            what=f"the batch is {' or '.join(statuses)}; it is {self.read(batch)}",
        )

    def results(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        """Read what came of it so far."""
        return [json.loads(line) for line in self.http.get(f"/v1/batches/{batch['id']}/results").text.splitlines()]
