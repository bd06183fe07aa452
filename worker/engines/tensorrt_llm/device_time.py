"""Dividing the time of a device among what it works on at once."""

import threading
import time
from collections.abc import Callable


class DeviceTime:
    """Each second in which anything is in flight is divided among what is, by tokens. Thread-safe.

    So the seconds of all add up to the time that the device was in use, however much went through it at once.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._tokens = 0
        self._per_token = 0.0
        self._seen = clock()

    def enter(self, tokens: int) -> float:
        """Count something in; returns a reading to leave with."""
        with self._lock:
            self._advance()
            self._tokens += tokens
            return self._per_token

    def leave(self, tokens: int, reading: float) -> float:
        """Count it out; returns its share in seconds."""
        with self._lock:
            self._advance()
            self._tokens -= tokens
            return tokens * (self._per_token - reading)

    def _advance(self) -> None:
        now = self._clock()
        if self._tokens:
            self._per_token += (now - self._seen) / self._tokens
        self._seen = now
