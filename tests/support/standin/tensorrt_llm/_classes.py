"""The configuration classes."""

from enum import Enum, StrEnum
from typing import Any

from tensorrt_llm import _surface as surface
from tensorrt_llm._strict import model, record

CapacitySchedulerPolicy = Enum("CapacitySchedulerPolicy", {name: name for name in surface.CAPACITY_SCHEDULER_POLICIES})


QuantAlgo = StrEnum("QuantAlgo", {name: name for name in surface.QUANT_ALGOS})


class RequestError(RuntimeError):
    """One request failed; the executor goes on."""


_KvCacheConfig = model("KvCacheConfig", surface.KV_CACHE_CONFIG)
_SchedulerConfig = model("SchedulerConfig", surface.SCHEDULER_CONFIG)
_BuildConfig = model("BuildConfig", surface.BUILD_CONFIG)
PluginConfig = model("PluginConfig", surface.PLUGIN_CONFIG)
QuantConfig = model("QuantConfig", surface.QUANT_CONFIG)
CalibConfig = model("CalibConfig", surface.CALIB_CONFIG)


class KvCacheConfig(_KvCacheConfig):
    """On the engine class the cache's type is built in."""

    def model_post_init(self, _: Any) -> None:
        """Check what the real one checks."""
        assert self.dtype == "auto", "dtype is of the PyTorch backend"
        if self.free_gpu_memory_fraction is not None and not 0 <= self.free_gpu_memory_fraction <= 1:
            raise ValueError("free_gpu_memory_fraction is a share")


class SchedulerConfig(_SchedulerConfig):
    """Takes a member of the enum, not its name."""

    def model_post_init(self, _: Any) -> None:
        """Check what the real one checks."""
        policy = self.capacity_scheduler_policy
        if policy != "GUARANTEED_NO_EVICT" and not isinstance(policy, CapacitySchedulerPolicy):
            raise ValueError("capacity_scheduler_policy is a CapacitySchedulerPolicy")


class BuildConfig(_BuildConfig):
    """Brings its plugin configuration along."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**{"plugin_config": PluginConfig(), **given})


_SamplingParams = record("SamplingParams", surface.SAMPLING_PARAMS)


class SamplingParams(_SamplingParams):
    """Knows that several samples need several sequences."""

    __slots__ = ("_stream_interval",)

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.check()
        self.best_of = self.best_of or self.n
        self._stream_interval = None


CompletionOutput = record("CompletionOutput", surface.COMPLETION_OUTPUT)
