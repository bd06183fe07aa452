"""Reading comparisons back, and waiting for them to be decided."""

# ruff: noqa: S608 - statements are put together from constants of this module alone; values are always bound

import asyncio
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import Row, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from infra import docket
from infra.filed import METADATA, SOURCE, label_of
from schemas.comparison import Comparison, ComparisonError, ComparisonPage
from schemas.ids import SINGLE_LINE, ComparisonKey, batch_id, comparison_id
from schemas.problems import ALREADY_DECIDED, NOT_FOUND, PART_OF_A_BATCH, Problem
from schemas.states import ComparisonStatus
from schemas.verdict import Judge, Tally, Usage, Verdict

log = structlog.get_logger()

_COLUMNS = f"""
    SELECT {{filing}} AS filing_id, c.line, c.custom_id,
           {METADATA} AS metadata, coalesce(b.created_at, c.created_at) AS created_at,
           CASE WHEN (SELECT f.has_labels FROM files f WHERE f.id = b.file_id) THEN c.body END AS labelled,
           o.status, o.tally, o.error_code, o.error_message, o.prompt_tokens, o.cached_tokens, o.gpu_seconds, o.reused,
           o.decided_at, j.card AS judge,
           EXISTS (SELECT FROM shards s WHERE s.filing_id = {{filing}} AND s.state = 'running'
                   AND c.line BETWEEN s.first_line AND s.last_line) AS running
    FROM comparisons c
    LEFT JOIN batches b ON b.id = {{batch}} AND b.file_id = c.source_id
    LEFT JOIN outcomes o ON o.filing_id = {{filing}} AND o.line = c.line
    LEFT JOIN judges j ON j.id = o.judge_id
"""

# A single comparison is its own source; a batch's lines have the file as theirs.
_READ = text(
    _COLUMNS.format(filing="CAST(:filing_id AS uuid)", batch="CAST(:filing_id AS uuid)")
    + f"WHERE c.tenant = :tenant AND c.line = :line AND c.source_id = {SOURCE}"
)

_PAGE = text(
    _COLUMNS.format(filing="c.source_id", batch="NULL")
    + """
    WHERE c.tenant = :tenant AND c.line = 0 AND (CAST(:after AS uuid) IS NULL OR c.source_id < :after)
    ORDER BY c.source_id DESC
    LIMIT :limit
"""
)

_DECIDED = text("""
    SELECT o.filing_id, o.line FROM decided o
    JOIN unnest(CAST(:filings AS uuid[]), CAST(:lines AS int[])) AS asked(filing_id, line)
      ON o.filing_id = asked.filing_id AND o.line = asked.line
""")


def _comparison(row: Row[Any]) -> Comparison:
    verdict = error = None
    if row.tally is not None:
        verdict = Verdict(
            **Tally.model_validate(row.tally).model_dump(),
            judge=Judge.model_validate(row.judge),
            usage=Usage(
                prompt_tokens=row.prompt_tokens,
                cached_tokens=row.cached_tokens,
                gpu_seconds=row.gpu_seconds,
                reused=row.reused,
            ),
        )
    elif row.error_code is not None:
        error = ComparisonError(code=row.error_code, message=row.error_message)
    if row.status is not None:
        status = ComparisonStatus(row.status)
    else:
        status = ComparisonStatus.RUNNING if row.running else ComparisonStatus.QUEUED
    return Comparison(
        id=comparison_id(ComparisonKey(row.filing_id, row.line)),
        status=status,
        created_at=row.created_at,
        decided_at=row.decided_at,
        custom_id=row.custom_id,
        metadata=row.metadata or {},
        label=None if row.labelled is None else label_of(row.labelled),
        verdict=verdict,
        error=error,
    )


def _no_such(key: ComparisonKey) -> Problem:
    return Problem(NOT_FOUND, f"There is no comparison {comparison_id(key)}.")


