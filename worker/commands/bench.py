"""`nightcourt engine bench`: tokens and judgements a second of the engine that the settings name."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

from schemas.engine import BenchOrder
from schemas.problems import BAD_INPUT_FILE, Problem
from worker.commands.load import Step, drive
from worker.commands.pairs import Pair, both_orders, both_within, of_length, read_pairs
from worker.commands.saying import Say
from worker.engines.base import Engine

_DIFFERENT = 32
"""So many comparisons of a length are made, and then numbered: making them takes longer than judging them."""
_ROOM_FOR_A_NUMBER = 16


def bench(engine: Engine, order: BenchOrder, say: Say) -> dict[str, Any]:
    """Measure an engine with comparisons in both orders, none of them asked twice.

    Raises:
        Problem: the pairs cannot be read.
        EngineError: the engine failed.
    """
    pairs = read_pairs(order.pairs)
    measured = []
    for length in order.lengths or (None,):
        steps = steps_of(engine, pairs, length)
        what = "the pairs as they are" if length is None else f"prompts of {length} tokens"
        say(f"warming up with {what}")
        drive(engine, itertools.islice(steps, 4), threads=min(4, order.in_flight))
        say(f"measuring {what} for {order.seconds:g} s, {order.in_flight} comparisons at a time")
        ready = list(itertools.islice(steps, order.in_flight))  # so that the engine is measured, and not the making
        load = drive(engine, itertools.chain(ready, steps), threads=order.in_flight, seconds=order.seconds)
        measured.append({"prompt_tokens": length, **load.rates()})
    return {"engine": asdict(engine.card), "in_flight": order.in_flight, "measured": measured}


def steps_of(engine: Engine, pairs: Sequence[Pair], length: int | None) -> Iterator[Step]:
    """Comparisons in both orders as steps, without end; a number before each question keeps them apart.

    Args:
        engine: whose tokens to count in.
        pairs: what to make them of.
        length: of each prompt, in tokens; None takes the pairs as they are, leaving out what is too long.

    Raises:
        Problem: no pair is short enough for the engine.
    """
    limit = engine.card.max_prompt_tokens - _ROOM_FOR_A_NUMBER
    if length is None:
        made = [pair.comparison for pair in pairs if isinstance(pair.comparison.prompt, str)]
    else:
        made = list(itertools.islice(of_length(pairs, min(length, limit), engine.encode), _DIFFERENT))
    fitting = [each for each in made if both_within(each, engine.encode, limit)]
    if not fitting:
        raise Problem(
            BAD_INPUT_FILE,
            f"None of the {len(pairs)} pairs has its question in one text and fits into {limit} tokens.",
        )
    return (
        both_orders(replace(each, prompt=f"({number}) {each.prompt}"), engine.encode)
        for number, each in enumerate(itertools.cycle(fitting))
    )
