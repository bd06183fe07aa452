"""Batches: many comparisons filed together from one file, with a window, a deadline, a priority, and a brake."""

# ruff: noqa: S608 - statements are put together from constants of this module alone; values are always bound

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol
from uuid import UUID

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from infra import callbacks, docket
from infra.addresses import Allowed
from producer import callback_endpoints, idempotency, waiting
from producer.hours import opens_within
from producer.progress import COUNTS, as_batch
from schemas import ids
from schemas.batch import (
    Batch,
    BatchErrors,
    BatchPage,
    BatchRequest,
    BatchStatus,
)
from schemas.ids import new_filing_id
from schemas.problems import BATCH_ENDED, BATCH_RUNNING, NOT_FOUND, OutcomeError, Problem, invalid_field


class Admit(Protocol):
    """Asked for room for a batch in the transaction that makes it; raises a problem where there is none."""

    async def __call__(self, connection: AsyncConnection, /, *, lines: int) -> None:
        """Let so many lines in."""
        ...


_UNITS = {"m": 60, "h": 3600, "d": 86400}

_CREATE = text("""
    INSERT INTO batches (id, tenant, file_id, endpoint, status, options, completion_window, metadata, priority,
                         on_bad_line, not_before, "window", total, expires_at, in_progress_at, ended_at)
    SELECT :id, :tenant, f.id, :endpoint, CAST(:status AS text), CAST(:options AS jsonb), :completion_window,
           CAST(:metadata AS jsonb), :priority, :on_bad_line, to_timestamp(:not_before), CAST(:window AS jsonb),
           f.lines + f.bad_lines, greatest(now(), to_timestamp(:not_before)) + make_interval(secs => :seconds),
           CASE WHEN :status = 'in_progress' THEN now() END, CASE WHEN :status = 'failed' THEN now() END
    FROM files f WHERE f.id = :file_id AND f.tenant = :tenant
""")

_BAD_LINES_AS_OUTCOMES = text("""
    INSERT INTO outcomes (filing_id, line, tenant, status, error_code, error_message)
    SELECT :id, b.line, :tenant, 'errored', :code, b.message FROM bad_lines b WHERE b.file_id = :file_id
""")

_READ = text(
    f"SELECT b.*, f.bad_lines, f.filename, n.*, now() AS now FROM batches b JOIN files f ON f.id = b.file_id {COUNTS} "
    "WHERE b.tenant = :tenant AND b.id = :id AND b.status <> 'deleting'"
)

_PAGE = text(f"""
    SELECT b.*, f.bad_lines, f.filename, n.*, now() AS now FROM batches b JOIN files f ON f.id = b.file_id {COUNTS}
    WHERE b.tenant = :tenant AND b.status <> 'deleting' AND (CAST(:after AS uuid) IS NULL OR b.id < :after)
      AND (NOT :live OR b.status IN ('in_progress', 'cancelling'))
    ORDER BY b.id DESC LIMIT :limit
""")

_BAD_LINES = text("SELECT line, code, message, param FROM bad_lines WHERE file_id = :file_id ORDER BY line LIMIT 100")

# Of so many lines at most: a failed batch may have millions, and is read again and again.
_ERRORS_OF = 10_000
_ERRORS = text(f"""
    SELECT error_code, count(*) AS lines, min(line) AS line, min(error_message) AS message
    FROM (SELECT * FROM outcomes WHERE filing_id = :id ORDER BY line LIMIT {_ERRORS_OF}) AS first
    WHERE error_code IS NOT NULL GROUP BY error_code ORDER BY lines DESC LIMIT 5
""")

_PAUSE = text("""
    UPDATE batches SET paused = :paused, open = open AND NOT :paused
    WHERE tenant = :tenant AND id = :id AND status = 'in_progress' RETURNING id
""")

_CANCEL = text("""
    UPDATE batches SET status = 'cancelling', cancelling_at = now(), open = false
    WHERE tenant = :tenant AND id = :id AND status = 'in_progress' RETURNING id
""")

