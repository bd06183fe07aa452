"""Files and batches on the wire: OpenAI's shapes, with what they lack beside."""

import re
from datetime import time
from enum import StrEnum
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field

from schemas.bodies import Body, Metadata
from schemas.comparison import CallbackUrl, Orders, Profile
from schemas.pages import Listed, Page


class BatchStatus(StrEnum):
    """Where a batch stands, in OpenAI's words."""

    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """Whether nothing more will happen to the batch, unless its errored lines are retried."""
        return self in {BatchStatus.FAILED, BatchStatus.COMPLETED, BatchStatus.EXPIRED, BatchStatus.CANCELLED}


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ValueError("is no time zone; give a name such as Europe/Berlin") from None
    return name


def _by_the_wall_clock(value: object) -> object:
    """Refuse what pydantic would take for a time of day also: seconds, and times with a zone of their own."""
    said = value.isoformat() if isinstance(value, time) else value
    if not isinstance(said, str) or not re.fullmatch(r"\d\d:\d\d(:\d\d(\.\d+)?)?", said):
        raise ValueError("is no time of day; give it as 22:00, and its zone as timezone")
    return value


_TIME_TO_COMPLETE = "[1-9][0-9]{0,3}[mhd]"


def _time_to_complete(value: object) -> object:
    """Refuse what is no time to complete in, in words: whoever is told a pattern has to read it."""
    if not isinstance(value, str) or not re.fullmatch(_TIME_TO_COMPLETE, value):
        raise ValueError("takes a whole number from 1 to 9999 and m, h or d after it, such as 90m, 24h or 7d")
    return value


WallClock = Annotated[time, BeforeValidator(_by_the_wall_clock)]

_YEAR_3000 = 32_503_680_000
"""In Unix seconds. What lies beyond is in milliseconds."""


class Hours(Body):
    """The hours of each day in which a batch may run, by the wall clock. `end` before `start` is over midnight.

    Whoever reads them may be on a host that does not know the zone.
    """

    start: WallClock
    end: WallClock
    timezone: str = "UTC"


class Window(Hours):
    """Hours that are asked for, in a zone that there is."""

    timezone: Annotated[str, AfterValidator(_zone)] = "UTC"


class BatchRequest(Body):
    """What to make of an uploaded file."""

    input_file_id: str = Field(description="The id that uploading the file gave")
    endpoint: Literal["/v1/comparisons"] = Field(description="There is this one")
    completion_window: Annotated[str, BeforeValidator(_time_to_complete)] = Field(
        json_schema_extra={"pattern": f"^{_TIME_TO_COMPLETE}$"},
        description="How long until what is undecided expires, from `not_before` where that is set: 90m, 24h, 7d",
    )
    metadata: Metadata | None = Field(default=None, description="Up to 16 pairs of text, given back as they are")
    order: Orders | None = Field(default=None, description="In which orders to ask, for lines that do not say")
    profile: Profile | None = Field(default=None, description="The prompt profile, for lines that do not say")
    tie_margin: float | None = Field(
        default=None,
        ge=0,
        lt=0.5,
        allow_inf_nan=False,
        description="Call it a tie when probability_a is within this of 0.5, for lines that do not say",
    )
    priority: int = Field(default=0, ge=-100, le=100, description="Higher goes first among one tenant's batches")
    on_bad_line: Literal["fail", "skip"] = Field(
        default="fail", description="fail: nothing of a file with bad lines is judged. skip: the other lines are"
    )
    reuse: bool = Field(
        default=True, description="Answer from stored verdicts of the same comparison by the same judge"
    )
    not_before: int | None = Field(
        default=None, ge=0, le=_YEAR_3000, description="Unix seconds, not milliseconds, before which nothing runs"
    )
    window: Window | None = Field(default=None, description="The hours of each day in which it may run")
    callback_url: CallbackUrl | None = Field(
        default=None, description="Where a signed callback goes when it has ended, signed with your default secret"
    )
    callback_comparisons: bool = Field(
        default=False, description="Call back for each of its comparisons too, there and to endpoints that want them"
    )


class RequestCounts(BaseModel):
    """How many lines there are, and how those that ended did. total = completed + failed + undecided."""

    total: int
    completed: int
    failed: int
    succeeded: int
    errored: int
    cancelled: int
    expired: int
    reused: int = Field(description="Of those that succeeded, how many were answered from stored verdicts")


class BatchErrors(BaseModel):
    """Why a batch could not run: lines at fault, the first hundred."""

    object: Literal["list"] = "list"
    data: list[dict[str, Any]]


class BatchUsage(BaseModel):
    """What a batch has cost so far."""

    input_tokens: int
    input_tokens_details: dict[str, int]
    output_tokens: int = 0
    output_tokens_details: dict[str, int] = Field(default_factory=lambda: {"reasoning_tokens": 0})
    total_tokens: int
    gpu_seconds: float


class Progress(BaseModel):
    """How a batch is getting on."""

    decided: int
    lines_per_second: float | None = Field(description="Over the last minute; null where nothing ended in it")
    eta_seconds: float | None = Field(description="Judging time left at that rate, windows not counted")
    waiting_for: str | None = Field(
        description="Why nothing is being judged now, in a sentence; null where something is"
    )


class Batch(Listed):
    """A batch, in OpenAI's shape, with our additions after it. Times are Unix seconds."""

    object: Literal["batch"] = "batch"
    endpoint: str
    model: str | None = None
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: BatchStatus
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    usage: BatchUsage | None
    metadata: dict[str, str] | None

    paused: bool
    priority: int
    not_before: int | None
    window: Hours | None
    on_bad_line: Literal["fail", "skip"]
    progress: Progress
    input_file_name: str = Field(default="", description="What the file was called by whoever uploaded it")


class BatchPage(Page[Batch]):
    """A page of batches, newest first. Ask for the next with `after=last_id`."""


class File(Listed):
    """An uploaded file, in OpenAI's shape."""

    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["uploaded", "processed", "error"] = "processed"
    expires_at: int | None = None
    lines: int | None = Field(default=None, description="Lines that are comparisons")
    bad_lines: int | None = Field(default=None, description="Lines that are none")


class FilePage(Page[File]):
    """A page of uploaded files, in the order that was asked for. Ask for the next with `after=last_id`."""
