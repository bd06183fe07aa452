"""How long a POST takes while Redis is down, or hung, beside how long it takes while Redis is there.

In turns, in one run, against one API, dispatcher and worker. The bound to hold is 1.5 times: whoever files work is
not to notice that Redis is gone. What was filed meanwhile has to be decided once it is back.
"""

import secrets
import signal
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import psycopg

from benchmarks.service import make_key, wait_until
from infra.environment import child_environment
from infra.local.child import start_child
from infra.local.ports import free_port
from infra.local.postgres import start_postgres
from infra.local.redis import Redis, start_redis
from infra.migrating import migrate

_TURNS = 6
_POSTS = 250
"""In each turn, for each state of Redis."""
_BOUND = 1.5
_PATIENCE_SECONDS = 120.0
_LIVE = "SELECT count(*) FROM shards WHERE state IN ('waiting', 'released', 'running')"


class _Broker:
    """Redis, in one of three states."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._server = self._start(None)
        self.url = self._server.url

    def _start(self, port: int | None) -> Redis:
        return start_redis(self._folder / "redis", port=port, log=self._folder / "redis.log")

    @contextmanager
    def up(self) -> Iterator[None]:
        """Leave it as it is."""
        yield

    @contextmanager
    def down(self) -> Iterator[None]:
        """End it, and start it again after."""
        self._server.child.stop(signal.SIGTERM, 20)
        yield
        self._server = self._start(self._server.port)

    @contextmanager
    def hung(self) -> Iterator[None]:
        """Stop it in its tracks: it takes connections and says nothing."""
        self._server.child.send(signal.SIGSTOP)
        yield
        self._server.child.send(signal.SIGCONT)

    def close(self) -> None:
        """End it."""
        self._server.child.kill()


def _ready(http: httpx2.Client) -> bool:
    try:
        answer = http.get("/readyz")
    except httpx2.TransportError:
        return False
    return answer.status_code == httpx2.codes.OK and answer.json()["status"] == "ready"


def _posts(http: httpx2.Client, name: str) -> list[float]:
    times = []
    for number in range(_POSTS):
        body = {"prompt": f"Which, {name} {number}?", "response_a": "this", "response_b": "that"}
        started = time.perf_counter()
        answer = http.post("/v1/comparisons", json=body)
        times.append(time.perf_counter() - started)
        if answer.status_code != httpx2.codes.ACCEPTED:
            raise RuntimeError(f"not taken while Redis was {name}: {answer.text}")
    return times


@contextmanager
def _service(folder: Path) -> Iterator[tuple[_Broker, httpx2.Client, psycopg.Connection[Any]]]:
    """Run an API, a dispatcher and a worker on a Postgres and a Redis that are this program's to hurt."""
    with ExitStack() as ends:
        postgres = start_postgres(folder / "postgres", log=folder / "postgres.log")
        ends.callback(postgres.child.stop, signal.SIGINT, 20)
        migrate(postgres.url)
        broker = _Broker(folder)
        ends.callback(broker.close)
        port = free_port()
        environment = child_environment(
            {
                "NIGHTCOURT_DATABASE_URL": postgres.url,
                "NIGHTCOURT_REDIS_URL": broker.url,
                "NIGHTCOURT_PORT": str(port),
                "NIGHTCOURT_SECRET_KEYS": secrets.token_hex(32),
                "NIGHTCOURT_ENGINE": "simulated",
                "NIGHTCOURT_LOG_LEVEL": "warning",
            }
        )
        for name, module in {"api": "producer.cli", "dispatcher": "producer.cli", "worker": "worker.app"}.items():
            command = [sys.executable, "-P", "-m", module, *([name] if module == "producer.cli" else [])]
            child = start_child(name, command, log=folder / f"{name}.log", environment=environment)
            ends.callback(child.kill)
        headers = {"Authorization": f"Bearer {make_key(postgres.url, tenant='default')}"}
        api = httpx2.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, trust_env=False, timeout=30)
        http = ends.enter_context(api)
        wait_until(lambda: _ready(http), within=_PATIENCE_SECONDS, what="the service is ready")
        yield broker, http, ends.enter_context(psycopg.connect(postgres.url, autocommit=True))


def measure() -> dict[str, Any]:
    """Measure the three states in turns."""
    with tempfile.TemporaryDirectory() as folder, _service(Path(folder)) as (broker, http, database):
        states = {"up": broker.up, "down": broker.down, "hung": broker.hung}
        times: dict[str, list[float]] = defaultdict(list)
        _posts(http, "warm up")
        for _ in range(_TURNS):
            for name, state in states.items():
                with state():
                    times[name] += _posts(http, name)
                wait_until(
                    lambda: database.execute(_LIVE).fetchall() == [(0,)],
                    within=_PATIENCE_SECONDS,
                    what=f"all is decided after Redis was {name}",
                )
        [(decided,)] = database.execute("SELECT count(*) FROM outcomes WHERE status = 'succeeded'").fetchall()
    cuts = {name: statistics.quantiles(taken, n=100) for name, taken in times.items()}
    ratios = {name: cuts[name][98] / cuts["up"][98] for name in ("down", "hung")}
    return {
        "posts_in_each_state": _TURNS * _POSTS,
        "undecided": (_TURNS * len(states) + 1) * _POSTS - decided,
        **{
            f"redis_{name}": {"p50_ms": round(cut[49] * 1000, 2), "p99_ms": round(cut[98] * 1000, 2)}
            for name, cut in cuts.items()
        },
        "ratio_p99": {name: round(ratio, 2) for name, ratio in ratios.items()},
        "bound": _BOUND,
        "within_bound": max(ratios.values()) <= _BOUND,
    }
