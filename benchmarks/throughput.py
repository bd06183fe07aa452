"""A batch's whole life beside the plain way and beside Postgres alone, on the same rows in one run.

(a) nightcourt: HTTP upload, batch, judging by the simulated engine without delay, download of the results.
(b) the plain way: one ORM row and one Celery task a comparison, two worker processes, same Postgres and Redis.
(c) Postgres alone: COPY the rows in, read them back in runs of a shard, COPY outcomes back; one transaction each, from
    one connection. Its tables have our columns and keys and none of our other indexes and checks, so that it writes
    what any service would have to: whose a line is, its name, its text; a tally with two ballots as JSON, who made it,
    what it cost, and the hash by which it is found again. It understands no line, and nobody downloads from it.

(a) and (c) take turns, three times, now the one first and now the other, and each time on lines never seen before: what
a disk takes changes by the minute, and with what was given to it before. Their ratio is the median of the rounds'.

a/b says what the design is worth; a/c how much of what the database could do is left.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import httpx2
import psutil
import psycopg

from infra import settings
from infra.local.supervisor import Stack
from producer.cli.pairs import example_file
from producer.uploads import SHARD_LINES

LINES = 100_000
_ROUNDS = 3
PLAIN_LINES = 2_000
_PARTS = ("api", "dispatcher", "worker.app", "worker.callbacks_app", "redis-server")
"""What a process' command line tells it by."""
_TALLY = {
    "winner": "A",
    "probability_a": 0.5106391398688518,
    "consistent": False,
    "position_bias": 1.3977016195126857,
    "ballots": [
        {"order": "ab", "log_odds": 1.4402646034430038, "mass": 0.9634741087369096, "vote": "A"},
        {"order": "ba", "log_odds": 1.3551386355823674, "mass": 0.9578513881391165, "vote": "A"},
    ],
}
_ALONE_IN = "COPY alone_in (source_id, line, tenant, custom_id, body) FROM STDIN"
_ALONE_READ = "SELECT line, custom_id, body FROM alone_in WHERE source_id = %s AND line BETWEEN %s AND %s"
_ALONE_OUT = """
    COPY alone_out (filing_id, line, tenant, attempt, status, tally, judge_id, prompt_tokens, cached_tokens,
                    gpu_seconds, digest) FROM STDIN
"""


def rows(count: int, first: int = 0) -> Iterator[bytes]:
    """Make lines of real shape: the examples, each made unlike all others by its number, about 1 kB each."""
    pairs = [json.loads(line) for line in example_file().read_text().splitlines()]
    for number in range(first, first + count):
        pair = pairs[number % len(pairs)]
        body = {
            "custom_id": f"line-{number}",
            "prompt": f"{pair['prompt']} ({number})" if isinstance(pair["prompt"], str) else pair["prompt"],
            "response_a": f"{pair['response_a']} [{number}] " * 3,
            "response_b": f"{pair['response_b']} [{number}] " * 3,
        }
        yield json.dumps(body, ensure_ascii=False).encode() + b"\n"


class Watch:
    """Keeps the largest resident size of each of our processes while it watches, and the CPU time that each took.

    CPU time is what a busy machine changes least about a measurement.
    """

    def __init__(self) -> None:
        self.peaks: dict[str, int] = {}
        self._began: dict[int, float] = {}
        self._used: dict[int, tuple[str, float]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_looking, daemon=True)

    def __enter__(self) -> Self:
        self._look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._look()

    def cpu(self, lines: int) -> dict[str, float]:
        """Microseconds of CPU for each of so many lines, by process."""
        seconds: dict[str, float] = defaultdict(float)
        for pid, (name, used) in self._used.items():
            seconds[name] += used - self._began[pid]
        return {name: round(1e6 * used / lines, 1) for name, used in seconds.items()}

    def _keep_looking(self) -> None:
        while not self._stop.wait(0.5):
            self._look()

    def _look(self) -> None:
        for child in psutil.Process().children(recursive=True):
            try:
                line = child.cmdline() or [""]
                size = child.memory_info().rss // (1 << 20)
                times = child.cpu_times()
            except psutil.Error:
                continue
            # A backend of Postgres has the name of who logged in to it in its own.
            postgres = line[0].startswith("postgres:")
            name = "postgres" if postgres else next((part for part in _PARTS if part in line or part in line[0]), None)
            if name is None:
                continue
            # What was there before counts from now, and what is started later from its start.
            self._began.setdefault(child.pid, 0.0 if self._thread.is_alive() else times.user + times.system)
            self._used[child.pid] = (name, times.user + times.system)
            if not postgres:
                self.peaks[name] = max(size, self.peaks.get(name, 0))


