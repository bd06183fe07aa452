"""What a caller may ask for: requests a second, comparisons queued, batches at a time, and tokens judged a day.

Requests are counted by key, in the memory of one process. What is queued and was judged is counted in the tables, which
know tenants and not keys: a key may file more as long as its whole tenant is under that key's limit.
"""

import asyncio
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

from infra.settings import Settings
from producer.access import Caller
from schemas.problems import (
    INVALID_REQUEST,
    QUEUE_FULL,
    RATE_LIMITED,
    TOKENS_USED_UP,
    TOO_MANY_BATCHES,
    TOO_MANY_STREAMS,
    UNAVAILABLE,
    Problem,
    ProblemKind,
    invalid_field,
)

WINDOW = 10
"""Seconds over which requests are counted: as many as are allowed in that time may come all at once."""
LOOK_SECONDS = 1.0
"""How many seconds a count of what is queued is used for single comparisons before it is read anew."""
_MOST_SHARE = 0.05
"""The part of one connection's time that counting may take: a count that takes long is read less often."""
_KEYS = 10_000
_STRANGERS = 100
"""Login forms that one process reads at a time: whoever sends one has not shown a key yet."""
_LARGE_READS = 2
"""Reads of a whole large batch that one process makes at a time, of all tenants."""
_SOON, _LATER = 10, 30
"""Seconds of `Retry-After` where the queue is full, and where too many batches have not ended."""

_QUEUED = text("""
    SELECT (SELECT count(*) FROM shards WHERE tenant = :tenant AND lane = 'interactive' AND state = 'waiting')
         + (SELECT coalesce(sum(last_line - first_line + 1), 0) FROM shards
            WHERE tenant = :tenant AND lane = 'bulk' AND state = 'waiting')
         + (SELECT coalesce(sum(last_line - first_line + 1), 0) FROM shards
            WHERE tenant = :tenant AND state IN ('released', 'running'))
""")
_TOKENS = text("""
    SELECT coalesce(sum(prompt_tokens), 0) FROM shards
    WHERE tenant = :tenant AND ended_at >= date_trunc('day', now(), 'UTC')
""")
_BATCHES = text("SELECT count(*) FROM batches WHERE tenant = :tenant AND status IN ('in_progress', 'cancelling')")
_TO_MIDNIGHT = text("SELECT extract(epoch FROM date_trunc('day', now(), 'UTC') + interval '1 day' - now())")
# One batch of a tenant is let in at a time, so that the next one's count includes it.
_ONE_AT_A_TIME = text("SELECT pg_advisory_xact_lock(hashtextextended('batches of ' || CAST(:tenant AS text), 0))")


@dataclass(frozen=True, slots=True)
class Limits:
    """What holds for one caller."""

    requests_per_second: float
    queued_comparisons: int
    tokens_per_day: int | None
    """None for as many as there are."""
    concurrent_batches: int
    max_body_bytes: int


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of a request that was counted."""

    headers: dict[str, str]
    """`RateLimit-Policy` and `RateLimit` of the IETF's draft."""
    wait: float
    """Seconds until the next one is taken; 0 where this one was."""


