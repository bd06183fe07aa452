"""The Retry-After header of an answer: how long who asked is to wait."""

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

_DELAY = re.compile("[0-9]{1,9}")


def read_retry_after(value: str) -> float | None:
    """The seconds that a Retry-After header asks for, in either of its forms; None where it cannot be read."""
    if not value.isascii():
        return None
    if _DELAY.fullmatch(value):
        return float(value)
    try:
        date = parsedate_to_datetime(value)
        # The oldest form of a date names no zone and is in UTC.
        left = (date if date.tzinfo else date.replace(tzinfo=UTC)) - datetime.now(UTC)
    except (ValueError, OverflowError):
        return None
    return max(0.0, left.total_seconds())
