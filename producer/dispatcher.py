"""The dispatcher: the only writer to Redis. It lets due shards and callbacks go, and brings back what was lost.

Several may run at once: each takes what the others have not locked. It polls, since a notification would put a
database-wide lock into every producer's commit (docs/decisions/0003).
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import structlog
from celery import Celery
from kombu.exceptions import OperationalError as BrokerError
from redis.exceptions import RedisError
from sqlalchemy import Connection
from sqlalchemy import Engine as Database
from sqlalchemy.exc import SQLAlchemyError

from infra import callbacks, docket, losses, metrics, pulse, roster
from infra.database import at_once
from infra.meters import Meters
from infra.traces import Attributes, Traces
from producer import lifecycle, survey
from producer.due import Due, look
from schemas.message import CALLBACK_QUEUE, CALLBACK_TASK, JUDGE_TASK, QUEUES, CallbackHint, ShardHint
from schemas.states import Lane

log = structlog.get_logger()

_LEAST_HINTS = 8
"""Interactive hints out at a time, however few slots are known of."""
_AT_ONCE = 100
"""Shards moved by one statement, so that no transaction is long."""
_ENDED_AT_ONCE = 40
"""Shards ended by one statement, with all lines that they have: everybody's release waits for it."""
_TEND_SECONDS = 0.1
"""How often windows and the ends of batches are looked at, at the least: what an operator does has effect in this."""
_CALLBACK_SECONDS = 0.05
"""How often callbacks are looked at while none is due."""
_CALM_SECONDS = 1.0
"""The pause after a turn that could not reach something."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How the dispatcher goes about it. Times are seconds."""

    poll_seconds: float
    sweep_seconds: float
    hint_seconds: float
    worker_seconds: float
    """A worker not heard of for this long is not counted on."""
    max_attempts: int
    callback_room: int
    """Callbacks that may be out at a time, hinted or being sent."""
    callback_cap: int
    """Of one endpoint."""
    clock_shift_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Desk:
    """What the dispatcher works with: built once by `producer/cli/processes.py` and handed down."""

    database: Database
    app: Celery
    pace: Pace
    meters: Meters
    traces: Traces = field(default_factory=Traces)


def hint(desk: Desk, lane: Lane, shards: list[int], *, why: str = "release") -> None:
    """Send hints of released shards. Where Redis takes them not, the shards wait again.

    Raises:
        kombu.exceptions.OperationalError, redis.exceptions.RedisError: Redis cannot be reached; nothing is lost.
    """
    began = time.time_ns()
    messages = [ShardHint(shard=shard).model_dump() for shard in shards]
    _send(desk, JUDGE_TASK, QUEUES[lane], messages, partial(docket.withdraw, shards=shards), why)
    if desk.traces.on and shards and lane is Lane.INTERACTIVE:
        _trace(desk, shards, why, began=began)


def _trace(desk: Desk, shards: list[int], why: str, *, began: int) -> None:
    """Tell of a release that was hinted, in the traces of its shards."""
    ended = time.time_ns()
    with desk.database.connect() as connection:
        traced = docket.traced(connection, shards)
    for shard, traceparent in traced.items():
        about: Attributes = {"nightcourt.shard": shard, "nightcourt.why": why}
        desk.traces.tell("release shard", traceparent, about, began=began, ended=ended)


def hint_callbacks(desk: Desk, released: Sequence[UUID], *, why: str = "release") -> None:
    """Send hints of released callbacks. Where Redis takes them not, the callbacks wait again.

    Raises:
        kombu.exceptions.OperationalError, redis.exceptions.RedisError: Redis cannot be reached; nothing is lost.
    """
    messages = [CallbackHint(callback=callback.hex).model_dump() for callback in released]
    _send(desk, CALLBACK_TASK, CALLBACK_QUEUE, messages, partial(callbacks.withdraw, callbacks=released), why)


