"""The names that the real module has and that are used."""

from tensorrt_llm._classes import (
    BuildConfig,
    CalibConfig,
    CapacitySchedulerPolicy,
    CompletionOutput,
    KvCacheConfig,
    QuantAlgo,
    QuantConfig,
    RequestError,
    SamplingParams,
    SchedulerConfig,
)

__all__ = [
    "BuildConfig",
    "CalibConfig",
    "CapacitySchedulerPolicy",
    "CompletionOutput",
    "KvCacheConfig",
    "QuantAlgo",
    "QuantConfig",
    "RequestError",
    "SamplingParams",
    "SchedulerConfig",
]
