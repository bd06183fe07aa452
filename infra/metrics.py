"""Every metric of every process: its name, its meaning, its labels and their values. docs/metrics.md is made from it.

A definition here is a constant; what a process counts lives in its `Meters` (infra/meters.py). Every label has a fixed
set of values, so that nothing that a tenant sends can become one, and every series is there from the start, at 0: a
rate needs a beginning, and an alert on a failure that never was stays quiet.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from infra.roles import PROCESSES, Process
from schemas.batch import BatchStatus
from schemas.callback import AttemptReason
from schemas.message import CALLBACK_QUEUE, QUEUES
from schemas.problems import OutcomeError
from schemas.states import Fate, Lane

Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True, slots=True)
class Metric:
    """What is measured. Names end in their unit, those of counters in `_total`."""

    kind: Kind
    name: str
    help: str
    processes: tuple[Process, ...]
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Each label with all the values that it has. Without values it takes what this program itself names, such as the
    templates of routes."""
    buckets: tuple[float, ...] = ()


def _metric(
    kind: Kind,
    name: str,
    what: str,
    processes: Process | tuple[Process, ...],
    /,
    *,
    buckets: tuple[float, ...] = (),
    **labels: Iterable[str],
) -> Metric:
    owners = (processes,) if isinstance(processes, str) else processes
    values = {label: tuple(map(str, each)) for label, each in labels.items()}
    return Metric(kind, f"nightcourt_{name}", what, owners, values, buckets)


_LANES = tuple(Lane)
_QUICK = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_LONG = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_TURNS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0)

BUILD = _metric(
    "gauge",
    "build_info",
    "Always 1: which process this is, of which version, and with which engine where it has one.",
    PROCESSES,
    process=(),
    version=(),
    engine=(),
    simulated=(),
)

# -- HTTP

HTTP_REQUESTS = _metric(
    "counter",
    "http_requests_total",
    "Requests that were answered, or whose sender hung up before (499). The route is a template such as "
    "/v1/comparisons/{comparison_id}, or `unmatched`.",
    "api",
    method=(),
    route=(),
    status=(),
)
HTTP_SECONDS = _metric(
    "histogram",
    "http_request_seconds",
    "Seconds until an answer began. Requests that asked to be held (`Prefer: wait`) are left out.",
    "api",
    buckets=_QUICK,
    route=(),
)
HTTP_UNDER_WAY = _metric("gauge", "http_requests_under_way", "Requests that are being answered now.", "api")
UPLOADED_BYTES = _metric("counter", "uploaded_bytes_total", "Bytes of files that were taken in, decompressed.", "api")
FILED = _metric(
    "counter",
    "filed_comparisons_total",
    "Comparisons that were filed, singly or as lines of a batch. What came again under its key is not counted.",
    "api",
    lane=_LANES,
)

# -- the docket, as the dispatcher reads it

SHARDS = _metric(
    "gauge",
    "shards",
    "Shards on the docket. Those that are running are the leases that are out.",
    "dispatcher",
    lane=_LANES,
    state=("waiting", "released", "running"),
)
OLDEST_SHARD = _metric(
    "gauge",
    "oldest_shard_seconds",
    "How old a shard is at the longest: waiting and released since it was due (of batches, those that are open alone), "
    "running since it was released. 0 where there is none.",
    "dispatcher",
    lane=_LANES,
    state=("waiting", "released", "running"),
)
LEASE_OVERDUE = _metric(
    "gauge",
    "lease_overdue_seconds",
    "How long a lease has run out that nobody has seen to; 0 where none has.",
    "dispatcher",
)
WORKERS = _metric("gauge", "workers", "Workers that were heard of within three heartbeats.", "dispatcher")
SLOTS = _metric(
    "gauge",
    "worker_slots",
    "Shards that those workers take at a time: all, and bulk ones among them.",
    "dispatcher",
    of=("all", "bulk"),
)
BATCHES = _metric("gauge", "batches", "Batches by their status.", "dispatcher", status=tuple(BatchStatus))
CALLBACKS = _metric(
    "gauge", "callbacks", "Callbacks that have not ended.", "dispatcher", state=("waiting", "released", "sending")
)
OLDEST_CALLBACK = _metric(
    "gauge",
    "oldest_callback_seconds",
    "How long a callback has been due that is not being sent, at the longest, to a receiver whose circuit is closed; 0 "
    "where none is.",
    "dispatcher",
)
CIRCUITS = _metric(
    "gauge",
    "callback_circuits",
    "Receivers of callbacks. An open circuit lets nothing through; one that is half open, one try, where there is "
    "anything to try.",
    "dispatcher",
    state=("closed", "open", "half_open", "disabled"),
)
DATABASE_BYTES = _metric("gauge", "database_bytes", "How large the database is, in bytes.", "dispatcher")
DISK_FREE = _metric(
    "gauge",
    "disk_free_bytes",
    "Bytes free on the disk of the data folder, which is the embedded stack's; 0 where there is no such folder.",
    "dispatcher",
)
DISK = _metric("gauge", "disk_bytes", "Bytes that this disk has in all; 0 likewise.", "dispatcher")
READ_AT = _metric(
    "gauge",
    "docket_read_timestamp_seconds",
    "When the docket was last read, in Unix seconds: all gauges above are as of then.",
    "dispatcher",
)
READ_SECONDS = _metric("gauge", "docket_read_seconds", "How long that took.", "dispatcher")

