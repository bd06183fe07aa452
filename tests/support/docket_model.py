"""What a model of the docket keeps of its rows."""

from dataclasses import dataclass
from uuid import UUID

from schemas.states import Lane

LIVE = ("waiting", "released", "running")


@dataclass(slots=True)
class Shard:
    """What the model knows of a shard."""

    filing: UUID
    first: int
    last: int
    lane: Lane
    priority: int
    state: str = "waiting"
    attempt: int = 0
    token: int | None = None
    due: bool = True
    forgotten: bool = False
    """Released so long ago that its hint must have been lost."""
    lapsed: bool = False
    """Its lease has run out."""
    at_work: int | None = None
    """The line that is noted to be alone in the engine."""
    losses: int = 0
    """How many workers were lost over it."""
    deadline: bool = False
    overdue: bool = False
    """Its deadline has passed."""

    def rest(self, state: str) -> None:
        """Leave the running state, or a state before it."""
        self.state, self.token, self.lapsed, self.due, self.at_work = state, None, False, True, None


@dataclass(frozen=True, slots=True)
class Decided:
    """What the model knows of an outcome."""

    status: str
    code: str | None
    attempt: int
