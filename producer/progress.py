"""How a batch stands: sums over its shards, its rate, and the time it will take."""

# ruff: noqa: S608 - statements are put together from constants of this module alone; values are always bound

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, text

from producer import waiting
from schemas import ids
from schemas.batch import (
    Batch,
    BatchErrors,
    BatchStatus,
    BatchUsage,
    Hours,
    Progress,
    RequestCounts,
)

_SOON = 1.0
"""Seconds before which a rate is a guess."""
_SAMPLE_SECONDS = 5.0
_SAMPLES = 12
"""A batch's rate is that of the last minute: so many samples, so many seconds apart."""

COUNTS = """
    LEFT JOIN LATERAL (
        SELECT coalesce(sum(succeeded), 0) AS succeeded, coalesce(sum(errored), 0) AS errored,
               coalesce(sum(cancelled), 0) AS cancelled, coalesce(sum(expired), 0) AS expired,
               coalesce(sum(reused), 0) AS reused,
               coalesce(sum(prompt_tokens), 0) AS prompt_tokens, coalesce(sum(cached_tokens), 0) AS cached_tokens,
               coalesce(sum(gpu_seconds), 0) AS gpu_seconds,
               coalesce(sum(bytes * done), 0) AS bytes_done,
               coalesce(sum(bytes * (1 - done)) FILTER (WHERE state IN ('waiting', 'released', 'running')), 0)
                   AS bytes_left,
               count(*) FILTER (WHERE state = 'running') AS running,
               count(*) FILTER (WHERE state = 'released' OR (state = 'waiting' AND due_at <= now())) AS next,
               extract(epoch FROM min(due_at) FILTER (WHERE state = 'waiting') - now()) AS due_in,
               count(*) FILTER (WHERE state IN ('waiting', 'released', 'running')) AS live
        FROM shards CROSS JOIN LATERAL (
            -- The share of a shard's lines that have ended. Its span may hold lines that are not its own.
            SELECT CASE WHEN state = 'done' THEN 1.0 ELSE
                (succeeded + errored + cancelled + expired)::float8 / (last_line - first_line + 1) END AS done
        ) share
        WHERE shards.filing_id = b.id
    ) n ON true
"""

# Whose row somebody is at is noted at another turn.
_SAMPLE = text(f"""
    WITH due AS MATERIALIZED (
        SELECT id FROM batches
        WHERE status = 'in_progress' AND open
          AND coalesce(CAST(samples->-1->>0 AS float8), 0) <= extract(epoch FROM now()) - :seconds
        FOR UPDATE SKIP LOCKED
    )
    UPDATE batches SET samples =
        CASE WHEN jsonb_array_length(b.samples) < :most THEN b.samples ELSE b.samples - 0 END
        || jsonb_build_array(jsonb_build_array(extract(epoch FROM now()), n.succeeded + n.errored, n.bytes_done))
    FROM batches b {COUNTS}
    WHERE b.id = ANY(ARRAY(SELECT id FROM due)) AND batches.id = b.id
""")


def sample(connection: Connection) -> None:
    """Note how far each open batch has come of which it is time to: its rate is told from such notes.

    A note is seconds since the epoch, lines judged, and bytes of text judged.
    """
    connection.execute(_SAMPLE, {"seconds": _SAMPLE_SECONDS, "most": _SAMPLES})


def _unix(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp())


def as_batch(row: Row[Any], errors: BatchErrors | None, idle: waiting.Reason | None) -> Batch:
    """Give a row of `batches` with its `COUNTS` the form it has on the wire.

    Args:
        row: with `now` and the file's `bad_lines` and `filename` beside.
        errors: why it failed, where it did.
        idle: why nothing of it is judged, where it could go: what `waiting.why_idle` tells.
    """
    ran = row.in_progress_at is not None
    bad = row.bad_lines if ran else 0
    succeeded, errored = int(row.succeeded), int(row.errored) + bad
    cancelled, expired = int(row.cancelled), int(row.expired)
    ended = {
        status: _unix(row.ended_at) if row.status == status else None
        for status in ("completed", "failed", "expired", "cancelled")
    }
    usage = BatchUsage(
        input_tokens=int(row.prompt_tokens),
        input_tokens_details={"cached_tokens": int(row.cached_tokens)},
        total_tokens=int(row.prompt_tokens),
        gpu_seconds=float(row.gpu_seconds),
    )
    return Batch(
        id=ids.batch_id(row.id),
        endpoint=row.endpoint,
        errors=errors,
        input_file_id=ids.file_id(row.file_id),
        completion_window=row.completion_window,
        status=BatchStatus(row.status),
        output_file_id=ids.view_id("output", row.id) if succeeded else None,
        error_file_id=ids.view_id("errors", row.id) if errored + cancelled + expired else None,
        created_at=int(row.created_at.timestamp()),
        in_progress_at=_unix(row.in_progress_at),
        expires_at=_unix(row.expires_at),
        finalizing_at=_unix(row.ended_at) if row.status == "completed" else None,
        completed_at=ended["completed"],
        failed_at=ended["failed"],
        expired_at=ended["expired"],
        cancelling_at=_unix(row.cancelling_at),
        cancelled_at=ended["cancelled"],
        request_counts=RequestCounts(
            total=row.total,
            completed=succeeded,
            failed=errored + cancelled + expired,
            succeeded=succeeded,
            errored=errored,
            cancelled=cancelled,
            expired=expired,
            reused=int(row.reused),
        ),
        usage=usage,
        metadata=row.metadata,
        paused=row.paused,
        priority=row.priority,
        not_before=_unix(row.not_before),
        window=None if row.window is None else Hours.model_validate(row.window),
        on_bad_line=row.on_bad_line,
        progress=_progress(row, succeeded + errored + cancelled + expired, idle),
        input_file_name=row.filename,
    )


def _progress(row: Row[Any], decided: int, idle: waiting.Reason | None) -> Progress:
    rate = eta = None
    if row.open and row.samples:
        since, lines, text_done = row.samples[0]
        seconds = row.now.timestamp() - since
        judged = int(row.succeeded) + int(row.errored) - lines
        if seconds >= _SOON and judged > 0:
            rate = judged / seconds
            # Text judged a second tells more of what is left than lines a second: lines differ in length. Of lines that
            # are judged again it is not known how much text they are.
            if row.bytes_left:
                eta = float(row.bytes_left) * seconds / max(float(row.bytes_done) - text_done, 1.0)
            else:
                eta = (row.total - decided) / rate
    return Progress(
        decided=decided,
        lines_per_second=rate,
        eta_seconds=eta if row.status == "in_progress" else None,
        waiting_for=waiting.why_batch(row, idle),
    )
