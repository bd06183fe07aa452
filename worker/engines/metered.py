"""Any engine, counted: how much it was asked, how long it took, and how it failed."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from infra import metrics
from infra.meters import Meters
from infra.traces import Traces
from worker.engines.base import (
    Engine,
    EngineAwayError,
    EngineCard,
    EngineError,
    EngineGoneError,
    EngineOutOfMemoryError,
    Generation,
    Score,
)


class MeteredEngine:
    """An engine that answers as the one inside does, and counts."""

    def __init__(self, engine: Engine, meters: Meters, traces: Traces | None = None) -> None:
        self._engine = engine
        self._meters = meters
        self._traces = traces or Traces()
        self._lock = threading.Lock()
        self._under_way: dict[object, float] = {}
        # Handed out as they are: they are called for each prompt, and there is nothing to count.
        self.encode = engine.encode
        self.health = engine.health
        self.close = engine.close

    @property
    def card(self) -> EngineCard:
        """Who the engine inside is."""
        return self._engine.card

    def score(self, prompts: Sequence[Sequence[int]], *, salt: str = "") -> list[Score]:
        """Ask for scores."""
        with self._timed("score", prompts):
            scores = self._engine.score(prompts, salt=salt)
        self._count(
            prompts=len(prompts),
            tokens=sum(map(len, prompts)),
            cached=sum([score.cached_tokens for score in scores]),
            seconds=sum([score.seconds for score in scores]),
        )
        return scores

    def generate(self, prompt: Sequence[int], max_tokens: int, *, salt: str = "") -> Generation:
        """Ask for text."""
        with self._timed("generate", [prompt]):
            written = self._engine.generate(prompt, max_tokens, salt=salt)
        self._count(prompts=1, tokens=len(prompt), cached=written.cached_tokens, seconds=written.seconds)
        return written

    def longest_call(self) -> float:
        """Tell for how many seconds the call has been under way that began first; 0 where none is."""
        with self._lock:
            now = time.monotonic()
            return now - min(self._under_way.values(), default=now)

    def _count(self, *, prompts: int, tokens: int, cached: int, seconds: float) -> None:
        self._meters.add(metrics.BALLOTS, prompts)
        self._meters.add(metrics.PROMPT_TOKENS, tokens)
        self._meters.add(metrics.CACHED_TOKENS, cached)
        self._meters.add(metrics.GPU_SECONDS, seconds)

    @contextmanager
    def _timed(self, kind: Literal["score", "generate"], prompts: Sequence[Sequence[int]]) -> Iterator[None]:
        call, began = object(), time.monotonic()
        with self._lock:
            self._under_way[call] = began
        try:
            with self._traces.step(f"engine {kind}", {"nightcourt.prompts": len(prompts)}):
                yield
        except EngineError as error:
            self._meters.add(metrics.ENGINE_ERRORS, kind=_kind(error))
            raise
        finally:
            with self._lock:
                del self._under_way[call]
            self._meters.observe(metrics.STEP_SECONDS, time.monotonic() - began, kind=kind)


def _kind(error: EngineError) -> str:
    match error:
        case EngineOutOfMemoryError():
            return "out_of_memory"
        case EngineAwayError():
            return "away"
        case EngineGoneError():
            return "gone"
        case _:
            return "failed"
