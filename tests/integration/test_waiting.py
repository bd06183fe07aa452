"""Why a comparison still waits: each reason, from a docket that stands so."""

import asyncio
import re
from uuid import UUID

import pytest
from sqlalchemy import Connection, text
from support.dockets import a_line, batch

from infra import docket, roster
from infra.database import connect_async
from producer import batches, waiting
from schemas.ids import ComparisonKey, new_filing_id
from schemas.problems import OutcomeError
from schemas.states import Lane


@pytest.fixture
def single(connection: Connection) -> UUID:
    """A comparison, filed singly, with a worker that is alive."""
    roster.report(connection, worker="w1", slots=8, bulk_slots=4, engine={})
    return file(connection)


def file(connection: Connection) -> UUID:
    """File a comparison."""
    filing = new_filing_id()
    docket.file(connection, tenant="default", filing_id=filing, lane=Lane.INTERACTIVE, comparisons=[a_line(0)])
    return filing


@pytest.fixture
def why(database_url: str):
    """Ask why a line of a filing waits."""

    def ask(filing: UUID, line: int = 0) -> str | None:
        async def look() -> str | None:
            database = connect_async(database_url, application="test")
            try:
                async with database.connect() as connection:
                    return await waiting.why_comparison(connection, ComparisonKey(filing, line), worker_seconds=30)
            finally:
                await database.dispose()

        return asyncio.run(look())

    return ask


def claim(connection: Connection) -> docket.Claim:
    """Release a shard and claim it."""
    [shard] = docket.release(connection, lane=Lane.INTERACTIVE, room=1, limit=1)
    claimed = docket.claim(connection, shard, worker="w1", lease_seconds=60)
    assert claimed is not None
    return claimed


def test_nobody_is_there_to_judge_it(connection: Connection, single: UUID, why):
    """Where no worker was heard of lately, that is the reason, whatever else is."""
    connection.execute(text("UPDATE workers SET seen_at = now() - interval '1 min'"))
    assert why(single) == "no worker was heard of lately; start one"


def test_others_are_before_it(connection: Connection, single: UUID, why):
    """It is told how many shards of its lane come first, those that workers have among them."""
    claim(connection)
    file(connection)
    assert why(file(connection)) == "it is behind 2 interactive shards"


def test_what_another_tenant_files_is_not_before_it(connection: Connection, single: UUID, why):
    """Tenants take turns: however much of another waits, and for how long, it is told its own tenant's place."""
    for _ in range(3):
        docket.file(
            connection, tenant="another", filing_id=new_filing_id(), lane=Lane.INTERACTIVE, comparisons=[a_line(0)]
        )
    connection.execute(text("UPDATE shards SET priority = 9, due_at = now() - interval '1 s' WHERE tenant = 'another'"))
    assert why(single) == "it is next"
    assert why(file(connection)) == "it is behind 1 interactive shards"


def test_a_pause_after_a_failure(connection: Connection, single: UUID, why):
    """After an attempt that failed it is told which, and how long the next one is put off."""
    docket.fail(
        connection,
        claim(connection),
        code=OutcomeError.ENGINE_FAILED,
        message="-",
        retry_in=600,
        max_attempts=3,
    )
    assert why(single) in {f"attempt 1 failed; it is tried again in {seconds} s" for seconds in range(590, 601)}


def test_it_is_on_its_way(connection: Connection, single: UUID, why):
    """A comparison that is next, was handed out, or is being judged says so, or says nothing."""
    assert why(single) == "it is next"
    docket.release(connection, lane=Lane.INTERACTIVE, room=1, limit=1)
    assert why(single) == "it was handed out, and the next worker that is free takes it"
    docket.withdraw(connection, [1])
    claim(connection)
    assert why(single) is None


def test_nobody_hands_it_out(connection: Connection, single: UUID, why):
    """What has been due for long, while nothing is out, points at the dispatcher, however much is before it."""
    last = file(connection)
    connection.execute(text("UPDATE shards SET due_at = now() - interval '1 min'"))
    for each in (single, last):
        assert re.match(r"nobody hands it out, 6\d s after its time; see that the dispatcher runs", why(each))
    claim(connection)
    assert why(last) == "it is behind 1 interactive shards"
    assert docket.oldest_due(connection) == pytest.approx(60, abs=5)