# -- what the dispatcher does

TURNS = _metric(
    "histogram",
    "dispatcher_turn_seconds",
    "Seconds that each turn of the dispatcher took.",
    "dispatcher",
    buckets=_TURNS,
)
HINTS = _metric(
    "counter",
    "hints_total",
    "Hints that were sent through Redis: the first of a release, or again because nobody claimed it.",
    "dispatcher",
    queue=(*QUEUES.values(), CALLBACK_QUEUE),
    why=("release", "again"),
)
UNREACHABLE = _metric(
    "counter",
    "unreachable_seconds_total",
    "Seconds that the dispatcher could do nothing, because Redis or Postgres could not be reached.",
    "dispatcher",
    store=("redis", "postgres"),
)
LEASES_LAPSED = _metric(
    "counter",
    "leases_lapsed_total",
    "Leases that ran out, so that their work was taken up again: of shards, or of callbacks.",
    "dispatcher",
    of=("shard", "callback"),
)
EXPIRED = _metric("counter", "expired_comparisons_total", "Comparisons that passed their deadline.", "dispatcher")
CALLBACKS_BURIED = _metric(
    "counter",
    "callbacks_buried_total",
    "Callbacks that were given up: their receiver is disabled, or failed for all of the schedule's time, or who sent "
    "them was lost at the last attempt.",
    "dispatcher",
)

# -- judging