def _send(
    desk: Desk,
    task: str,
    queue: str,
    messages: Sequence[dict[str, Any]],
    withdraw: Callable[[Connection], None],
    why: str,
) -> None:
    """Send hints of one kind; where they cannot be sent, withdraw the release of all."""
    if not messages:
        return
    try:
        with desk.app.producer_or_acquire() as producer:
            for message in messages:
                desk.app.send_task(task, kwargs=message, queue=queue, producer=producer)
    except Exception:
        with desk.database.begin() as connection:
            withdraw(connection)
        raise
    desk.meters.add(metrics.HINTS, len(messages), queue=queue, why=why)


def call_back(desk: Desk) -> int:
    """Make callbacks of fresh events, let those go that are due, and hint them.

    Returns:
        How many events were fresh and callbacks let go.

    Raises:
        kombu.exceptions.OperationalError, redis.exceptions.RedisError: Redis cannot be reached; nothing is lost.
    """
    pace = desk.pace
    shift = pace.clock_shift_seconds
    with desk.database.begin() as connection:
        fresh = callbacks.fan_out(connection, limit=_AT_ONCE, shift=shift)
    with desk.database.begin() as connection:
        released = callbacks.release(
            connection, room=pace.callback_room, cap=pace.callback_cap, limit=_AT_ONCE, shift=shift
        )
    hint_callbacks(desk, released)
    return fresh + len(released)


def release(desk: Desk, due: Due) -> int:
    """Let due shards go, as many as each lane has room for, and hint them.

    Args:
        desk: what to work with.
        due: which lanes to look at, and what room they have.

    Returns:
        How many were let go.

    Raises:
        kombu.exceptions.OperationalError, redis.exceptions.RedisError: Redis cannot be reached; nothing is lost.
    """
    bulk = due.bulk and due.bulk_slots > 0
    if not (due.interactive or bulk):
        return 0
    released: dict[Lane, list[int]] = {}
    with at_once(desk.database) as connection:
        if due.interactive:
            # A hint for each slot, which takes it up between two turns. What is in Redis is worked in the order of its
            # coming, so more would let one tenant's flood stand before the next tenant's first.
            room = max(_LEAST_HINTS, due.slots)
            released[Lane.INTERACTIVE] = docket.release(connection, lane=Lane.INTERACTIVE, room=room, limit=_AT_ONCE)
        if bulk:
            released[Lane.BULK] = docket.release_bulk(
                connection,
                room=due.bulk_slots,
                # Half of what is kept free for people: a tenant that comes new need not wait for a whole shard.
                spare=(due.slots - due.bulk_slots) // 2,
                limit=_AT_ONCE,
            )
    # The release is committed before the hint goes out: a worker is never faster than the row it looks for.
    for lane, shards in released.items():
        hint(desk, lane, shards)
    count = sum(len(shards) for shards in released.values())
    if count:
        log.debug("released", shards=count)
    return count


def sweep(desk: Desk) -> None:
    """Bring back shards whose lease ran out, and repeat hints that were lost."""
    pace, meters = desk.pace, desk.meters
    with desk.database.begin() as connection:
        reclaimed = losses.reclaim(connection, max_attempts=pace.max_attempts, limit=_AT_ONCE)
    for fate, shards_lost in reclaimed.items():
        meters.add(metrics.LOSSES, shards_lost, then=fate)
    meters.add(metrics.LEASES_LAPSED, reclaimed.total(), of="shard")
    with desk.database.begin() as connection:
        roster.forget(connection, older_than=max(3600.0, pace.worker_seconds))
    hinted = 0
    full = _full(desk)
    for lane in QUEUES:
        if QUEUES[lane] in full:
            continue
        with desk.database.begin() as connection:
            shards = docket.hint_again(connection, lane=lane, older_than=pace.hint_seconds, limit=_AT_ONCE)
        hint(desk, lane, shards, why="again")
        hinted += len(shards)
    hinted += _sweep_callbacks(desk, repeat=CALLBACK_QUEUE not in full)
    if reclaimed or hinted:
        log.info("swept", reclaimed=reclaimed.total(), hinted_again=hinted)