async def read(connection: AsyncConnection, *, tenant: str, key: ComparisonKey) -> Comparison:
    """Read one comparison.

    Raises:
        Problem: the tenant has no such comparison.
    """
    parameters = {"tenant": tenant, "filing_id": key.filing_id, "line": key.line}
    row = (await connection.execute(_READ, parameters)).one_or_none()
    if row is None:
        raise _no_such(key)
    return _comparison(row)


async def page(connection: AsyncConnection, *, tenant: str, after: ComparisonKey | None, limit: int) -> ComparisonPage:
    """List comparisons that were filed singly, newest first, beginning after one of them."""
    parameters = {"tenant": tenant, "after": after.filing_id if after else None, "limit": limit + 1}
    rows = (await connection.execute(_PAGE, parameters)).all()
    return ComparisonPage.of([_comparison(row) for row in rows], limit)


async def cancel(database: AsyncEngine, *, tenant: str, key: ComparisonKey) -> Comparison:
    """Call a comparison off that was filed singly. Cancelling twice is the same as once.

    Raises:
        Problem: the tenant has no such comparison, it is a line of a batch, or it has already ended in another way.
    """
    async with database.begin() as connection:
        await read(connection, tenant=tenant, key=key)
        if key.line != SINGLE_LINE:
            raise Problem(
                PART_OF_A_BATCH,
                f"{comparison_id(key)} is a line of {batch_id(key.filing_id)}, which is cancelled as a whole or not at "
                "all; cancel the batch, or let the line be.",
            )
        await connection.run_sync(docket.cancel, tenant=tenant, filing_id=key.filing_id)
        comparison = await read(connection, tenant=tenant, key=key)
    if comparison.status is not ComparisonStatus.CANCELLED:
        raise Problem(
            ALREADY_DECIDED,
            f"{comparison.id} ended as {comparison.status} before it could be cancelled; read it instead.",
        )
    return comparison


class Waiter:
    """Tells requests that wait when their comparison is decided: one query a tick for all of them together."""

    def __init__(self, database: AsyncEngine, *, every: float, most: int) -> None:
        self._database = database
        self._every = every
        self._most = most
        self._waiting: dict[ComparisonKey, set[asyncio.Event]] = {}
        self._someone = asyncio.Event()
        self._closing = False

    async def wait(self, key: ComparisonKey, seconds: float) -> bool:
        """Wait until the comparison has an outcome, or the time is up, or the server ends.

        Returns:
            False where as many wait as may, and this one did not.
        """
        if sum(map(len, self._waiting.values())) >= self._most:
            return False
        decided = asyncio.Event()
        self._waiting.setdefault(key, set()).add(decided)
        self._someone.set()
        try:
            if not self._closing:
                async with asyncio.timeout(seconds):
                    await decided.wait()
        except TimeoutError:
            pass
        finally:
            waiters = self._waiting.get(key, set())
            waiters.discard(decided)
            if not waiters:
                self._waiting.pop(key, None)
        return True

    async def run(self) -> None:
        """Look, tick by tick, for what is awaited. Cancelled when the server ends, which lets every waiter go."""
        try:
            while True:
                await self._someone.wait()
                if not self._waiting:
                    self._someone.clear()
                    continue
                try:
                    for key in await self._decided(list(self._waiting)):
                        for event in self._waiting.get(key, ()):
                            event.set()
                except SQLAlchemyError as error:
                    log.warning("waiter_cannot_look", error=type(error).__name__)
                    await asyncio.sleep(1)
                await asyncio.sleep(self._every)
        finally:
            self.close()

    def close(self) -> None:
        """Let every waiter go, and hold nobody from now on."""
        self._closing = True
        for events in self._waiting.values():
            for event in events:
                event.set()

    async def _decided(self, keys: Sequence[ComparisonKey]) -> list[ComparisonKey]:
        filings: list[UUID] = [key.filing_id for key in keys]
        async with self._database.connect() as connection:
            rows = await connection.execute(_DECIDED, {"filings": filings, "lines": [key.line for key in keys]})
            return [ComparisonKey(row.filing_id, row.line) for row in rows]
