"""A real Prometheus (Debian's package) that reads a running stack, for tests of the board and the alerts."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import yaml

from infra.local.ports import free_port
from support.waiting import wait_until


@dataclass
class Prometheus:
    """A server to ask."""

    url: str

    def ask(self, query: str) -> list[Any]:
        """The series that a query gives now."""
        answer = httpx2.get(f"{self.url}/api/v1/query", params={"query": query})
        return answer.raise_for_status().json()["data"]["result"]

    def rules(self) -> list[dict[str, Any]]:
        """Every rule, with its health and its alerts."""
        groups = httpx2.get(f"{self.url}/api/v1/rules").raise_for_status().json()["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]


@contextmanager
def reading(targets: Path, rules: Path, folder: Path) -> Iterator[Prometheus]:
    """Run a Prometheus that reads twice a second what a stack's `prometheus.json` names, until the block ends."""
    folder.mkdir()
    settings = {
        "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"},
        "rule_files": [str(rules)],
        "scrape_configs": [{"job_name": "nightcourt", "file_sd_configs": [{"files": [str(targets)]}]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
    address = f"127.0.0.1:{free_port()}"
    server = subprocess.Popen(
        [  # noqa: S607 - wherever the package put it
            "prometheus",
            f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address={address}",
            "--log.level=error",
        ],
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: _answers(f"http://{address}/-/ready"), within=90, what="Prometheus answers")
        yield Prometheus(f"http://{address}")
    finally:
        server.terminate()
        server.wait(timeout=30)


def _answers(url: str) -> bool:
    try:
        return httpx2.get(url).status_code == httpx2.codes.OK
    except httpx2.TransportError:
        return False