# Errored lines are judged anew: their outcomes go, and shards of the same runs carry them. Lines that were no
# comparison stay as they are.
_RETRY = text("""
    WITH gone AS (
        DELETE FROM outcomes WHERE filing_id = :id AND status = 'errored' AND error_code <> :bad_line RETURNING line
    ), reopened AS (
        UPDATE batches SET status = 'in_progress', ended_at = NULL, paused = false, samples = '[]',
            expires_at = greatest(expires_at, now() + make_interval(secs => :seconds))
        WHERE id = :id AND EXISTS (SELECT FROM gone) RETURNING *
    ), cleared AS (
        UPDATE shards SET errored = 0 FROM reopened WHERE shards.filing_id = reopened.id
    )
    INSERT INTO shards (tenant, filing_id, source_id, first_line, last_line, lane, priority, state, deadline_at, bytes,
                        notify, traceparent)
    SELECT r.tenant, r.id, r.file_id, min(gone.line), max(gone.line), 'bulk', r.priority, 'waiting', r.expires_at, 0,
           EXISTS (SELECT FROM shards s WHERE s.filing_id = r.id AND s.notify), :traceparent
    FROM reopened r, gone GROUP BY r.tenant, r.id, r.file_id, r.priority, r.expires_at, (gone.line - 1) / :shard_lines
    RETURNING id
""")

_TO_BE_JUDGED_AGAIN = text("""
    SELECT count(*) FROM outcomes WHERE filing_id = :id AND status = 'errored' AND error_code <> :bad_line
""")


def _seconds(window: str) -> int:
    return int(window[:-1]) * _UNITS[window[-1]]


def _no_such() -> Problem:
    return Problem(NOT_FOUND, "There is no batch of this id.")


def key_of(batch_id: str) -> UUID:
    """Read a batch's id.

    Raises:
        Problem: it is none.
    """
    key = ids.parse_prefixed(batch_id, "batch_")
    if key is None:
        raise _no_such()
    return key


async def _require_time_for_it(connection: AsyncConnection, request: BatchRequest, clock_shift: float) -> None:
    """Refuse a batch that would expire before it may run, by the clock that windows go by.

    Raises:
        Problem: its window does not open in time.
    """
    if request.window is None:
        return
    now = (await connection.execute(text("SELECT now()"))).scalar_one() + timedelta(seconds=clock_shift)
    begins = now if request.not_before is None else max(now, datetime.fromtimestamp(request.not_before, UTC))
    if not opens_within(request.window, begins, begins + timedelta(seconds=_seconds(request.completion_window))):
        raise invalid_field(
            "window",
            f"it does not open before the completion_window of {request.completion_window} is over, and the batch "
            "would expire unjudged; give it more time",
        )


