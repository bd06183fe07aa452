"""What a key of the service may do, and within which limits."""

from dataclasses import dataclass
from enum import StrEnum


class Scope(StrEnum):
    """What a key may be used for. A key has one or more; `admin` includes the others."""

    SUBMIT = "submit"
    """File comparisons, upload files, run batches, and call off what was filed."""
    READ = "read"
    """Read comparisons, batches, files, callbacks and reports."""
    ADMIN = "admin"
    """Register and remove callback endpoints, rotate their secrets, replay callbacks; and all of the above."""


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """The limits of one key; None where the setting's default holds."""

    requests_per_second: float | None = None
    queued_comparisons: int | None = None
    tokens_per_day: int | None = None
    concurrent_batches: int | None = None
    max_body_bytes: int | None = None