def _full(desk: Desk) -> set[str]:
    """Name the queues in Redis that hold as many hints as were handed out, or more.

    None is lost there; but nobody takes them, and with each repetition there would be as many more.
    """
    with desk.database.connect() as connection:
        released = survey.released(connection)
    try:
        with desk.app.producer_or_acquire() as producer:
            return {queue for queue, count in released.items() if producer.channel.client.llen(queue) >= count}
    except (BrokerError, RedisError):
        return set()  # whoever sends a hint next will say so


def look_around(desk: Desk) -> Due:
    """Look what there is to do now."""
    with at_once(desk.database) as connection:
        return look(connection, worker_seconds=desk.pace.worker_seconds)


def tend(desk: Desk, due: Due) -> Due:
    """See to windows, pauses, cancellations and ends of batches, and to deadlines.

    Returns:
        What there is to do after that.
    """
    if not (due.batches or due.late):
        return due
    if due.batches:
        with desk.database.begin() as connection:
            lifecycle.tend(connection, clock_shift=desk.pace.clock_shift_seconds, cancel_shards=_ENDED_AT_ONCE)
    if due.late:
        expire(desk)
    return look_around(desk)


def expire(desk: Desk) -> None:
    """End shards past their deadline."""
    with desk.database.begin() as connection:
        expired = docket.expire(connection, limit=_ENDED_AT_ONCE)
    desk.meters.add(metrics.EXPIRED, expired)
    if expired:
        log.info("expired", comparisons=expired)


def _sweep_callbacks(desk: Desk, *, repeat: bool) -> int:
    """Bring back callbacks whose worker was lost, end those without hope, and repeat hints. Returns how many hints."""
    shift = desk.pace.clock_shift_seconds
    with desk.database.begin() as connection:
        reclaimed, dead = callbacks.reclaim(connection, limit=_AT_ONCE, shift=shift)
    desk.meters.add(metrics.LEASES_LAPSED, reclaimed, of="callback")
    with desk.database.begin() as connection:
        buried = callbacks.bury(connection, limit=10 * _AT_ONCE, shift=shift)
    desk.meters.add(metrics.CALLBACKS_BURIED, buried + dead)
    if reclaimed or buried:
        log.info("callbacks_swept", reclaimed=reclaimed, buried=buried, dead=dead)
    if not repeat:
        return 0
    with desk.database.begin() as connection:
        lost = callbacks.hint_again(connection, older_than=desk.pace.hint_seconds, limit=_AT_ONCE)
    hint_callbacks(desk, lost, why="again")
    return len(lost)


def run(desk: Desk, stop: threading.Event, *, pulse_file: Path | None = None) -> None:
    """Release, tend and sweep until told to stop. What cannot be reached now is tried again, at a calmer pace.

    The pulse beats once a turn, whether or not there was anything to reach.
    """
    pace, meters = desk.pace, desk.meters
    sweep_at = tend_at = call_at = 0.0
    live = False
    pause = pace.poll_seconds
    while not stop.wait(pause):
        pause = pace.poll_seconds
        pulse.beat(pulse_file)
        now = time.monotonic()
        try:
            if now >= sweep_at:
                sweep_at = now + pace.sweep_seconds
                sweep(desk)
            due = look_around(desk)
            # The first batch after none is seen to at once, and so is the last, when nothing is left of it.
            if now >= tend_at or (due.batches and not live) or due.nothing_is_left:
                tend_at = now + _TEND_SECONDS
                due = tend(desk, due)
            live = due.batches
            release(desk, due)
            if (due.events or due.callbacks) and now >= call_at and not call_back(desk):
                call_at = now + _CALLBACK_SECONDS
        except (BrokerError, RedisError) as error:
            log.warning("redis_unreachable", error=type(error).__name__)
            pause = _CALM_SECONDS
            meters.add(metrics.UNREACHABLE, time.monotonic() - now + pause, store="redis")
        except SQLAlchemyError as error:
            log.warning("database_unreachable", error=type(error).__name__)
            pause = _CALM_SECONDS
            meters.add(metrics.UNREACHABLE, time.monotonic() - now + pause, store="postgres")
        meters.observe(metrics.TURNS, time.monotonic() - now)
