"""The clock tells nobody which ids are known: 10,000 tries, told apart by a rank statistic or not at all.

The statistic is the area under the curve: how often a try at a known id takes longer than one at an unknown id, ties
as halves. It is a half where time tells nothing, and Mann and Whitney's test is about it. It looks at ranks alone, so
that a machine that is busy makes it vaguer and not larger.
"""

import gc
import random
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import pytest
from scipy.stats import rankdata
from sqlalchemy import Connection, Engine

from producer import keys
from schemas.keys import Scope, SpelledKey, parse_key, spell_key

TRIES = 10_000
CLOSE = 0.1
"""How far from a half the area may be. By chance, over 10,000 tries, one run in a million is 0.028 away; where objects
lie in memory is worth some nanoseconds, which is 0.06 for a call of a microsecond; a short cut is worth 0.4."""
CLOSE_IN_POSTGRES = 0.25
"""The same of a lookup. Postgres goes to the row of an id that it knows, which is worth 0.04 to 0.07 on an idle machine
and up to 0.17 on one with much else to do; a lookup left out is worth 0.5."""


def area(known: Callable[[], Any], unknown: Callable[[], Any], tries: int = TRIES) -> float:
    """Time two calls, half of the tries each, and say how well the times tell them apart: 0.5 is not at all."""
    calls = (known, unknown)
    # In no order that a processor could learn, and with nothing between the clocks but the call.
    order = [0, 1] * (tries // 2)
    random.Random(tries).shuffle(order)
    times: tuple[list[int], list[int]] = ([], [])
    gc.disable()
    try:
        for which in order:
            call = calls[which]
            began = time.perf_counter_ns()
            call()
            took = time.perf_counter_ns() - began
            times[which].append(took)
    finally:
        gc.enable()
    ranks = rankdata(times[0] + times[1])
    count = len(times[0])
    return float((ranks[:count].sum() - count * (count + 1) / 2) / (count * len(times[1])))


def usual_area(known: Callable[[], Any], unknown: Callable[[], Any]) -> float:
    """Of three areas the middle one: on a busy machine slow moments come in runs, and are no longer by chance."""
    return median(area(known, unknown) for _ in range(3))


def short_circuited(secret: str, kept: bytes, *, good: bool) -> bool:
    """The check as one would write it without a thought: nothing is compared where there is no key."""
    return good and keys.proves(secret, kept, good=good)


@pytest.fixture
def tries(connection: Connection) -> tuple[str, str]:
    """A wrong secret for an id that is known, and one for an id that is not."""
    key = parse_key(keys.create(connection, tenant="alpha", scopes=[Scope.READ]).key)
    for _ in range(1000):
        keys.create(connection, tenant="alpha", scopes=[Scope.READ])
    wrong = keys.new_key()
    return spell_key(SpelledKey(key.id, wrong.secret)), spell_key(wrong)


def test_the_comparison_takes_the_same_time():
    """A wrong secret is compared at the same pace with what is kept of a key and with what stands in for none."""
    secret = keys.new_key().secret
    found = usual_area(
        lambda: keys.proves(secret, b"k" * 32, good=True),
        lambda: keys.proves(secret, b"n" * 32, good=False),
    )
    assert abs(found - 0.5) < CLOSE


def test_a_near_miss_takes_the_same_time():
    """How much of a hash is right is not told either."""
    secret = keys.new_key().secret
    right = keys._hash(secret)
    near, far = right[:-1] + bytes([right[-1] ^ 1]), bytes([right[0] ^ 1]) + right[1:]
    found = usual_area(lambda: keys.proves(secret, near, good=True), lambda: keys.proves(secret, far, good=True))
    assert abs(found - 0.5) < CLOSE


def test_a_short_cut_would_be_noticed():
    """The same measure sees at once where nothing is compared for an id that is not known."""
    secret = keys.new_key().secret
    found = area(
        lambda: short_circuited(secret, b"k" * 32, good=True),
        lambda: short_circuited(secret, b"n" * 32, good=False),
    )
    assert found > 0.9


def test_a_lookup_takes_the_same_time(database: Engine, tries: tuple[str, str]):
    """From the spelling of a key to Postgres and back, known and unknown ids are not told apart."""
    known, unknown = tries
    with database.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for _ in range(200):  # until statements are prepared and caches are warm
            assert keys.find(connection, known) is keys.find(connection, unknown) is None
        found = usual_area(lambda: keys.find(connection, known), lambda: keys.find(connection, unknown))
    assert abs(found - 0.5) < CLOSE_IN_POSTGRES
