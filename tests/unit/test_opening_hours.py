"""Whether a batch's window opens before the batch is over."""

from datetime import UTC, datetime, timedelta

import pytest

from producer.hours import opens_within
from schemas.batch import Hours


def window(start: str, end: str, timezone: str = "UTC") -> Hours:
    """Hours of each day."""
    return Hours.model_validate({"start": start, "end": end, "timezone": timezone})


NOON = datetime(2026, 3, 28, 12, tzinfo=UTC)
"""Of the day before clocks are put forward in Berlin, where it is one hour later."""


@pytest.mark.parametrize(
    ("hours", "lasts", "opens"),
    [
        (window("11:00", "13:00"), 1, True),
        (window("13:00", "14:00"), 1, False),
        (window("13:00", "14:00"), 2, True),
        (window("22:00", "06:00"), 10, False),
        (window("22:00", "06:00"), 11, True),
        (window("02:00", "03:00"), 14, False),
        (window("02:00", "03:00"), 15, True),
        (window("10:00", "11:00"), 24, True),
        (window("00:00", "00:00"), 1, True),
        (window("13:00", "14:00", "Europe/Berlin"), 1, True),
        (window("14:00", "15:00", "Europe/Berlin"), 1, False),
        (window("03:30", "04:00", "Europe/Berlin"), 13, False),
        (window("03:30", "04:00", "Europe/Berlin"), 14, True),
    ],
)
def test_a_window_opens_in_time_or_not(hours: Hours, lasts: int, opens: bool) -> None:
    """By wall clocks of its zone, over midnight, and in a night in which they are put forward."""
    assert opens_within(hours, NOON, NOON + timedelta(hours=lasts)) is opens
