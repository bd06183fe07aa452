"""What travels in Redis: a version and an id, never more.

A message is a hint that a shard may be claimed. It may be lost, doubled, late or out of order; Postgres decides.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from schemas.states import Lane

JUDGE_TASK = "nightcourt.judge"

QUEUES: dict[Lane, str] = {Lane.INTERACTIVE: "interactive", Lane.BULK: "bulk"}
"""The Celery queue of each lane, most urgent first."""


VISIBILITY_SECONDS = 300
"""After so long Redis gives a hint that was taken and not acknowledged to another worker. Leases are sooner."""


class ShardHint(BaseModel):
    """Version 1 of the hint: which shard may be claimed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    v: Literal[1] = 1
    shard: int
