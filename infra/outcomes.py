"""Outcomes on their way into their table: by COPY, under the lock of the shard that they end lines of."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from infra.copying import FALSE, NULL, TRUE, Copying, integer, key, number, octets, packed, string
from schemas.problems import OutcomeError
from schemas.states import OutcomeStatus


@dataclass(slots=True)  # as `infra.filed.Filed` is
class Outcome:
    """How one line ended. With a tally it has a verdict; without one, the error fields say why."""

    line: int
    status: OutcomeStatus
    tally: str | None = None
    """A `schemas.verdict.Tally` as JSON text: it is read as it was written."""
    judge_id: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    gpu_seconds: float = 0.0
    digest: bytes | None = None
    """What was asked, as a hash, where the verdict was computed and may be found again by it."""
    error_code: OutcomeError | None = None
    error_message: str | None = None
    reused: bool = False
    """Whether the verdict is an earlier one of the same comparison by the same judge."""


_COPYING = Copying(
    "outcomes",
    "filing_id, line, tenant, attempt, status, tally, judge_id, error_code, error_message, prompt_tokens, "
    "cached_tokens, gpu_seconds, digest, reused",
)

# Between two lines, as a shard's are: of lines that are new this is one look into an index, however many they are.
_STORED = text("SELECT line FROM outcomes WHERE filing_id = :filing_id AND line BETWEEN :first AND :last")


def unstored(connection: Connection, filing_id: UUID, outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Leave out the outcomes of lines that have one already: the first stands."""
    lines = [outcome.line for outcome in outcomes]
    span = {"filing_id": filing_id, "first": min(lines, default=0), "last": max(lines, default=0)}
    stored = set(connection.execute(_STORED, span).scalars())
    return [outcome for outcome in outcomes if outcome.line not in stored] if stored else list(outcomes)


def copy_in(connection: Connection, outcomes: Sequence[Outcome], *, filing_id: UUID, tenant: str, attempt: int) -> None:
    """Store outcomes.

    Args:
        connection: in a transaction that holds the lock of the lines' shard, so that nobody else stores them now.
        outcomes: of lines that have none.
        filing_id: the lines' filing.
        tenant: whose they are.
        attempt: the attempt of their shard that decided them.

    Raises:
        sqlalchemy.exc.OperationalError: Postgres went away.
        sqlalchemy.exc.DBAPIError: Postgres refused them.
    """
    filing, whose, tries = key(filing_id), string(tenant), integer(attempt)
    rows = bytearray()
    for outcome in outcomes:
        rows += packed(
            filing,
            integer(outcome.line),
            whose,
            tries,
            string(outcome.status),
            string(outcome.tally),
            string(outcome.judge_id),
            string(outcome.error_code),
            string(outcome.error_message),
            integer(outcome.prompt_tokens),
            integer(outcome.cached_tokens),
            number(outcome.gpu_seconds),
            NULL if outcome.digest is None else octets(outcome.digest),
            TRUE if outcome.reused else FALSE,
        )
    _COPYING.store(connection, rows)


def counts(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Add up what a shard keeps count of."""
    statuses = [outcome.status for outcome in outcomes]
    return {
        "succeeded": statuses.count(OutcomeStatus.SUCCEEDED),
        "errored": statuses.count(OutcomeStatus.ERRORED),
        "reused": sum(outcome.reused for outcome in outcomes),
        "prompt_tokens": sum(outcome.prompt_tokens for outcome in outcomes),
        "cached_tokens": sum(outcome.cached_tokens for outcome in outcomes),
        "gpu_seconds": sum(outcome.gpu_seconds for outcome in outcomes),
    }
