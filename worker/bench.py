"""What a worker judges with."""

import threading
from dataclasses import dataclass, field
from functools import partial

from sqlalchemy import Engine as Database

from infra.docket import Lease
from infra.meters import Meters
from infra.traces import Traces
from worker.admission import Gate
from worker.engines.metered import MeteredEngine


@dataclass(frozen=True, slots=True)
class Rules:
    """The settings that judging goes by. Times are seconds."""

    worker: str
    lease_seconds: float
    max_attempts: int
    mass_threshold: float
    profile: str = "card"
    """What comparisons that ask for the judge's own profile are put in."""
    calibrated: dict[str, float] = field(default_factory=dict)
    """T by profile; 1 where none is said."""
    patience_seconds: float = 60.0
    """How long a result in hand is kept while Postgres cannot be reached."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What a worker judges with: built once by `worker/app.py` and handed down."""

    engine: MeteredEngine
    gate: Gate
    database: Database
    rules: Rules
    judges: dict[str, str]
    """The id of this engine's judge, by profile."""
    leases: set[Lease] = field(default_factory=set)
    """What this worker holds; the heartbeat renews it."""
    draining: threading.Event = field(default_factory=threading.Event)
    """Set when the worker is to end: claim nothing, give back what is not begun."""
    meters: Meters = field(default_factory=partial(Meters, "worker"))
    traces: Traces = field(default_factory=Traces)