def _stored(stack: Stack) -> int:
    """Bytes of the database, tables and indexes."""
    with psycopg.connect(stack.info.database_url) as connection:
        [size] = connection.execute("SELECT pg_database_size(current_database())").fetchone() or [0]
    return int(size)


def nightcourt(stack: Stack, file: Path, count: int) -> dict[str, float]:
    """Measure (a): seconds of each part of a batch's life, and what a line of it takes in the database."""
    before = _stored(stack)
    headers = {"Authorization": f"Bearer {stack.info.key}"}
    with httpx2.Client(base_url=stack.info.api_url, timeout=600, headers=headers) as http, file.open("rb") as upload:
        started = time.perf_counter()
        sent = http.post("/v1/files", files={"file": ("rows.jsonl", upload)}, data={"purpose": "batch"})
        uploaded = time.perf_counter()
        asked = {"input_file_id": sent.json()["id"], "endpoint": "/v1/comparisons", "completion_window": "24h"}
        batch = http.post("/v1/batches", json=asked).json()
        while batch["status"] == "in_progress":
            time.sleep(0.1)
            batch = http.get(f"/v1/batches/{batch['id']}").json()
        judged = time.perf_counter()
        received = 0
        with http.stream("GET", f"/v1/batches/{batch['id']}/results") as results:
            for chunk in results.iter_raw():
                received += chunk.count(b"\n")
        ended = time.perf_counter()
    if received != count or batch["request_counts"]["succeeded"] != count:
        raise RuntimeError(f"{count} lines went in, {received} came out: {batch['request_counts']}")
    return {
        "upload_s": round(uploaded - started, 2),
        "judge_s": round(judged - uploaded, 2),
        "download_s": round(ended - judged, 2),
        "lines_per_second": round(count / (ended - started), 1),
        "database_bytes_per_line": round((_stored(stack) - before) / count),
    }


@contextmanager
def _plain_workers(environment: dict[str, str]) -> Iterator[None]:
    command = [sys.executable, "-m", "celery", "-A", "benchmarks.plain", "worker", "--pool=solo", "--loglevel=ERROR"]
    silent = subprocess.DEVNULL  # what a worker prints would stand before our JSON
    workers = [
        subprocess.Popen([*command, "-n", f"plain{number}"], env=environment, stdout=silent, stderr=silent)
        for number in range(2)
    ]
    try:
        yield
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.wait(20)


def plain(stack: Stack, count: int) -> dict[str, float]:
    """Measure (b)."""
    environment = {**os.environ, "BENCH_DATABASE": stack.info.database_url, "BENCH_BROKER": stack.info.redis_url}  # noqa: TID251
    os.environ.update(environment)  # noqa: TID251 - read by the module below, as by its workers
    from sqlalchemy.orm import Session  # noqa: PLC0415

    from benchmarks import plain as way  # noqa: PLC0415 - connects when imported

    way.Base.metadata.create_all(way.database)
    with _plain_workers(environment):
        way.judge.delay(0)  # wakes the workers; there is no such job
        time.sleep(4)
        started = time.perf_counter()
        for line in rows(count):
            with Session(way.database) as session:
                job = way.Job(body=json.loads(line))
                session.add(job)
                session.commit()
                way.judge.delay(job.id)
        with psycopg.connect(stack.info.database_url, autocommit=True) as connection:
            while True:
                left = connection.execute("SELECT count(*) FROM plain_jobs WHERE verdict IS NULL").fetchone()
                if left == (0,):
                    break
                time.sleep(0.05)
            connection.execute("SELECT id, verdict FROM plain_jobs ORDER BY id").fetchall()
        seconds = time.perf_counter() - started
    return {"lines_per_second": round(count / seconds, 1)}


