"""The checker is held to fabricated histories: a good one passes, and each way in which one can be bad is named."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from chaos.history import (
    INVARIANTS,
    Asked,
    Filing,
    History,
    Move,
    Outcome,
    Receipt,
    Seen,
    Shard,
    Wanted,
    broken,
    check,
    table,
)

SINGLE, BATCH = "a" * 32, "b" * 32

CLAIM = Move(1, "released", "running", None, 11, 0, 1, 0)


def good() -> History:
    """A comparison filed singly, sent twice, and a batch of two lines of which one crashes the engine."""
    return History(
        wanted={
            "single-1": Wanted(callbacks=True),
            "batch-1": Wanted(callbacks=True, line_callbacks=True, poison=frozenset([2])),
        },
        asked=[
            Asked("single-1", 0.1, None),
            Asked("single-1", 0.2, 503),
            Asked("single-1", 0.4, 202, f"cmp_{SINGLE}"),
            Asked("single-1", 0.5, 202, f"cmp_{SINGLE}"),
            Asked("batch-1", 0.6, 200, f"batch_{BATCH}"),
            Asked("cancel batch", 0.7, 409),
        ],
        seen=[Seen(f"cmp_{SINGLE}", "A"), Seen(f"cmp_{SINGLE}", "A")],
        receipts=[
            Receipt("evt_1", "one", f"cmp_{SINGLE}", "comparison.succeeded"),
            Receipt("evt_1", "one", f"cmp_{SINGLE}", "comparison.succeeded"),
            Receipt("evt_2", "two", f"batch_{BATCH}", "batch.completed"),
            Receipt("evt_3", "three", f"cmp_{BATCH}_1", "comparison.succeeded"),
            Receipt("evt_4", "four", f"cmp_{BATCH}_2", "comparison.errored"),
        ],
        moves=[
            Move(1, "waiting", "released", None, None, 0, 0, 0),
            Move(1, "released", "released", None, None, 0, 0, 0),
            CLAIM,
            Move(1, "running", "running", 11, 11, 1, 1, 0),
            Move(1, "running", "done", 11, None, 1, 1, 1),
            Move(2, "released", "running", None, 12, 0, 1, 0),
            Move(2, "running", "split", 12, None, 1, 1, 0),
        ],
        filings=[
            Filing("single-1", f"cmp_{SINGLE}", SINGLE, 0, 1, None),
            Filing("batch-1", f"batch_{BATCH}", BATCH, 1, 2, "completed"),
        ],
        outcomes=[
            Outcome(SINGLE, 0, "succeeded", None),
            Outcome(BATCH, 1, "succeeded", None),
            Outcome(BATCH, 2, "errored", "engine_crashed"),
        ],
        shards=[
            Shard(1, SINGLE, "done", {"succeeded": 1, "errored": 0}),
            Shard(2, BATCH, "split", {"succeeded": 0, "errored": 0}),
            Shard(3, BATCH, "done", {"succeeded": 1, "errored": 0}),
            Shard(4, BATCH, "done", {"succeeded": 0, "errored": 1}),
        ],
        deaths=[("worker-1", -9), ("worker-2", -9), ("worker-1", -9)],
    )


def with_more(**lists: list) -> History:
    """The good history with something added to its lists."""
    history = good()
    return replace(history, **{name: [*getattr(history, name), *more] for name, more in lists.items()})


def without(name: str, number: int) -> History:
    """The good history with something missing from one of its lists."""
    kept = list(getattr(good(), name))
    del kept[number]
    return replace(good(), **{name: kept})


def with_batch(status: str) -> History:
    """The good history with another end of its batch."""
    history = good()
    return replace(history, filings=[history.filings[0], history.filings[1]._replace(batch=status)])


BAD: list[tuple[str, str, Callable[[], History]]] = [
    ("nothing_lost", "an outcome is missing", lambda: without("outcomes", 0)),
    ("nothing_lost", "a filing is missing", lambda: without("filings", 0)),
    ("one_outcome", "a line has two outcomes", lambda: with_more(outcomes=[Outcome(SINGLE, 0, "succeeded", None)])),
    ("one_outcome", "an outcome changed", lambda: with_more(seen=[Seen(f"cmp_{SINGLE}", "B")])),
    ("counters", "a shard counts too much", lambda: with_more(shards=[Shard(5, SINGLE, "done", {"succeeded": 1})])),
    ("counters", "a shard counts too little", lambda: without("shards", 2)),
    ("batches_end", "a batch goes on for ever", lambda: with_batch("in_progress")),
    ("batches_end", "a batch is cancelled by nobody", lambda: with_batch("cancelled")),
    ("events", "an event never came", lambda: without("receipts", 2)),
    ("events", "an event came under two ids", lambda: with_more(receipts=[good().receipts[0]._replace(event="evt_9")])),
    ("events", "an event came with two bodies", lambda: with_more(receipts=[good().receipts[0]._replace(body="else")])),
    (
        "events",
        "an event tells of another end",
        lambda: replace(
            good(),
            receipts=[each._replace(type="comparison.errored") for each in good().receipts[:2]] + good().receipts[2:],
        ),
    ),
    (
        "events",
        "an event is of nothing",
        lambda: with_more(receipts=[Receipt("evt_8", "x", "cmp_x", "comparison.expired")]),
    ),
    ("stuck", "a shard waits", lambda: with_more(shards=[Shard(9, SINGLE, "waiting", {})])),
    ("stuck", "a shard runs", lambda: with_more(shards=[Shard(9, SINGLE, "running", {})])),
    ("stuck", "a callback waits", lambda: replace(good(), pending_callbacks=1)),
    ("stuck", "a callback is dead", lambda: replace(good(), dead_callbacks=1)),
    ("stuck", "a producer has no answer", lambda: replace(good(), asked=good().asked[:4])),
    ("one_key", "a key leads to two", lambda: with_more(asked=[Asked("single-1", 0.9, 202, "cmp_" + "c" * 32)])),
    (
        "one_key",
        "a key was filed twice, and answered once",
        lambda: with_more(filings=[Filing("single-1", "cmp_" + "c" * 32, "c" * 32, 0, 1, None)]),
    ),
    (
        "holders",
        "a shard that has ended is written",
        lambda: with_more(moves=[Move(1, "done", "done", None, None, 1, 1, 0)]),
    ),
    (
        "holders",
        "a shard that waits is ended",
        lambda: with_more(moves=[Move(3, "waiting", "running", None, 13, 0, 1, 0)]),
    ),
    (
        "holders",
        "lines are counted that nobody held",
        lambda: with_more(moves=[Move(3, "waiting", "done", None, None, 0, 0, 1)]),
    ),
    ("holders", "a token changes hands", lambda: with_more(moves=[Move(3, "running", "running", 13, 14, 1, 1, 0)])),
    ("holders", "a token is given out twice", lambda: with_more(moves=[CLAIM])),
    (
        "attempts",
        "a claim is not counted",
        lambda: with_more(moves=[Move(3, "released", "running", None, 13, 1, 1, 0)]),
    ),
    (
        "cost_nobody",
        "a line is errored that did no harm",
        lambda: replace(good(), outcomes=[Outcome(SINGLE, 0, "errored", "engine_failed"), *good().outcomes[1:]]),
    ),
    (
        "cost_nobody",
        "poison is judged",
        lambda: replace(good(), outcomes=[*good().outcomes[:2], Outcome(BATCH, 2, "succeeded", None)]),
    ),
    ("cost_nobody", "an outcome is of nothing", lambda: with_more(outcomes=[Outcome("d" * 32, 0, "succeeded", None)])),
    ("outages", "an outage is answered 500", lambda: with_more(asked=[Asked("single-1", 0.9, 500)])),
    ("outages", "a producer is refused", lambda: with_more(asked=[Asked("single-1", 0.9, 409)])),
    ("processes", "an API ends", lambda: with_more(deaths=[("api-1", 1)])),
    ("processes", "a worker ends with an error", lambda: replace(good(), deaths=[("worker-1", 1)])),
    ("processes", "poison takes more workers than it may", lambda: with_more(deaths=[("worker-1", -9)])),
]


def names(word: str) -> list[str]:
    """The invariants whose function's name has a word in it."""
    return [name for name, facts in INVARIANTS.items() if word in facts.__name__]


def test_a_good_history_passes():
    """Retries, a doubled callback and a cancellation that came too late break nothing; all invariants were tried."""
    findings = check(good())
    assert broken(findings) == []
    assert all(finding.checked for finding in findings)


@pytest.mark.parametrize(("word", "make"), [(word, make) for word, _, make in BAD], ids=[case for _, case, _ in BAD])
def test_a_bad_history_is_named(word: str, make: Callable[[], History]):
    """What is wrong breaks the invariant that it is about, and the table says so."""
    [name] = names(word)
    findings = check(make())
    assert name in broken(findings)
    [row] = [line for line in table(findings).splitlines() if line.startswith(name)]
    assert int(row.split()[-1]) > 0


def test_every_invariant_is_tried():
    """No invariant is without a history that breaks it."""
    assert {name for word, _, _ in BAD for name in names(word)} == set(INVARIANTS)