def test_what_is_decided_waits_for_nothing(connection: Connection, single: UUID, why):
    """Once it has an outcome there is no reason left to tell."""
    docket.cancel(connection, tenant="default", filing_id=single)
    assert why(single) is None
    assert docket.oldest_due(connection) == 0


CLOSED, OPEN = (
    f""""window" = jsonb_build_object('timezone', 'UTC', 'start', to_char(now() AT TIME ZONE 'UTC' {start}, 'HH24:MI'),
                                  'end', to_char(now() AT TIME ZONE 'UTC' + interval '2 h', 'HH24:MI')), open = false"""
    for start in ("+ interval '1 h'", "- interval '1 h'")
)
"""Hours that begin in one, and hours that began one ago, of batches that the dispatcher has not opened."""
UNKNOWN = OPEN.replace("'UTC',", "'Mars/Olympus',")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("paused = true, open = false", "its batch is paused; resume it"),
        ("not_before = now() + interval '1 h', open = false", "the time of its batch has not come; nothing of it runs"),
        (CLOSED, "the window of its batch is closed"),
        (OPEN, "it is behind 1 bulk shards"),
        (UNKNOWN, "the window of its batch is closed"),
        ("status = 'cancelling', open = false", "its batch is being cancelled"),
        ("open = false", "it is behind 1 bulk shards"),
        ("open = true", "it is behind 1 bulk shards"),
    ],
)
def test_a_line_of_a_batch(connection: Connection, single: UUID, why, change: str, reason: str):
    """A line waits for what its batch waits for."""
    filing = batch(connection, 2)
    connection.execute(text(f"UPDATE batches SET {change}"))  # noqa: S608
    assert why(filing, 2).startswith(reason)


def stands(database_url: str, filing: UUID, within: float = 30) -> str | None:
    """Read what a batch waits for."""

    async def look() -> str | None:
        database = connect_async(database_url, application="test")
        try:
            async with database.connect() as connection:
                batch = await batches.read(connection, tenant="default", batch_id=filing, worker_seconds=within)
        finally:
            await database.dispose()
        return batch.progress.waiting_for

    return asyncio.run(look())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (CLOSED, "its window is closed"),
        (OPEN, "it waits to be handed out; if that stays so, see that the dispatcher runs"),
        (UNKNOWN, "its window is closed"),
        ("open = false", "it waits to be handed out; if that stays so, see that the dispatcher runs"),
        ("open = true", "it waits to be handed out; if that stays so, see that the dispatcher runs"),
    ],
)
def test_a_batch(connection: Connection, single: UUID, database_url: str, change: str, reason: str):
    """A window is closed by the clock, or in a zone that is not known here; workers are busy where something is out."""
    filing = batch(connection, 2)
    connection.execute(text(f"UPDATE batches SET {change}"))  # noqa: S608
    assert stands(database_url, filing).startswith(reason)
    claim(connection)
    others = "workers are busy with other work"
    assert stands(database_url, filing).startswith(reason if "window" in reason else others)


def test_a_batch_of_which_the_rest_failed(connection: Connection, single: UUID, database_url: str):
    """While all that is left of it waits for its next attempt, that is the reason; what is next goes before."""
    filing = batch(connection, 2)
    put_off = text("UPDATE shards SET due_at = now() + interval '100 s' WHERE filing_id = :id")
    connection.execute(put_off, {"id": filing})
    assert re.fullmatch(
        "the engine failed at what is left; it is tried again in (99|100) s", stands(database_url, filing)
    )
    connection.execute(text("UPDATE shards SET due_at = now()"))
    assert "the engine failed" not in stands(database_url, filing)


def test_a_batch_waits_for_workers_that_are_heard_of(connection: Connection, single: UUID, database_url: str):
    """For how long a worker is counted on is what the process is set to."""
    filing = batch(connection, 2)
    connection.execute(text("UPDATE workers SET seen_at = now() - interval '1 min'"))
    nobody = "no worker was heard of lately; start one"
    assert stands(database_url, filing, within=59) == nobody
    assert stands(database_url, filing, within=600) != nobody
