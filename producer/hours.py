"""The hours in which a batch may run."""

from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import structlog
from sqlalchemy import Row

from schemas.batch import Hours

log = structlog.get_logger()


def is_open(now: datetime, not_before: datetime | None, window: Hours | None) -> bool:
    """Tell whether a batch may run at a moment.

    The window's times are wall-clock times of its zone on each day. A night in which clocks are put forward or back is
    as much shorter or longer; a start that a change of clocks skips takes effect when the clock has passed it.

    Args:
        now: the moment, aware.
        not_before: the moment before which nothing runs.
        window: the hours of each day; None for all of them.
    """
    if not_before is not None and now < not_before:
        return False
    if window is None or window.start == window.end:
        return True
    local = now.astimezone(ZoneInfo(window.timezone)).time()
    if window.start < window.end:
        return window.start <= local < window.end
    return local >= window.start or local < window.end


def opens_within(window: Hours, start: datetime, end: datetime) -> bool:
    """Tell whether a window is open at some moment from `start` to before `end`, both aware."""
    if is_open(start, None, window):
        return True
    zone = ZoneInfo(window.timezone)
    today = start.astimezone(zone).date()
    openings = [datetime.combine(today + timedelta(days=later), window.start, zone) for later in (0, 1)]
    return any(start <= opening < end for opening in openings)


def may_run(row: Row[Any], now: datetime) -> bool:
    """Tell whether a batch, of which there are `id`, `not_before` and `window`, may run at a moment; see `is_open`."""
    try:
        window = None if row.window is None else Hours.model_validate(row.window)
        return is_open(now, row.not_before, window)
    except (KeyError, ValueError, OSError) as error:
        # A zone that this host does not know, say. One batch that waits for an operator must not stop all the others.
        log.warning("window_not_understood", batch=str(row.id), error=type(error).__name__)
        return False