class Rates:
    """How many requests each key sent of late, by the generic cell rate algorithm.

    For each key it keeps one time, which each request moves on by the time that a request is worth; a request is let in
    if that time is not too far ahead of the clock. It is kept in the process, since a store that is away must neither
    stop all requests nor let all of them in; so two processes of the API let in twice as much.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ahead: dict[str, float] = {}

    def take(self, key: str, per_second: float) -> Taken:
        """Count a request, if there is room for it."""
        now = self._clock()
        most = max(1, math.floor(per_second * WINDOW))
        ahead = max(0.0, self._ahead.get(key, now) - now)
        free = most - ahead * per_second
        wait = max(0.0, (1.0 - free) / per_second)
        # Tolerates the rounding of sums of fractions.
        if wait * per_second < 1e-6:  # noqa: PLR2004
            wait, free, ahead = 0.0, free - 1.0, ahead + 1.0 / per_second
            if len(self._ahead) >= _KEYS:
                self._ahead = {known: until for known, until in self._ahead.items() if until > now}
            self._ahead[key] = now + ahead
        remaining = max(0, math.floor(free + 1e-6))
        return Taken(
            headers={
                "RateLimit-Policy": f'"requests";q={most};w={math.ceil(most / per_second)}',
                "RateLimit": f'"requests";r={remaining};t={math.ceil(ahead)}',
            },
            wait=wait,
        )


class Streams:
    """Counts the streams of events that are open in this process, and by whose key."""

    def __init__(self, *, most: int, of_a_key: int) -> None:
        self._most = most
        self._of_a_key = of_a_key
        self._open: Counter[str] = Counter()

    @contextmanager
    def one(self, caller: Caller) -> Iterator[None]:
        """Count a stream while it is open.

        Raises:
            Problem: as many are open as may be, by the caller's key or by all together.
        """
        key = caller.key_id
        if self._open[key] >= self._of_a_key:
            raise _too_many_streams("by your key", self._of_a_key)
        if self._open.total() >= self._most:
            raise _too_many_streams("in this process of the service", self._most)
        self._open[key] += 1
        try:
            yield
        finally:
            self._open[key] -= 1
            if not self._open[key]:
                del self._open[key]


@dataclass(slots=True)
class _Count:
    """A number that was read of a tenant, and what was added to it since."""

    number: int = 0
    since: int = 0
    good_until: float = 0.0
    reading: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def read(self, connection: AsyncConnection, query: TextClause, tenant: str, *, now: bool = False) -> int:
        """Give the number, read anew where it is old, or where it is to be as of `now`."""
        async with self.reading:
            began = time.monotonic()
            if now or began >= self.good_until:
                self.number = int((await connection.execute(query, {"tenant": tenant})).scalar_one())
                self.since = 0
                ended = time.monotonic()
                self.good_until = ended + max(LOOK_SECONDS, (ended - began) / _MOST_SHARE)
        return self.number + self.since


class Limiter:
    """Lets requests and work in, or says when to come again. One for each process of the API."""

    def __init__(self, settings: Settings, *, at_once: int) -> None:
        self._defaults = settings
        self._at_once = at_once
        self._rates = Rates()
        self._under_way: Counter[str] = Counter()
        self._strangers = 0
        self._queued: dict[str, _Count] = {}
        self._tokens: dict[str, _Count] = {}
        self._turns: dict[str, asyncio.Lock] = {}
        self._readers: dict[str, asyncio.Lock] = {}
        self._large_reads = asyncio.Semaphore(_LARGE_READS)

    def of(self, caller: Caller) -> Limits:
        """Tell what holds for a caller: what the key says, and the settings where it says nothing."""
        own, default = caller.limits, self._defaults
        return Limits(
            requests_per_second=own.requests_per_second or default.requests_per_second,
            queued_comparisons=own.queued_comparisons or default.queued_comparisons,
            tokens_per_day=own.tokens_per_day or default.tokens_per_day,
            concurrent_batches=own.concurrent_batches or default.concurrent_batches,
            max_body_bytes=own.max_body_bytes or default.max_body_bytes,
        )

    def request(self, caller: Caller, state: Any) -> None:
        """Count a request of a caller, wherever it is sent, and note in its state what its answer is to tell of that.

        The state has what to call at the request's end, too.

        Raises:
            Problem: the caller sends too many, or has too many under way.
        """
        taken = self._rates.take(caller.key_id, self.of(caller).requests_per_second)
        state.rate_limit = taken.headers
        if taken.wait:
            raise _rate_limited(taken)
        key = caller.key_id
        if self._under_way[key] >= self._at_once:
            raise _too_many_at_once(self._at_once)
        self._under_way[key] += 1
        state.ended = partial(self._ended, key)

    def _ended(self, key: str) -> None:
        self._under_way[key] -= 1
        if not self._under_way[key]:
            del self._under_way[key]

    @contextmanager
    def stranger(self) -> Iterator[None]:
        """Count somebody of whom it is not known yet who they are, while what says so is read.

        Raises:
            Problem: as many are there as may be: whoever has a key already is not to wait for them.
        """
        if self._strangers >= _STRANGERS:
            detail = "As many forms are coming in as this process reads at a time. Send it again."
            raise Problem(UNAVAILABLE, detail, headers={"Retry-After": "1"})
        self._strangers += 1
        try:
            yield
        finally:
            self._strangers -= 1

    async def comparison(self, connection: AsyncConnection, caller: Caller) -> None:
        """Let one comparison in.

        Args:
            connection: in the transaction that files it.
            caller: who does.

        Raises:
            Problem: the queue is full, or the day's tokens are used up.
        """
        limits = self.of(caller)
        await self._day(connection, caller, limits)
        count = self._queued.setdefault(caller.tenant, _Count())
        queued = await count.read(connection, _QUEUED, caller.tenant)
        if queued + 1 > limits.queued_comparisons:
            raise _full(queued, limits.queued_comparisons)
        count.since += 1

    def turn(self, caller: Caller) -> asyncio.Lock:
        """Give what a caller's batches pass by one after the other, in this process.

        Postgres sees to that among all processes; who waited there would keep a connection from everybody else.
        """
        return self._turns.setdefault(caller.tenant, asyncio.Lock())

    @asynccontextmanager
    async def large_read(self, tenant: str) -> AsyncIterator[None]:
        """Wait for one's turn to read all of a large batch: each tenant makes one such read at a time.

        Whoever waits here must hold no connection.
        """
        async with self._readers.setdefault(tenant, asyncio.Lock()), self._large_reads:
            yield

    async def batch(self, connection: AsyncConnection, caller: Caller, lines: int, *, again: bool = False) -> None:
        """Let a batch in.

        Args:
            connection: in the transaction that makes it; until that ends, no other batch of the tenant is let in.
            caller: who makes it.
            lines: how many comparisons it has.
            again: whether they are those of its lines that are to be judged again.

        Raises:
            Problem: the queue has no room for so many, too many batches have not ended, or the day's tokens are used
                up.
        """
        limits, tenant = self.of(caller), caller.tenant
        if lines > limits.queued_comparisons and again:
            detail = f"{lines} of its lines are errored; you may have {limits.queued_comparisons} queued. "
            raise Problem(INVALID_REQUEST, f"{detail}File those anew, as batches of fewer lines.")
        if lines > limits.queued_comparisons:
            message = f"has {lines} comparisons; you may have {limits.queued_comparisons} queued. File it in parts"
            raise invalid_field("input_file_id", message)
        await self._day(connection, caller, limits)
        await connection.execute(_ONE_AT_A_TIME, {"tenant": tenant})
        live = int((await connection.execute(_BATCHES, {"tenant": tenant})).scalar_one())
        if live >= limits.concurrent_batches:
            raise _refused(
                f"{live} batches have not ended, and you may have {limits.concurrent_batches} at a time. Wait for one "
                "to end, or cancel one.",
                TOO_MANY_BATCHES,
                f'"concurrent-batches";q={limits.concurrent_batches}',
                '"concurrent-batches";r=0',
                _LATER,
            )
        count = self._queued.setdefault(tenant, _Count())
        queued = await count.read(connection, _QUEUED, tenant, now=True)
        if queued + lines > limits.queued_comparisons:
            raise _full(queued, limits.queued_comparisons)
        count.since += lines

    async def _day(self, connection: AsyncConnection, caller: Caller, limits: Limits) -> None:
        if limits.tokens_per_day is None:
            return
        count = self._tokens.setdefault(caller.tenant, _Count())
        used = await count.read(connection, _TOKENS, caller.tenant)
        if used < limits.tokens_per_day:
            return
        left = math.ceil((await connection.execute(_TO_MIDNIGHT)).scalar_one())
        raise _refused(
            f"{used} tokens were judged since midnight UTC, and you may have {limits.tokens_per_day} a day. What is "
            "queued is judged all the same.",
            TOKENS_USED_UP,
            f'"tokens-per-day";q={limits.tokens_per_day};w=86400',
            f'"tokens-per-day";r=0;t={left}',
            left,
        )


def _rate_limited(taken: Taken) -> Problem:
    """Say that a request came too soon after others."""
    seconds = math.ceil(taken.wait)
    detail = f"Your key sends more requests than it may; send this one again in {seconds} s."
    return Problem(RATE_LIMITED, detail, headers={"Retry-After": str(seconds)})


def _too_many_at_once(most: int) -> Problem:
    return _refused(
        f"{most} requests of your key are under way in this process of the service, as many as may be. Send this one "
        "again once one is answered.",
        RATE_LIMITED,
        f'"requests-at-once";q={most}',
        '"requests-at-once";r=0',
        1,
    )


def _full(queued: int, most: int) -> Problem:
    return _refused(
        f"{queued} comparisons are queued, and you may have {most} at a time. Wait until some are judged.",
        QUEUE_FULL,
        f'"queued-comparisons";q={most}',
        f'"queued-comparisons";r={max(0, most - queued)}',
        _SOON,
    )


def _too_many_streams(where: str, most: int) -> Problem:
    return _refused(
        f"{most} streams of events are open {where}, as many as may be. Close one, or read the batch now and then.",
        TOO_MANY_STREAMS,
        f'"event-streams";q={most}',
        '"event-streams";r=0',
        _SOON,
    )


def _refused(detail: str, kind: ProblemKind, policy: str, standing: str, seconds: int) -> Problem:
    return Problem(
        kind, detail, headers={"Retry-After": str(seconds), "RateLimit-Policy": policy, "RateLimit": standing}
    )
