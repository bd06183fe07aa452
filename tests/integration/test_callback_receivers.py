"""Good and bad receivers, end to end: what each does to a callback, in one table."""

import gzip
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import trustme
from support.desk import Desk
from support.receivers import Behaviour, Call, Receiver, answering, serving

DEADLINE = 2.5
"""Of receivers that are slow."""
AMPLE = 30.0
"""Of all others, which are not kept to any time."""
SLACK = 4.0
"""For a machine that is busy, and still less than the shortest wait."""
BOMB = gzip.compress(bytes(100_000_000), compresslevel=9)
DAY = 86400.0


def late(call: Call) -> None:
    """Take the request, and answer 200 when the sender has hung up."""
    call.read()
    time.sleep(DEADLINE + 1)  # the receiver's own slowness, not a wait for anything
    call.say(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


def dribble(call: Call) -> None:
    """Answer a byte a second."""
    call.read()
    call.dribble(b"HTTP/1.1 200 OK\r\n")


def pour(call: Call) -> None:
    """Answer 200 with ten gigabytes."""
    call.read()
    call.say(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\n")
    call.pour(b"a" * 65536, 10_000_000_000)


def bomb(call: Call) -> None:
    """Answer 200 with a little that decompresses to a hundred megabytes."""
    call.read()
    call.say(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(BOMB) + BOMB)


@dataclass(frozen=True)
class Case:
    """A receiver, and what shall become of a callback to it."""

    behaviour: Behaviour
    state: str
    reason: str
    status: int | None
    wait: float | None
    """Seconds to the next attempt, at least; up to a tenth more."""
    tls: bool = False
    deadline: float = AMPLE


CASES = {
    "answers 200": Case(answering(200), "delivered", "delivered", 200, None),
    "answers 200, Retry-After 600": Case(answering(200, "Retry-After: 600\r\n"), "delivered", "delivered", 200, None),
    "answers 500": Case(answering(500), "waiting", "bad_status", 500, 5),
    "answers 200 after we hung up": Case(late, "waiting", "timeout", None, 5, deadline=DEADLINE),
    "answers 302": Case(answering(302, "Location: http://169.254.169.254/\r\n"), "waiting", "redirect", 302, 5),
    "answers 410": Case(answering(410), "dead", "gone", 410, None),
    "answers 429, Retry-After 600": Case(answering(429, "Retry-After: 600\r\n"), "waiting", "throttled", 429, 600),
    "answers 429, Retry-After a year": Case(
        answering(429, "Retry-After: 31536000\r\n"), "waiting", "throttled", 429, DAY
    ),
    "answers a byte a second": Case(dribble, "waiting", "too_slow", None, 5, deadline=DEADLINE),
    "answers 200 with 10 GB": Case(pour, "delivered", "delivered", 200, None),
    "answers 200 with a gzip bomb": Case(bomb, "delivered", "delivered", 200, None),
    "has a certificate of nobody's": Case(answering(200), "waiting", "tls_failed", None, 5, tls=True),
}


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[Callable[..., None]]:
    """Rows that are printed when all is over."""
    rows: list[str] = []
    widths = (32, 10, 11, 6, 0)
    yield lambda *cells: rows.append("".join(str(cell).ljust(width) for cell, width in zip(cells, widths, strict=True)))
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\n" + "\n".join(rows))  # noqa: T201 - the table is the point


@pytest.mark.parametrize("name", CASES)
def test_each_ends_as_designed(desk: Desk, table: Callable[..., None], name: str):
    """One attempt, recorded with its reason, and the next one when it should be, or none."""
    case = CASES[name]
    desk.deadline_seconds = case.deadline
    tls = serving(trustme.CA().issue_cert("127.0.0.1")) if case.tls else None
    with Receiver(case.behaviour, tls=tls) as receiver:
        desk.tell(callback_url=f"{'https' if case.tls else 'http'}://127.0.0.1:{receiver.port}/hook")
        desk.deliver()
        [row] = desk.rows(  # before the receiver has come to its own end, which takes a while
            "SELECT state, reason, status, extract(epoch FROM due_at - now()) AS wait,"
            " (SELECT seconds FROM callback_attempts) AS seconds,"
            " (SELECT open_until FROM callback_endpoints) AS held_until FROM callbacks"
        )
    wait = float(row.wait)
    shown = f"next in {wait:.0f} s" if row.state == "waiting" else "no more"
    table(name, row.state, row.reason, row.status or "", f"{row.seconds:5.2f} s  {shown}")
    assert (row.state, row.reason, row.status) == (case.state, case.reason, case.status)
    assert row.seconds < case.deadline + SLACK
    if case.state == "delivered":
        assert row.held_until is None
    if case.wait is not None:
        assert case.wait - SLACK <= wait <= case.wait * 1.1


def test_who_was_late_gets_the_same_id_again(desk: Desk):
    """A receiver that heard us and answered too late is told again, under the id that it can know it by."""
    desk.deadline_seconds = DEADLINE
    with Receiver(late) as receiver:
        desk.tell(callback_url=f"http://127.0.0.1:{receiver.port}/hook")
        desk.deliver()
        desk.deliver(shift=10)
    lines = [line for call in receiver.calls for line in call.request.split(b"\r\n")]  # when both were read
    ids = [line for line in lines if line.startswith(b"webhook-id")]
    assert len(ids) == 2
    assert len(set(ids)) == 1
