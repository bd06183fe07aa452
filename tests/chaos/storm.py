"""A storm: faults by plan, while producers file and receivers receive, and then calm, and a history to check."""

import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from chaos.audit import MOVES
from chaos.history import Filing, History, Move, Outcome, Shard
from chaos.plan import Fault, make_plan
from chaos.producers import Load, Producers
from chaos.stage import LEASE_SECONDS, Stage
from support.inbox import open_inbox

from producer.client import Client

_SIGNALS = {"kill": signal.SIGKILL, "end": signal.SIGTERM, "crash": signal.SIGQUIT}
_SLOW_SECONDS = 0.15


@dataclass(frozen=True, slots=True)
class Size:
    """How large a storm is. Times are seconds."""

    seconds: float
    faults: int
    load: Load
    tokens_per_second: float
    """Of each worker's simulated engine: what is filed is to keep them busy for most of the storm."""
    calm_seconds: float = 150.0
    """How long producers may take to be answered, and nothing at all may come to its end, once the last fault is over:
    what is slow on a busy machine is not stuck."""


SHORT = Size(seconds=24, faults=9, load=Load(seconds=18, singles=160, batches=3, lines=60), tokens_per_second=12_000)
LONG = Size(
    seconds=600,
    faults=44,
    load=Load(seconds=540, singles=4000, batches=32, lines=500, poison=2),
    tokens_per_second=9_000,
)


def plan_of(seed: int, size: Size, counts: dict[str, int]) -> tuple[Fault, ...]:
    """The faults of a storm."""
    return make_plan(seed, seconds=size.seconds, faults=size.faults, counts=counts, lease_seconds=LEASE_SECONDS)


def ride(
    stage: Stage,
    plan: Sequence[Fault],
    size: Size,
    seed: int,
    *,
    say: Callable[[str], None] = lambda _: None,
) -> History:
    """Let a storm go over a stage, wait for the calm after it, and tell its history.

    Args:
        stage: all processes, running.
        plan: the faults.
        size: how much is filed meanwhile.
        seed: what is left to chance in the producers.
        say: hears of each fault as it begins.
    """
    with open_inbox() as inbox:
        with Client(stage.apis[0], api_key=stage.headers["Authorization"].removeprefix("Bearer ")) as client:
            client.rotate_secret()  # without one nothing can be signed
        producers = Producers(stage.apis, size.load, seed, stage.headers, inbox.url)
        inbox.answer = producers.take
        producers.start()
        began = time.monotonic()
        under_way = []
        for fault in plan:
            time.sleep(max(0.0, began + fault.at - time.monotonic()))
            say(str(fault))
            thread = threading.Thread(target=strike, args=(stage, fault), daemon=True)
            thread.start()
            under_way.append(thread)
        for thread in under_way:
            thread.join(60)
        stage.mend()
        producers.join(size.load.seconds + began + size.calm_seconds - time.monotonic())
        say(f"       calm after {time.monotonic() - began:.0f} s; waiting for what is left")
        _await_quiet(stage, size.calm_seconds)
        return tell(stage, producers.history)


def strike(stage: Stage, fault: Fault) -> None:
    """Carry one fault out, from its beginning to its end."""
    if ">" in fault.target:
        link = stage.links[_link_of(fault.target)]
        if fault.kind == "cut":
            link.cut()
            return
        if fault.kind == "hole":
            link.swallow()
        else:
            link.slow(_SLOW_SECONDS)
        time.sleep(fault.seconds)
        link.mend()
    elif fault.kind == "flush":
        stage.flush()
    elif fault.kind == "freeze":
        stage.freeze(fault.target, fault.seconds)
    else:
        number = signal.SIGINT if (fault.kind, fault.target) == ("end", "postgres") else _SIGNALS[fault.kind]
        stage.end(fault.target, number, down_seconds=fault.seconds)


def _link_of(target: str) -> tuple[str, str]:
    name, _, store = target.partition(">")
    return name, store


_QUIET = """
    SELECT (SELECT count(*) FROM shards WHERE state IN ('waiting', 'released', 'running'))
         + (SELECT count(*) FROM batches WHERE status IN ('in_progress', 'cancelling'))
         + (SELECT count(*) FROM callback_events WHERE NOT fanned_out)
         + (SELECT count(*) FROM callbacks WHERE state IN ('waiting', 'released', 'sending'))
"""


_ENDED = "SELECT (SELECT count(*) FROM outcomes), (SELECT count(*) FROM callbacks WHERE state = 'delivered')"


def _await_quiet(stage: Stage, patience: float) -> None:
    """Wait until nothing is left to do, or nothing has come to its end for a while."""
    before, since = None, time.monotonic()
    while stage.rows(_QUIET) != [(0,)]:
        if (ended := stage.rows(_ENDED)) != before:
            before, since = ended, time.monotonic()
        elif time.monotonic() - since > patience:
            return
        time.sleep(0.5)


# What is filed names its key: a comparison as its own id, a batch in its metadata.
_FILINGS = """
    SELECT c.custom_id, 'cmp_' || replace(c.source_id::text, '-', ''), replace(c.source_id::text, '-', ''), 0, 1, NULL
    FROM comparisons c WHERE c.line = 0
    UNION ALL
    SELECT b.metadata->>'key', 'batch_' || replace(b.id::text, '-', ''), replace(b.id::text, '-', ''), 1, b.total,
           b.status
    FROM batches b
"""


def tell(stage: Stage, history: History) -> History:
    """Add to what producers know what the tables say."""
    hex_id = "replace(filing_id::text, '-', '')"
    [(pending,)] = stage.rows(
        "SELECT (SELECT count(*) FROM callback_events WHERE NOT fanned_out)"
        " + (SELECT count(*) FROM callbacks WHERE state IN ('waiting', 'released', 'sending'))"
    )
    [(dead,)] = stage.rows("SELECT count(*) FROM callbacks WHERE state = 'dead'")
    names = ("succeeded", "errored", "cancelled", "expired")
    return replace(
        history,
        filings=[Filing(*row) for row in stage.rows(_FILINGS)],
        outcomes=[
            Outcome(*row)
            for row in stage.rows(f"SELECT {hex_id}, line, status, error_code FROM outcomes")  # noqa: S608
        ],
        shards=[
            Shard(row[0], row[1], row[2], dict(zip(names, row[3:], strict=True)))
            for row in stage.rows(f"SELECT id, {hex_id}, state, {', '.join(names)} FROM shards")  # noqa: S608
        ],
        moves=[Move(*row) for row in stage.rows(MOVES)],
        pending_callbacks=pending,
        dead_callbacks=dead,
        deaths=[(end.name, end.status) for end in stage.ends],
    )