def postgres_alone(stack: Stack, file: Path, count: int) -> dict[str, float]:
    """Measure (c)."""
    key, judge, tally = uuid4(), f"jdg_{uuid4().hex}", json.dumps(_TALLY, separators=(",", ":"))
    with psycopg.connect(stack.info.database_url) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE alone_in (LIKE comparisons INCLUDING DEFAULTS, PRIMARY KEY (source_id, line))")
        cursor.execute("CREATE TABLE alone_out (LIKE outcomes INCLUDING DEFAULTS, PRIMARY KEY (filing_id, line))")
        connection.commit()
        started = time.perf_counter()
        with file.open(encoding="utf-8") as lines, cursor.copy(_ALONE_IN) as copy:
            for number, line in enumerate(lines, start=1):
                copy.write_row((key, number, "default", f"line-{number}", line))
        connection.commit()
        for first in range(1, count + 1, SHARD_LINES):
            cursor.execute(_ALONE_READ, (key, first, first + SHARD_LINES - 1))
            found = cursor.fetchall()
            with cursor.copy(_ALONE_OUT) as copy:
                for number, _, _ in found:
                    copy.write_row((key, number, "default", 1, "succeeded", tally, judge, 400, 0, 0.0, os.urandom(16)))
            connection.commit()
        seconds = time.perf_counter() - started
        cursor.execute("DROP TABLE alone_in, alone_out")
        connection.commit()
    return {"lines_per_second": round(count / seconds, 1)}


def _round(stack: Stack, file: Path, count: int, number: int) -> dict[str, Any]:
    """Measure (a) and (c) once."""
    with file.open("wb") as out:
        out.writelines(rows(count, number * count))
    before = postgres_alone(stack, file, count) if number % 2 else None
    with Watch() as watch:
        ours = nightcourt(stack, file, count)
    alone = before or postgres_alone(stack, file, count)
    return {
        "nightcourt": ours,
        "nightcourt_cpu_us_per_line": watch.cpu(count),
        "nightcourt_peak_rss_mb": watch.peaks,
        "postgres_alone": alone,
        "a_to_c": round(ours["lines_per_second"] / alone["lines_per_second"], 3),
    }


def measure(count: int = LINES, plain_count: int = PLAIN_LINES) -> dict[str, Any]:
    """Measure the three arms on one stack, with everything on disk as in use."""
    chosen = settings.load(engine="simulated", log_level="warning")
    with tempfile.TemporaryDirectory() as folder, Stack(chosen, Path(folder) / "data", port=0) as stack:
        file = Path(folder) / "rows.jsonl"
        rounds = [_round(stack, file, count, number) for number in range(_ROUNDS)]
        plainly = plain(stack, plain_count)
        size = file.stat().st_size
    ours = statistics.median([each["nightcourt"]["lines_per_second"] for each in rounds])
    return {
        "lines": count,
        "bytes_per_line": round(size / count),
        "rounds": rounds,
        "nightcourt": {"lines_per_second": ours},
        "plain_celery": {"lines": plain_count, **plainly},
        "postgres_alone": {
            "lines_per_second": statistics.median([each["postgres_alone"]["lines_per_second"] for each in rounds])
        },
        "a_to_b": round(ours / plainly["lines_per_second"], 1),
        "a_to_c": statistics.median([each["a_to_c"] for each in rounds]),
    }


def million(count: int = 1_000_000) -> dict[str, Any]:
    """Measure arm (a) at a million lines beside the same at a tenth of them, each on a stack of its own."""
    chosen = settings.load(engine="simulated", log_level="warning")
    arms: dict[str, Any] = {}
    for lines in (count // 10, count):
        with tempfile.TemporaryDirectory() as folder, Stack(chosen, Path(folder) / "data", port=0) as stack:
            file = Path(folder) / "rows.jsonl"
            with file.open("wb") as out:
                out.writelines(rows(lines))
            with Watch() as watch:
                measured = nightcourt(stack, file, lines)
            arms[str(lines)] = {**measured, "cpu_us_per_line": watch.cpu(lines), "peak_rss_mb": watch.peaks}
    rates = [arm["lines_per_second"] for arm in arms.values()]
    return {**arms, "rate_to_rate": round(rates[1] / rates[0], 3)}