CLAIMS = _metric("counter", "claims_total", "Shards that were claimed.", "worker", lane=_LANES)
IDLE_HINTS = _metric(
    "counter",
    "hints_without_work_total",
    "Hints that led to nothing: late, doubled, or of what was called off.",
    "worker",
)
SHARDS_ENDED = _metric(
    "counter",
    "shard_runs_total",
    "How runs of shards ended: finished, or given back; failed, as the engine did; refused, as the lease was lost; or "
    "left to the lease, as Postgres was away.",
    "worker",
    lane=_LANES,
    ending=("finished", "failed", "refused", "left"),
)
GIVEN_BACK = _metric(
    "counter", "shards_given_back_total", "Shards given back, because the worker was told to end.", "worker"
)
SHARD_SECONDS = _metric(
    "histogram", "shard_run_seconds", "Seconds from claim to ending.", "worker", buckets=_LONG, lane=_LANES
)
FAILED_ATTEMPTS = _metric(
    "counter",
    "failed_attempts_total",
    "What became of shards whose attempt failed: put back to be tried again, given back as nothing was asked, split, "
    "or errored after the last.",
    "worker",
    then=get_args(Fate),
)
LOSSES = _metric(
    "counter",
    "losses_total",
    "What became of shards whose worker was lost: put back, split or set apart from the others, or errored.",
    ("dispatcher", "worker"),
    then=("retried", "split", "errored"),
)
STALE_WRITES = _metric(
    "counter",
    "stale_writes_refused_total",
    "Writes that were refused because their lease was lost: somebody else has the work.",
    ("worker", "callbacks"),
)
OUTCOMES = _metric(
    "counter",
    "outcomes_total",
    "Comparisons that judging decided: `succeeded`, or the code of their error. Others end with a lost worker, "
    "at their deadline, or called off.",
    "worker",
    lane=_LANES,
    result=(
        "succeeded",
        *(OutcomeError.CONTEXT_LENGTH_EXCEEDED, OutcomeError.UNPARSEABLE),
        *(OutcomeError.PROFILE_UNFIT, OutcomeError.ENGINE_FAILED),
    ),
)
REUSED = _metric(
    "counter",
    "verdicts_reused_total",
    "Of those that succeeded, how many by an earlier verdict of the same comparison by the same judge.",
    "worker",
    lane=_LANES,
)
BALLOTS = _metric("counter", "ballots_total", "Prompts that the engine answered.", "worker")
PROMPT_TOKENS = _metric("counter", "prompt_tokens_total", "Tokens of those prompts.", "worker")
CACHED_TOKENS = _metric(
    "counter",
    "cached_tokens_total",
    "Of those tokens, how many the engine had computed before, as far as it tells for each prompt.",
    "worker",
)
GPU_SECONDS = _metric("counter", "gpu_seconds_total", "Seconds of the engine's device.", "worker")
STEP_SECONDS = _metric(
    "histogram",
    "engine_step_seconds",
    "Seconds that a step took in the engine: a forward pass over some prompts, or writing an answer.",
    "worker",
    buckets=_LONG,
    kind=("score", "generate"),
)
GATE_SECONDS = _metric(
    "histogram", "engine_wait_seconds", "Seconds that a step waited for its turn.", "worker", buckets=_LONG, lane=_LANES
)
ENGINE_ERRORS = _metric(
    "counter",
    "engine_errors_total",
    "Failures of the engine: of a step; for too little memory, where the step is asked again in halves; as its server "
    "answers nobody, where nothing was asked; or for good.",
    "worker",
    kind=("failed", "out_of_memory", "away", "gone"),
)
HEARTBEATS_FAILED = _metric("counter", "heartbeats_failed_total", "Heartbeats that Postgres did not take.", "worker")
ENGINE_STATE = _metric(
    "gauge",
    "engine_state",
    "What the engine says of itself: requests that are active and queued, blocks of its KV cache, how many of them are "
    "in use, were reused and had to be computed, and its memory in bytes. 0 for what it does not tell; TensorRT-LLM "
    "alone tells.",
    "worker",
    what=(
        *("active", "queued", "busiest", "iterations"),
        *("cache_blocks", "cache_blocks_used", "blocks_reused", "blocks_computed", "gpu_memory_bytes"),
    ),
)

# -- callbacks

# Reasons that no callback process reports of an attempt.
_NOT_TRIED = {"worker_lost", "secret_not_opened", "endpoint_disabled", "circuit_open"}
CALLBACK_ATTEMPTS = _metric(
    "counter",
    "callback_attempts_total",
    "Attempts to deliver a callback, by how they ended; `refused` is what our own rules of egress refused.",
    "callbacks",
    result=tuple(each for each in AttemptReason if each not in _NOT_TRIED),
)
CALLBACK_SECONDS = _metric(
    "histogram", "callback_attempt_seconds", "Seconds that an attempt took.", "callbacks", buckets=_QUICK
)
FIRST_TRY_SECONDS = _metric(
    "histogram",
    "callback_first_try_seconds",
    "Seconds from an ending to the beginning of the first try at telling it.",
    "callbacks",
    buckets=_LONG,
)
CALLBACKS_PUT_BACK = _metric(
    "counter",
    "callbacks_put_back_total",
    "Callbacks that were due and not sent, as their secret did not open: the process lacks the key.",
    "callbacks",
)
CALLBACKS_DEAD = _metric(
    "counter",
    "callbacks_dead_total",
    "Callbacks that failed at their last attempt, or whose receiver is gone.",
    "callbacks",
)
ENDPOINTS_DISABLED = _metric(
    "counter", "callback_endpoints_disabled_total", "Receivers that were disabled for failing.", "callbacks"
)

METRICS = tuple(each for each in tuple(globals().values()) if isinstance(each, Metric))
"""All of them, in the order of this file."""