async def create(
    database: AsyncEngine,
    request: BatchRequest,
    *,
    tenant: str,
    allowed: Allowed,
    admit: Admit,
    worker_seconds: float,
    idempotency_key: str | None = None,
    traceparent: str | None = None,
    clock_shift: float = 0.0,
) -> tuple[Batch, bool]:
    """Make a batch of an uploaded file. Nothing runs of a file with bad lines, unless they are to be skipped.

    Args:
        database: where to.
        request: the batch.
        tenant: whose it is.
        allowed: where callbacks may go beyond the public internet.
        admit: asked for room before anything is stored; raises a problem where there is none.
        worker_seconds: a worker that was not heard of for this long counts for nothing, where it is said why a batch
            waits; here and below.
        idempotency_key: with a key seen before, nothing is made and the batch is that of the first time.
        traceparent: where its trace begins.
        clock_shift: seconds by which the clock of windows is ahead.

    Returns:
        The batch, and whether it had been made before under the same key.

    Raises:
        Problem: there is no such file, the key was used before with another body, there is no room, its window does not
            open before it expires, or callbacks may not go where they are wanted.
    """
    file_id = ids.parse_prefixed(request.input_file_id, "file-")
    batch = new_filing_id()
    async with database.begin() as connection:
        if idempotency_key is not None:
            earlier = await idempotency.take(connection, tenant, idempotency_key, request, batch)
            if earlier is not None:
                return await read(connection, tenant=tenant, batch_id=earlier, worker_seconds=worker_seconds), True
        await _require_time_for_it(connection, request, clock_shift)
        file = None
        if file_id is not None:
            found = await connection.execute(
                text("SELECT * FROM files WHERE tenant = :tenant AND id = :id AND state = 'processed' FOR SHARE"),
                {"tenant": tenant, "id": file_id},
            )
            file = found.one_or_none()
        if file is None or file_id is None:
            raise invalid_field("input_file_id", "there is no such file; upload it first, with purpose batch")
        refused = file.lines == 0 or (file.bad_lines > 0 and request.on_bad_line == "fail")
        if not refused:
            await admit(connection, lines=file.lines)
        options: dict[str, Any] = {"reuse": request.reuse}
        for name in ("order", "profile", "tie_margin"):
            if (value := getattr(request, name)) is not None:
                options[name] = value
        await connection.execute(
            _CREATE,
            {
                "id": batch,
                "tenant": tenant,
                "file_id": file_id,
                "endpoint": request.endpoint,
                "status": "failed" if refused else "in_progress",
                "options": json.dumps(options),
                "completion_window": request.completion_window,
                "metadata": None if request.metadata is None else json.dumps(request.metadata),
                "priority": request.priority,
                "on_bad_line": request.on_bad_line,
                "not_before": request.not_before,
                "window": None if request.window is None else request.window.model_dump_json(),
                "seconds": _seconds(request.completion_window),
            },
        )
        if request.callback_url is not None:
            await connection.run_sync(
                callback_endpoints.remember, tenant=tenant, filing_id=batch, url=request.callback_url, allowed=allowed
            )
        if refused:
            await connection.run_sync(callbacks.tell_batches, [batch])
        else:
            await connection.run_sync(
                docket.file_batch, batch, notify=request.callback_comparisons, traceparent=traceparent
            )
            parameters = {"id": batch, "tenant": tenant, "file_id": file_id, "code": OutcomeError.BAD_LINE}
            await connection.execute(_BAD_LINES_AS_OUTCOMES, parameters)
        return await read(connection, tenant=tenant, batch_id=batch, worker_seconds=worker_seconds), False


async def read(connection: AsyncConnection, *, tenant: str, batch_id: UUID, worker_seconds: float) -> Batch:
    """Read a batch as it stands.

    Raises:
        Problem: the tenant has no such batch.
    """
    row = (await connection.execute(_READ, {"tenant": tenant, "id": batch_id})).one_or_none()
    if row is None:
        raise _no_such()
    errors = None
    if row.status == "failed":
        errors = await _errors(connection, row)
    return as_batch(row, errors, await _why_idle(connection, [row], worker_seconds))


async def _why_idle(
    connection: AsyncConnection, rows: Sequence[Row[Any]], worker_seconds: float
) -> waiting.Reason | None:
    """Tell why nothing is judged of batches that could go; None where all that are in progress are being judged."""
    if not any(row.status == BatchStatus.IN_PROGRESS and not row.running for row in rows):
        return None
    return await connection.run_sync(waiting.why_idle, within=worker_seconds)


async def page(
    connection: AsyncConnection,
    *,
    tenant: str,
    after: UUID | None,
    limit: int,
    worker_seconds: float,
    live: bool = False,
) -> BatchPage:
    """List batches, newest first; with `live`, those that have not ended."""
    parameters = {"tenant": tenant, "after": after, "limit": limit + 1, "live": live}
    rows = (await connection.execute(_PAGE, parameters)).all()
    idle = await _why_idle(connection, rows, worker_seconds)
    return BatchPage.of([as_batch(row, None, idle) for row in rows], limit)


