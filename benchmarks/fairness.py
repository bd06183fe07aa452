"""How long ten comparisons of one tenant take beside 200,000 of another, and how long when nothing else is done.

All are filed over HTTP, each tenant with its key; only the 200,000 single comparisons are put into the tables in the
form that HTTP leaves them in, since filing them would take longer than all else. The simulated engine has a speed at
which they keep it busy throughout. The bound to hold is twice the idle time, for medians of rounds in one run.
"""

import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.service import make_key
from infra import settings
from infra.local.supervisor import Stack
from producer.client import Client

TEN = 10
FLOOD = 200_000
_ROUNDS = 15
_TOKENS_PER_SECOND = 200_000.0
_PIECE = 5_000
_SINGLES = """
    WITH filed AS (
        INSERT INTO comparisons (source_id, line, tenant, body)
        SELECT gen_random_uuid(), 0, 'flood', jsonb_build_object(
            'prompt', 'Which of the flood, ' || n || '?', 'response_a', 'this', 'response_b', 'that')::text
        FROM generate_series(1::int, %s) n RETURNING source_id
    )
    INSERT INTO shards (tenant, filing_id, source_id, first_line, last_line, lane, state)
    SELECT 'flood', source_id, source_id, 0, 0, 'interactive', 'waiting' FROM filed
"""
_LEFT = """
    SELECT coalesce(sum(last_line - first_line + 1), 0) FROM shards
    WHERE tenant = 'flood' AND state IN ('waiting', 'released', 'running')
"""
_number = itertools.count()


def _row(which: str) -> dict[str, Any]:
    # Each unlike the others: what was judged before would be answered from the stored verdict.
    return {"prompt": f"Which of the {which}, {next(_number)}?", "response_a": "this", "response_b": "that"}


def _ten_singles(client: Client) -> float:
    started = time.perf_counter()
    filed = [client.submit(**_row("ten")).id for _ in range(TEN)]
    for comparison in filed:
        client.wait(comparison, timeout=300)
    return time.perf_counter() - started


def _ten_lines(client: Client, folder: Path) -> float:
    file = folder / "ten.jsonl"
    file.write_text("".join(json.dumps(_row("ten")) + "\n" for _ in range(TEN)))
    started = time.perf_counter()
    batch = client.create_batch(client.upload(file).id, completion_window="24h")
    while client.batch(batch.id).request_counts.succeeded < TEN:
        time.sleep(0.02)
    return time.perf_counter() - started


def _rounds(measure: Callable[[], float], rounds: int) -> float:
    return statistics.median([measure() for _ in range(rounds)])


def _file_batch(client: Client, folder: Path, lines: int) -> str:
    """File a batch of the large tenant."""
    file = folder / "flood.jsonl"
    with file.open("w") as out:
        out.writelines(json.dumps(_row("flood")) + "\n" for _ in range(lines))
    return client.create_batch(client.upload(file).id, completion_window="24h").id


def _left(connection: psycopg.Connection) -> int:
    row = connection.execute(_LEFT).fetchone()
    return int(row[0]) if row else 0


def _beside(connection: psycopg.Connection, before: int, idle: float, measure: Callable[[], float]) -> dict[str, Any]:
    busy = _rounds(measure, _ROUNDS)
    return {
        "idle_ms": round(idle * 1000, 1),
        "beside_ms": round(busy * 1000, 1),
        "ratio": round(busy / idle, 2),
        "others_waiting_before": before,
        "others_waiting_after": _left(connection),
        "within_bound": busy <= 2 * idle,
    }


def measure(flood: int = FLOOD) -> dict[str, Any]:
    """Measure idle and beside the flood, in one run on one stack."""
    chosen = settings.load(engine="simulated", simulated_tokens_per_second=_TOKENS_PER_SECOND, log_level="warning")
    found: dict[str, Any] = {"ten": TEN, "flood": flood, "rounds": _ROUNDS}
    with (
        tempfile.TemporaryDirectory() as folder,
        Stack(chosen, Path(folder) / "data", port=0) as stack,
        Client(stack.info.api_url, api_key=stack.info.key) as client,
        Client(stack.info.api_url, api_key=make_key(stack.info.database_url, tenant="flood")) as large,
        psycopg.connect(stack.info.database_url, autocommit=True) as connection,
    ):

        def singles() -> float:
            return _ten_singles(client)

        def lines() -> float:
            return _ten_lines(client, Path(folder))

        singles()  # warm up
        lines()
        idle_singles, idle_lines = _rounds(singles, _ROUNDS), _rounds(lines, _ROUNDS)

        batch = _file_batch(large, Path(folder), flood)
        while not connection.execute("SELECT 1 FROM shards WHERE tenant = 'flood' AND state = 'running'").fetchone():
            time.sleep(0.1)
        found["batch_beside_batch"] = _beside(connection, _left(connection), idle_lines, lines)
        found["singles_beside_batch"] = _beside(connection, _left(connection), idle_singles, singles)
        large.cancel_batch(batch)
        while _left(connection):
            time.sleep(0.2)

        for _ in range(0, flood, _PIECE):
            connection.execute(_SINGLES, (_PIECE,))
        found["singles_beside_singles"] = _beside(connection, _left(connection), idle_singles, singles)
        found["flood_singles_per_second"] = _rate(connection)
        stack.hurry()
    return found


def _rate(connection: psycopg.Connection) -> float:
    """How many singles of the flood are decided in a second."""
    before, started = _left(connection), time.perf_counter()
    time.sleep(5)
    return round((before - _left(connection)) / (time.perf_counter() - started), 1)
