"""The words for where a thing stands, and which of them are final."""

from enum import StrEnum
from typing import Literal


class Lane(StrEnum):
    """Which line a shard stands in. Interactive work is never kept waiting behind bulk."""

    INTERACTIVE = "interactive"
    BULK = "bulk"


class ShardState(StrEnum):
    """Where a shard stands. The moves between these are in `infra/docket_sql.py`.

    waiting -> released -> running -> done, and from running back to waiting when a lease runs out,
    a worker gives the shard back, or an attempt failed and is to be tried again.
    """

    WAITING = "waiting"
    """Filed; becomes due at `due_at`."""
    RELEASED = "released"
    """A hint was sent through Redis; no worker has claimed it yet."""
    RUNNING = "running"
    """A worker holds a lease with a fencing token."""
    SPLIT = "split"
    """Ended by being divided in two halves that carry on."""
    DONE = "done"
    """Each of its lines has an outcome."""


Fate = Literal["retried", "given_back", "split", "errored"]
"""What becomes of a shard whose attempt failed, or whose worker was lost."""


class OutcomeStatus(StrEnum):
    """How a comparison ended. There is exactly one outcome for each comparison that has ended."""

    SUCCEEDED = "succeeded"
    ERRORED = "errored"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class ComparisonStatus(StrEnum):
    """What a producer is told of a comparison: where its shard stands, or how it ended."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    ERRORED = "errored"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def final(self) -> bool:
        """Whether nothing more will happen to the comparison."""
        return self not in {ComparisonStatus.QUEUED, ComparisonStatus.RUNNING}
