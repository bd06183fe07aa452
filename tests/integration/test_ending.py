"""How the HTTP edge ends: whoever it holds is answered first."""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx2
from sqlalchemy import Connection, text
from support.dockets import batch as insert_batch
from support.edge import served
from support.keys import a_key, bearer
from support.service import QUESTION
from support.waiting import wait_until

from infra.settings import Settings
from producer.api.app import create_app, serving
from schemas import ids

GRACE = 20
"""Seconds after which the server gives up: more than its own, since many tests may run beside."""


def test_whoever_is_held_is_answered_first(database_url: str, connection: Connection):
    """A server that ends lets go a request that waits for a verdict, and ends streams; it cuts none of them off."""
    path = f"/v1/batches/{ids.batch_id(insert_batch(connection, 1))}/events"
    key = a_key(database_url)
    settings = Settings(database_url=database_url, redis_url="redis://127.0.0.1:1", secret_keys="0123456789abcdef" * 4)
    how = {**serving(settings), "timeout_graceful_shutdown": GRACE}
    filed = text("SELECT count(*) FROM comparisons WHERE source_id NOT IN (SELECT file_id FROM batches)")
    with ExitStack() as clients, ThreadPoolExecutor(1) as pool:
        with served(create_app(settings), **how) as url:
            http = clients.enter_context(httpx2.Client(base_url=url, timeout=60, trust_env=False))
            http.post("/dashboard/login", data={"key": key})
            streams = [
                clients.enter_context(http.stream("GET", each, headers=bearer(key))).iter_lines()
                for each in (path, "/dashboard/events")
            ]
            assert [next(each) for each in streams] == ["event: batch", "event: parts"]
            asked = {**bearer(key), "Prefer": "wait=60"}
            held = pool.submit(http.post, "/v1/comparisons", json=QUESTION, headers=asked)
            wait_until(lambda: connection.execute(filed).scalar() == 1, within=20, what="the comparison is filed")
        assert held.result().status_code == 202
        for each in streams:
            assert list(each), "the stream ends, and is not cut off"


def test_a_connection_that_is_idle_is_not_waited_for(database_url: str):
    """A proxy keeps many, and for minutes."""
    settings = Settings(database_url=database_url, redis_url="redis://127.0.0.1:1")
    how = {**serving(settings), "timeout_graceful_shutdown": GRACE}
    with httpx2.Client(timeout=60, trust_env=False) as http:
        with served(create_app(settings), **how) as url:
            assert http.get(f"{url}/livez").status_code == 200
            began = time.monotonic()
        assert time.monotonic() - began < GRACE / 2
