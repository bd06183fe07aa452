"""What TensorRT-LLM says of its own iterations, added up. Keys are read with care: their names are not promised."""

import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any

import structlog

log = structlog.get_logger()

_LOG_EVERY_SECONDS = 60.0


class Statistics:
    """The sums and the latest of an engine's statistics. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._iterations = 0
        self._busiest = 0
        self._latest: dict[str, int | float] = {}
        self._logged_at = time.monotonic()

    def add(self, iterations: Iterable[Mapping[str, Any]]) -> None:
        """Take the statistics of some iterations in, in their order."""
        for each in iterations:
            cache = each.get("kvCacheStats") or {}
            latest = {
                "gpu_memory_bytes": each.get("gpuMemUsage"),
                "active": each.get("numActiveRequests"),
                "queued": each.get("numQueuedRequests"),
                "cache_blocks": cache.get("maxNumBlocks"),
                "cache_blocks_used": cache.get("usedNumBlocks"),
                "blocks_reused": cache.get("reusedBlocks"),
                "blocks_computed": cache.get("missedBlocks"),
            }
            with self._lock:
                self._iterations += 1
                self._latest |= {name: value for name, value in latest.items() if isinstance(value, int | float)}
                self._busiest = max(self._busiest, int(self._latest.get("active", 0)))

    def snapshot(self) -> dict[str, int | float]:
        """The numbers as they stand. `busiest` is the most requests that were active at once."""
        with self._lock:
            return {"iterations": self._iterations, "busiest": self._busiest, **self._latest}

    def log_now_and_then(self) -> None:
        """Put the numbers into the log once a minute."""
        now = time.monotonic()
        if now - self._logged_at >= _LOG_EVERY_SECONDS:
            self._logged_at = now
            log.info("engine_statistics", **self.snapshot())
