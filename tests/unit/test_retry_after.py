"""How long a server asks to wait, read from its Retry-After header."""

import time
from email.utils import formatdate

import pytest

from infra.retry_after import read_retry_after


@pytest.mark.parametrize("value", ["", "soon", "-5", "1.5", "9" * 400, "\u00b2", "\u0661", "Mon, 99 Foo 2026"])
def test_nonsense_is_no_wait_asked_for(value):
    """What cannot be read is as good as none, digits that are not ASCII's among it."""
    assert read_retry_after(value) is None


def test_seconds_and_dates_are_understood():
    """It may be a number or a date; a past one is no wait."""
    assert read_retry_after("120") == 120
    assert read_retry_after(formatdate(time.time() + 100, usegmt=True)) == pytest.approx(100, abs=30)
    assert read_retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0


def test_a_date_without_a_zone_is_in_utc(monkeypatch):
    """Wherever the host stands: the oldest form of a date names no zone."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        value = time.strftime("%a %b %d %H:%M:%S %Y", time.gmtime(time.time() + 100))
        assert read_retry_after(value) == pytest.approx(100, abs=30)
    finally:
        monkeypatch.undo()
        time.tzset()
