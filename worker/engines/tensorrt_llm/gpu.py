"""The GPU at hand, and the library that drives it."""

import os
from dataclasses import dataclass
from importlib import metadata

from schemas.problems import NO_GPU, Problem

VERSION = "1.2.1"
"""The TensorRT-LLM that all of this is written for: the last stable one with engines on disk."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """The GPU at hand."""

    name: str
    architecture: int
    """Compute capability times ten."""
    tensorrt_llm: str
    """The library's version."""


def gpu_at_hand() -> Gpu:
    """Find the one GPU that this process is to use.

    Raises:
        Problem: there is none, or more than one, or TensorRT-LLM is not installed in the version this is written for.
    """
    try:
        version = metadata.version("tensorrt_llm")
    except metadata.PackageNotFoundError:
        raise Problem(
            NO_GPU, f"TensorRT-LLM is not installed here. Run this in NVIDIA's image of TensorRT-LLM {VERSION}."
        ) from None
    if version != VERSION:
        raise Problem(
            NO_GPU, f"TensorRT-LLM is of version {version} here, and {VERSION} is needed. Take the image of {VERSION}."
        )
    import torch  # noqa: PLC0415 - on GPU hosts alone

    if not torch.cuda.is_available():
        raise Problem(NO_GPU, "No GPU is at hand. Look at `nvidia-smi`, and give the container one with --gpus.")
    if (count := torch.cuda.device_count()) > 1:
        raise Problem(
            NO_GPU,
            f"{count} GPUs are in sight, and a process uses one: set CUDA_VISIBLE_DEVICES=0 for the first, and so on.",
        )
    major, minor = torch.cuda.get_device_capability(0)
    return Gpu(torch.cuda.get_device_name(0), 10 * major + minor, version)


def memory_in_use() -> int:
    """Bytes of the GPU's memory that are taken, by whomever."""
    import torch  # noqa: PLC0415

    free, total = torch.cuda.mem_get_info(0)
    return int(total - free)


def keep_to_one_process() -> None:
    """Keep TensorRT-LLM's executor in this process. It looks for this once, when it is imported."""
    os.environ["TLLM_WORKER_USE_SINGLE_PROCESS"] = "1"  # noqa: TID251 - set for a library, not read
