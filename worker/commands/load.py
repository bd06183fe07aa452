"""Putting prompts to an engine as a worker would: from many threads, through the gate."""

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from schemas.states import Lane
from worker.admission import Gate
from worker.engines.base import Engine, Score

Step = Sequence[Sequence[int]]
"""The prompts of one call."""


@dataclass
class Load:
    """What went through an engine, and how fast."""

    prompts: int = 0
    tokens: int = 0
    seconds: float = 0.0
    waits: list[float] = field(default_factory=list)
    """Seconds from asking to having the answer, one a call; the gate's queue included."""

    def rates(self) -> dict[str, float]:
        """The rates. A judgement is one forward pass; a comparison in both orders takes two."""
        seconds = max(self.seconds, 1e-9)
        waits = sorted(self.waits) or [0.0]
        return {
            "seconds": round(self.seconds, 3),
            "judgements": self.prompts,
            "tokens": self.tokens,
            "tokens_per_judgement": round(self.tokens / max(self.prompts, 1), 1),
            "tokens_per_second": round(self.tokens / seconds, 1),
            "judgements_per_second": round(self.prompts / seconds, 2),
            "comparisons_per_second": round(self.prompts / seconds / 2, 2),
            "wait_seconds_median": round(waits[len(waits) // 2], 4),
            "wait_seconds_p99": round(waits[min(len(waits) - 1, int(0.99 * len(waits)))], 4),
        }


def drive(
    engine: Engine,
    steps: Iterator[Step],
    *,
    threads: int,
    seconds: float = float("inf"),
    apart: bool = False,
    on_scores: Callable[[Step, Sequence[Score]], None] = lambda _step, _scores: None,
) -> Load:
    """Put steps to an engine from several threads at once, until there are no more or the time is up.

    Args:
        engine: what to ask.
        steps: the prompts of each call; drawn one at a time, whenever a thread is free.
        threads: how many calls may be under way.
        seconds: when to begin no more calls.
        apart: whether each call has a salt of its own, so that nothing computed for another is used again.
        on_scores: told each answer, by one thread at a time.

    Raises:
        EngineError: the engine failed; the first failure ends the load.
    """
    gate = Gate(engine.card.step_tokens * engine.card.steps_ahead)
    load = Load()
    lock = threading.Lock()
    failures: list[BaseException] = []
    began = time.monotonic()

    def work() -> None:
        while not failures and time.monotonic() - began < seconds:
            try:
                with lock:
                    step = next(steps, None)  # which asks the engine, too: for the ids of texts
                if step is None:
                    return
                tokens = sum(len(prompt) for prompt in step)
                asked_at = time.monotonic()
                with gate.admit(tokens, Lane.BULK):
                    scores = engine.score(step, salt=secrets.token_hex(8) if apart else "")
                with lock:
                    load.prompts += len(step)
                    load.tokens += tokens
                    load.waits.append(time.monotonic() - asked_at)
                    on_scores(step, scores)
            except BaseException as error:  # noqa: BLE001 - it is raised again below, in the thread that waits
                failures.append(error)
                return

    workers = [threading.Thread(target=work, name=f"load-{number}") for number in range(threads)]
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    except KeyboardInterrupt as interruption:
        failures.append(interruption)  # so that no more calls begin, for which the process would stay
        raise
    load.seconds = time.monotonic() - began
    if failures:
        raise failures[0]
    return load