async def _errors(connection: AsyncConnection, row: Row[Any]) -> BatchErrors:
    """Say why a batch failed: its bad lines, or what went wrong most often."""
    if row.live == 0 and row.in_progress_at is None:
        bad = (await connection.execute(_BAD_LINES, {"file_id": row.file_id})).all()
        data = [{"code": each.code, "line": each.line, "message": each.message, "param": each.param} for each in bad]
        if not data:
            data = [{"code": "empty_file", "line": None, "message": "The file has no lines.", "param": None}]
        return BatchErrors(data=data)
    commonest = (await connection.execute(_ERRORS, {"id": row.id})).all()
    among = f"of the first {_ERRORS_OF} lines, " if row.total > _ERRORS_OF else ""
    return BatchErrors(
        data=[
            {
                "code": each.error_code,
                "line": each.line,
                "message": f"{among}{each.lines} lines ended so, for instance: {each.message}",
                "param": None,
            }
            for each in commonest
        ]
    )


async def pause(database: AsyncEngine, *, tenant: str, batch_id: UUID, paused: bool, worker_seconds: float) -> Batch:
    """Hold a batch, taking back what is out; or let it go on.

    Raises:
        Problem: there is no such batch, or it has ended.
    """
    async with database.begin() as connection:
        parameters = {"tenant": tenant, "id": batch_id, "paused": paused}
        changed = (await connection.execute(_PAUSE, parameters)).one_or_none()
        batch = await read(connection, tenant=tenant, batch_id=batch_id, worker_seconds=worker_seconds)
        if changed is None:
            raise Problem(
                BATCH_ENDED, f"{batch.id} is {batch.status}; only what is in progress can be paused or resumed."
            )
        if paused:
            await connection.run_sync(docket.recall, batch_id)
        return await read(connection, tenant=tenant, batch_id=batch_id, worker_seconds=worker_seconds)


async def cancel(database: AsyncEngine, *, tenant: str, batch_id: UUID, worker_seconds: float) -> Batch:
    """Call a batch off: nothing of it runs from here on, and what was decided stays.

    Raises:
        Problem: there is no such batch, or it has ended.
    """
    async with database.begin() as connection:
        changed = (await connection.execute(_CANCEL, {"tenant": tenant, "id": batch_id})).one_or_none()
        batch = await read(connection, tenant=tenant, batch_id=batch_id, worker_seconds=worker_seconds)
        if changed is not None:
            await connection.run_sync(docket.recall, batch_id)
        elif batch.status not in {BatchStatus.CANCELLING, BatchStatus.CANCELLED}:
            raise Problem(BATCH_ENDED, f"{batch.id} has ended as {batch.status} before it could be cancelled.")
        return batch


async def retry(
    database: AsyncEngine,
    *,
    tenant: str,
    batch_id: UUID,
    shard_lines: int,
    admit: Admit,
    worker_seconds: float,
    traceparent: str | None = None,
) -> Batch:
    """Judge the errored lines of an ended batch again. Lines that are no comparison stay errored.

    Raises:
        Problem: there is no such batch, it has not ended, or there is no room.
    """
    async with database.begin() as connection:
        lock = text("SELECT FROM batches WHERE id = :id AND tenant = :tenant FOR UPDATE")
        await connection.execute(lock, {"id": batch_id, "tenant": tenant})
        batch = await read(connection, tenant=tenant, batch_id=batch_id, worker_seconds=worker_seconds)
        if batch.status in {BatchStatus.IN_PROGRESS, BatchStatus.CANCELLING}:
            raise Problem(BATCH_RUNNING, f"{batch.id} is still {batch.status}; retry it once it has ended.")
        those = {"id": batch_id, "bad_line": OutcomeError.BAD_LINE}
        if lines := int((await connection.execute(_TO_BE_JUDGED_AGAIN, those)).scalar_one()):
            await admit(connection, lines=lines)
        parameters = {
            **those,
            "seconds": _seconds(batch.completion_window),
            "shard_lines": shard_lines,
            "traceparent": traceparent,
        }
        await connection.execute(_RETRY, parameters)
        return await read(connection, tenant=tenant, batch_id=batch_id, worker_seconds=worker_seconds)
