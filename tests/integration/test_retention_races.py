"""Deleting at the moments where somebody else is at the same rows."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text
from support.dockets import LONG, a_line, an_outcome
from support.waiting import wait_until

from infra import docket
from producer import retention
from schemas.ids import new_filing_id
from schemas.states import Lane

Start = Callable[..., Future[Any]]


@pytest.fixture
def meanwhile(database: Engine) -> Iterator[Start]:
    """Start something beside the test, and come back when it waits for what the test has not committed yet."""

    def waits() -> bool:
        found = text("SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")
        with database.connect() as connection:
            return bool(connection.execute(found).all())

    def start(move: Callable[..., Any], *arguments: Any, **options: Any) -> Future[Any]:
        future = pool.submit(move, *arguments, **options)
        wait_until(lambda: future.done() or waits(), within=10, every=0.005, what="it waits")
        assert not future.done(), "it did not wait"
        return future

    with ThreadPoolExecutor() as pool:
        yield start


def left(connection: Connection, *tables: str) -> list[int]:
    """How many rows tables have."""
    return [connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one() for table in tables]  # noqa: S608


class TestTenant:
    """A tenant's rows go, whoever is writing to them."""

    def test_a_shard_that_is_being_written_to_goes(self, database, connection, monkeypatch, meanwhile):
        """A worker's record is under way as the shards go: its shard goes too, and its next write is refused."""
        docket.file(
            connection, tenant="other", filing_id=new_filing_id(), lane=Lane.INTERACTIVE, comparisons=[a_line(0)]
        )
        [shard] = docket.release(connection, lane=Lane.INTERACTIVE, room=1, limit=1)
        claim = docket.claim(connection, shard, worker="w", lease_seconds=LONG)
        assert claim is not None
        # The record begins after the purge has waited for what was there before.
        monkeypatch.setattr(retention, "_await_all_before", lambda *_: None)
        with database.begin() as worker:
            docket.renew(worker, (claim.lease,), lease_seconds=LONG)
            purge = meanwhile(retention.delete_tenant, database, "other")
        purge.result(30)
        with database.begin() as worker, pytest.raises(docket.LeaseLostError):
            docket.finish(worker, claim.lease, [an_outcome(0, good=True)])
        assert left(connection, "shards", "outcomes", "comparisons") == [0, 0, 0]

    def test_a_receiver_that_is_being_written_to_goes(self, desk, monkeypatch, meanwhile):
        """So does what a callback process is writing to."""
        desk.add_endpoint("http://127.0.0.1:1/nobody")
        desk.tell()
        desk.fan_out()
        monkeypatch.setattr(retention, "_await_all_before", lambda *_: None)
        with desk.database.begin() as courier:
            courier.execute(text("UPDATE callback_endpoints SET url = url"))
            purge = meanwhile(retention.delete_tenant, desk.database, "default")
        purge.result(30)
        assert desk.one("SELECT count(*) FROM callback_endpoints") == 0
