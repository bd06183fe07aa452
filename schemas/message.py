"""What travels in Redis: a version and an id, never more.

A message is a hint that a shard, or a callback, may be claimed. It may be lost, doubled, late or out of order;
Postgres decides.
"""

from typing import Annotated, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from schemas.states import Lane

JUDGE_TASK = "nightcourt.judge"
CALLBACK_TASK = "nightcourt.call_back"

QUEUES: dict[Lane, str] = {Lane.INTERACTIVE: "interactive", Lane.BULK: "bulk"}
"""The Celery queue of each lane, most urgent first."""

CALLBACK_QUEUE = "callbacks"
"""The queue of a process of its own: a receiver that hangs keeps no engine waiting."""


VISIBILITY_SECONDS = 300
"""After so long Redis gives a hint that was taken and not acknowledged to another worker. Leases are sooner."""


class ShardHint(BaseModel):
    """Version 1 of the hint: which shard may be claimed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    v: Literal[1] = 1
    shard: int


class CallbackHint(BaseModel):
    """Version 1 of the hint: which callback may be claimed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    v: Literal[1] = 1
    callback: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]

    @property
    def id(self) -> UUID:
        """The callback's key."""
        return UUID(hex=self.callback)
