"""Numbers, times and ids as a page says them."""

from datetime import UTC, datetime

_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_SHORT = 8
"""Digits of an id's end that tell it from its neighbours: ids begin with the time."""
_PRECISE = 10.0


def count(number: float) -> str:
    """Say how many: `12,345`."""
    return f"{number:,.0f}"


def counted_to(number: int, most: int) -> str:
    """Say how many of what is counted no further than to so many: `987`, or `1,000 or more`."""
    return f"{count(number)} or more" if number >= most else count(number)


def rate(a_second: float | None) -> str:
    """Say how fast comparisons are decided: `4.2 a second`; by the minute where that is slow."""
    if a_second is None:
        return "–"  # noqa: RUF001 - a dash for what is not there
    if a_second < 1.0:
        return f"{a_second * _MINUTE:.1f} a minute"
    return f"{a_second:.1f} a second" if a_second < _PRECISE else f"{count(a_second)} a second"


def share(part: float, whole: float) -> str:
    """Say how much of a whole: `62 %`. Only all of it is 100."""
    if not whole:
        return "0 %"
    return f"{min(99, int(100 * part / whole)) if part < whole else 100} %"


def probability(value: float | None) -> str:
    """Say a probability: `.812`, and `1.000` where rounding makes it so."""
    if value is None:
        return "–"  # noqa: RUF001 - as above
    return f"{value:.3f}".removeprefix("0")


def odds(value: float | None) -> str:
    """Say log-odds with their sign: `+1.25`."""
    if value is None:
        return "–"  # noqa: RUF001 - as above
    return f"{value:+.2f}".replace("-", "−")  # noqa: RUF001 - a minus as wide as the plus


def duration(seconds: float | None) -> str:
    """Say how long: `8 s`, `3 min 20 s`, `2 h 5 min`, `4 d 3 h`."""
    if seconds is None:
        return "–"  # noqa: RUF001 - as above
    whole = int(max(seconds, 0))
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE} s" if whole < 10 * _MINUTE else f"{whole // _MINUTE} min"
    if whole < _DAY:
        return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE} min"
    return f"{whole // _DAY} d {whole % _DAY // _HOUR} h"


def moment(when: datetime | float) -> datetime:
    """Understand a time, or Unix seconds, in UTC."""
    return when.astimezone(UTC) if isinstance(when, datetime) else datetime.fromtimestamp(when, UTC)


def clock(when: datetime | float) -> str:
    """Say when, to the second, in UTC."""
    return f"{moment(when):%Y-%m-%d %H:%M:%S} UTC"


def ago(when: datetime | float, now: datetime) -> str:
    """Say how long ago, or in how long."""
    seconds = (now - moment(when)).total_seconds()
    if abs(seconds) < 1:
        return "now"
    return f"{duration(seconds)} ago" if seconds > 0 else f"in {duration(-seconds)}"


def short(name: str) -> str:
    """Shorten an id to its prefix and its last digits."""
    prefix = name[: max(name.find("_"), name.find("-")) + 1]
    body = name[len(prefix) :]
    digits, mark, line = body.partition("_")
    return f"{prefix}…{digits[-_SHORT:]}{mark}{line}"


def spell(word: str) -> str:
    """Spell a word of the program as a person reads it: `in_progress` is `in progress`."""
    return word.replace("_", " ")
