"""A desk for tests: what a producer, a dispatcher and a callback process do, one step at a time, without Redis."""

import asyncio
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Engine, text

from infra import callback_secrets, callbacks, docket
from infra.addresses import Allowed
from infra.database import connect_async
from infra.sealing import Seals
from producer import callback_endpoints, dispatcher
from schemas.callback import EndpointRequest, EventType, NewEndpoint
from schemas.ids import SINGLE_LINE, new_filing_id, parse_prefixed
from schemas.states import Lane
from support.dockets import a_line, an_outcome
from worker.callbacks import Courier, deliver
from worker.egress import send

SEALS = Seals(["0123456789abcdef" * 4])
LOOPBACK = Allowed.parse(["127.0.0.0/8"])


def a_pace(*, poll: float, sweep: float, hint: float, worker: float = 30.0) -> dispatcher.Pace:
    """How often a dispatcher looks, in seconds, with what else it goes by as the settings have it."""
    return dispatcher.Pace(
        poll_seconds=poll,
        sweep_seconds=sweep,
        hint_seconds=hint,
        worker_seconds=worker,
        max_attempts=3,
        callback_room=256,
        callback_cap=8,
    )


@dataclass
class Desk:
    """A database, and the moves of everyone who has to do with callbacks."""

    database: Engine
    url: str
    room: int = 100
    cap: int = 8
    deadline_seconds: float = 30.0
    default: str = field(default="", repr=False)
    """The secret of requests' own URLs."""
    secrets: dict[UUID, str] = field(default_factory=dict, repr=False)
    """Those of endpoints."""
    _held: Connection | None = field(default=None, repr=False)

    @contextmanager
    def at_one_moment(self) -> Iterator[None]:
        """Make all moves in one transaction, for which Postgres's time stands still, however long they take."""
        with self.database.begin() as connection:
            self._held = connection
            try:
                yield
            finally:
                self._held = None

    @contextmanager
    def _begin(self) -> Iterator[Connection]:
        if self._held is not None:
            yield self._held
            return
        with self.database.begin() as connection:
            yield connection

    def add_endpoint(self, url: str, *events: EventType) -> UUID:
        """Register a receiver, and keep its secret."""
        request = EndpointRequest(url=url, events=list(events))
        made: NewEndpoint = self.run(callback_endpoints.add, request, tenant="default", allowed=LOOPBACK, seals=SEALS)
        endpoint = parse_prefixed(made.id, "cep_")
        self.secrets[endpoint] = made.secret
        return endpoint

    def run(self, function: Any, *arguments: Any, **named: Any) -> Any:
        """Call a function of the HTTP edge, which is asynchronous, with a database of its own kind."""

        async def call() -> Any:
            database = connect_async(self.url, application="test")
            try:
                return await function(database, *arguments, **named)
            finally:
                await database.dispose()

        return asyncio.run(call())

    def default_secret(self) -> str:
        """Make the secret of requests' own URLs."""
        with self._begin() as connection:
            secret, _ = callback_secrets.rotate(connection, SEALS, tenant="default", endpoint=None, grace_seconds=60)
        return secret

    def file(self, *, callback_url: str | None = None, lines: Sequence[int] = (SINGLE_LINE,), **options: Any) -> UUID:
        """File comparisons as one shard."""
        filing_id = new_filing_id()
        with self._begin() as connection:
            if callback_url is not None:
                callback_endpoints.remember(
                    connection, tenant="default", filing_id=filing_id, url=callback_url, allowed=LOOPBACK
                )
            docket.file(
                connection,
                tenant="default",
                filing_id=filing_id,
                lane=Lane.INTERACTIVE,
                comparisons=[a_line(line) for line in lines],
                shard_lines=len(lines),
                notify=callback_url is not None,
                **options,
            )
        return filing_id

    def claim(self) -> docket.Claim:
        """Claim the one shard that is due."""
        with self._begin() as connection:
            [shard] = docket.release(connection, lane=Lane.INTERACTIVE, room=100, limit=100)
            claimed = docket.claim(connection, shard, worker="w", lease_seconds=60)
        assert claimed is not None
        return claimed

    def decide(self, *, good: bool = True, lines: Sequence[int] = (SINGLE_LINE,)) -> None:
        """Judge the one shard that is due."""
        claimed = self.claim()
        with self._begin() as connection:
            docket.finish(connection, claimed.lease, [an_outcome(line, good=good) for line in lines])

    def tell(self, count: int = 1, **filing: Any) -> list[UUID]:
        """File and decide comparisons; returns their filings."""
        filed = []
        for _ in range(count):
            filed.append(self.file(**filing))
            self.decide()
        return filed

    def fan_out(self, shift: float = 0.0) -> int:
        """Make callbacks of fresh events."""
        with self._begin() as connection:
            return callbacks.fan_out(connection, limit=1000, shift=shift)

    def release(self, shift: float = 0.0) -> list[UUID]:
        """Let callbacks go that are due."""
        with self._begin() as connection:
            return callbacks.release(connection, room=self.room, cap=self.cap, limit=1000, shift=shift)

    def claim_callback(self, callback: UUID) -> callbacks.Claim | None:
        """Claim a callback."""
        with self._begin() as connection:
            return callbacks.claim(connection, callback, lease_seconds=60)

    def record(self, claimed: callbacks.Claim, status: int | None = 500, **attempt: Any) -> callbacks.Recorded:
        """Record an attempt without sending anything."""
        delivered = status is not None and 200 <= status < 300
        said = callbacks.Attempt(
            delivered=delivered, reason="delivered" if delivered else "bad_status", status=status, seconds=0.1
        )
        shift = attempt.pop("shift", 0.0)
        with self._begin() as connection:
            return callbacks.record(connection, claimed, replace(said, **attempt), shift=shift)

    def courier(self, shift: float = 0.0) -> Courier:
        """What a callback process delivers with."""
        return Courier(
            database=self.database,
            send=partial(send, allowed=LOOPBACK),
            deadline_seconds=self.deadline_seconds,
            seals=SEALS,
            clock_shift_seconds=shift,
        )

    def deliver(self, shift: float = 0.0) -> int:
        """Fan out, release and deliver whatever is due, once. Returns how many went out."""
        self.fan_out(shift)
        released = self.release(shift)
        for callback in released:
            deliver(self.courier(shift), callback)
        return len(released)

    def sweep(self, shift: float = 0.0) -> tuple[int, int]:
        """Bring back what is lost and end what is hopeless."""
        with self._begin() as connection:
            reclaimed, _ = callbacks.reclaim(connection, limit=1000, shift=shift)
            return reclaimed, callbacks.bury(connection, limit=1000, shift=shift)

    def rows(self, statement: str, **parameters: Any) -> list[Any]:
        """Ask the database."""
        with self._begin() as connection:
            return list(connection.execute(text(statement), parameters))

    def one(self, statement: str, **parameters: Any) -> Any:
        """Ask for one value."""
        [row] = self.rows(statement, **parameters)
        return row[0]

    def do(self, statement: str, **parameters: Any) -> None:
        """Change the database by hand."""
        with self._begin() as connection:
            connection.execute(text(statement), parameters)

    def states(self) -> list[str]:
        """Where the callbacks stand, in the order of their making."""
        return [row.state for row in self.rows("SELECT state FROM callbacks ORDER BY id")]

    def events(self) -> list[str]:
        """What was told, in order."""
        return [row.type for row in self.rows("SELECT type FROM callback_events ORDER BY created_at, line")]


def body_of(message: Any) -> dict[str, Any]:
    """Understand the body of a message."""
    return json.loads(message.body)
