"""Stores that take no writes: a Postgres whose disk is full, a Redis that is full or became a replica."""

import asyncio
from pathlib import Path
from uuid import uuid4

import pytest
import redis
from fastapi.testclient import TestClient
from sqlalchemy import Engine, text
from sqlalchemy.exc import OperationalError
from support.service import QUESTION
from support.waiting import wait_until

from infra.copying import NULL, Copying, integer, key, packed, string
from infra.database import at_once, connect, connect_async
from infra.local.redis import start_redis
from infra.settings import Settings
from producer.api.app import create_app
from producer.cli import doctor

_END_OTHERS = text("""
    SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
""")


def take_no_writes(database: Engine) -> None:
    """Have a server take none from anyone who connects from now on, and let nobody be connected before."""
    with at_once(database) as connection:
        connection.execute(text(f'ALTER DATABASE "{database.url.database}" SET default_transaction_read_only = on'))
        connection.execute(_END_OTHERS)


def test_the_api_says_so_and_goes_on_by_itself(client: TestClient, database: Engine):
    """Who files is told to come again, as where Postgres is away; the API stays in service for those who read."""
    assert client.post("/v1/comparisons", json=QUESTION).status_code == 202
    take_no_writes(database)
    answer = client.post("/v1/comparisons", json=QUESTION)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert len(client.get("/v1/comparisons").json()["data"]) == 1
    ready = client.get("/readyz")
    assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
    assert "Postgres takes no writes" in ready.json()["wrong"][0]
    with at_once(database) as connection:
        connection.execute(text(f'ALTER DATABASE "{database.url.database}" RESET default_transaction_read_only'))

    def files() -> bool:
        return client.post("/v1/comparisons", json=QUESTION).status_code == 202

    wait_until(files, within=20, what="it files again")
    assert len(client.get("/v1/comparisons").json()["data"]) == 2


def test_doctor_says_so(database: Engine, database_url: str):
    """It answers, and is not well."""
    take_no_writes(database)
    found = {each.part: each for each in doctor._database(database_url, within=60)}
    assert not found["postgres"].ok
    assert "takes no writes" in found["postgres"].says


def test_who_copies_rows_in_connects_anew(database: Engine, database_url: str):
    """A COPY goes past what sees to other statements; its connection is as useless, and is not kept."""
    copying = Copying("bad_lines", "file_id, line, custom_id, code, message, param")
    row = packed(key(uuid4()), integer(1), NULL, string("no_json"), string("It is none."), NULL)
    take_no_writes(database)
    pool = connect(database_url, application="test", pool_size=1, overflow=0, ping=False)
    with pytest.raises(OperationalError, match="read-only"), pool.begin() as connection:
        copying.store(connection, row)

    async def come_again() -> str:
        edge = connect_async(database_url, application="test", pool_size=1)
        try:
            with pytest.raises(OperationalError, match="read-only"):
                async with edge.begin() as connection:
                    await copying.store_async(connection, row)
            with at_once(database) as owner:
                owner.execute(text(f'ALTER DATABASE "{database.url.database}" RESET default_transaction_read_only'))
            async with edge.connect() as connection:
                return (await connection.execute(text("SHOW transaction_read_only"))).scalar_one()
        finally:
            await edge.dispose()

    assert asyncio.run(come_again()) == "off"
    with pool.connect() as connection:
        assert connection.execute(text("SHOW transaction_read_only")).scalar_one() == "off"
    pool.dispose()


@pytest.mark.parametrize("cause", [("REPLICAOF", "127.0.0.1", "9"), ("CONFIG", "SET", "maxmemory", "1")])
def test_a_redis_that_takes_none_is_told_of(database_url: str, tmp_path: Path, cause: tuple[str, ...]):
    """It answers a PING, and nothing is handed out by it."""
    server = start_redis(tmp_path / "redis")
    try:
        settings = Settings(database_url=database_url, redis_url=server.service_url)
        with TestClient(create_app(settings)) as http, redis.from_url(server.url) as owner:
            assert http.get("/readyz").json()["redis"] == "ok"
            assert doctor._redis(server.service_url) == "answers"
            owner.execute_command(*cause)
            ready = http.get("/readyz")
            assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
            assert ready.json()["redis"].startswith("takes no writes")
            assert "Redis takes no writes" in ready.json()["wrong"][-1]
            with pytest.raises(OSError, match="takes no writes"):
                doctor._redis(server.service_url)
    finally:
        server.stop()
