"""Lines and outcomes for tests of the docket."""

import json
import uuid

from sqlalchemy import Connection, text

from infra import docket
from infra.docket import Claim
from infra.filed import Filed
from infra.outcomes import Outcome
from schemas.ids import new_filing_id
from schemas.problems import OutcomeError
from schemas.states import OutcomeStatus
from support.canaries import canary

MAX_ATTEMPTS = 2
LONG = 3600.0
TALLY = json.dumps({"winner": "A", "probability_a": 0.9, "consistent": True, "position_bias": 0.0, "ballots": []})


def a_line(number: int) -> Filed:
    """Make a comparison that says as little as a comparison can."""
    return Filed(
        line=number,
        custom_id=None,
        prompt=f"Which? {canary('Prompt')}",
        response_a=canary("ResponseA"),
        response_b=canary("ResponseB"),
        orders="both",
        profile="card",
        tie_margin=None,
        metadata={},
    )


def an_outcome(number: int, *, good: bool) -> Outcome:
    """Make an outcome that is a success, or that names an error."""
    if good:
        return Outcome(line=number, status=OutcomeStatus.SUCCEEDED, tally=TALLY, judge_id="jdg_test")
    return Outcome(line=number, status=OutcomeStatus.ERRORED, error_code=OutcomeError.UNPARSEABLE, error_message="-")


MAKE_BATCH = (
    """INSERT INTO files (id, tenant, filename, purpose, state, lines)
       VALUES (:file, :tenant, '', '', 'processed', :runs)""",
    """INSERT INTO comparisons (source_id, line, tenant, body)
       SELECT :file, n, :tenant, '{"prompt": "XYZZYp", "response_a": "XYZZYa", "response_b": "XYZZYb"}'
       FROM generate_series(1, :runs) n""",
    """INSERT INTO file_runs (file_id, first_line, last_line, lines, bytes)
       SELECT :file, n, n, 1, 10 FROM generate_series(1, :runs) n""",
    """INSERT INTO batches (id, tenant, file_id, endpoint, status, options, completion_window, on_bad_line, total,
                            expires_at, priority, open)
       VALUES (:batch, :tenant, :file, '', 'in_progress', '{"order": "ba"}', '24h', 'fail', :runs,
               now() + interval '1 day', :priority, :open)""",
)


def batch(
    connection: Connection, runs: int, *, tenant: str = "default", priority: int = 0, is_open: bool = True
) -> uuid.UUID:
    """Make a batch of so many runs of one line each."""
    values = {
        "file": new_filing_id(),
        "batch": new_filing_id(),
        "tenant": tenant,
        "runs": runs,
        "priority": priority,
        "open": is_open,
    }
    for statement in MAKE_BATCH:
        connection.execute(text(statement), values)
    assert docket.file_batch(connection, values["batch"]) == runs
    return values["batch"]


def claim_one(connection: Connection) -> Claim:
    """Release a shard and claim it."""
    [shard] = docket.release_bulk(connection, room=1, limit=1)
    claim = docket.claim(connection, shard, worker="w", lease_seconds=60)
    assert claim is not None
    return claim


_READS = text("SELECT seq_tup_read + coalesce(idx_tup_fetch, 0) FROM pg_stat_user_tables WHERE relname = :table")


def reads(connection: Connection, table: str) -> int:
    """Count the rows of a table that were read until now, by whichever way; for a connection in autocommit."""
    connection.execute(text("SELECT pg_stat_force_next_flush()"))
    return int(connection.execute(_READS, {"table": table}).scalar_one())
