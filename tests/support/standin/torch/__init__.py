"""A stand-in of torch for tests: one pretended GPU, and tensors that do what the engine asks and no more."""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from standin_model import behaviour

bfloat16 = "torch.bfloat16"
float32 = "torch.float32"


class Tensor:
    """Nested lists of numbers."""

    __slots__ = ("_data", "dtype", "shape")

    def __init__(self, data: Any, dtype: str = float32) -> None:
        self._data = data
        self.dtype = dtype
        self.shape = _shape(data)

    def __getitem__(self, at: int | tuple[int, ...]) -> "Tensor":
        """One or several steps down."""
        data = self._data
        for step in at if isinstance(at, tuple) else (at,):
            data = data[step]
        return Tensor(data, self.dtype)

    def __float__(self) -> float:
        """A number, of a tensor with no dimension left."""
        if self.shape:
            raise TypeError("only one element tensors can be converted to Python scalars")
        return float(self._data)

    def float(self) -> "Tensor":
        """In 32 bits."""
        return Tensor(self._data, float32)

    def logsumexp(self, dim: int) -> "Tensor":
        """Over the only dimension."""
        if len(self.shape) != 1 or dim not in {0, -1}:
            raise IndexError("Dimension out of range")
        highest = max(self._data)
        return Tensor(highest + math.log(sum(math.exp(each - highest) for each in self._data)))

    def tolist(self) -> Any:
        """As lists."""
        return self._data


_threads = 16


def set_num_threads(number: int) -> None:
    """Say how many threads each thread that computes on the CPU may have beside it, itself included."""
    global _threads  # noqa: PLW0603 - a setting of the whole process, in torch as well
    _threads = number


def get_num_threads() -> int:
    """How many that are."""
    return _threads


def _shape(data: Any) -> tuple[int, ...]:
    return (len(data), *(_shape(data[0]) if data else ())) if isinstance(data, list) else ()


def tensor(data: Any, *, device: str) -> Tensor:
    """Put lists on the GPU."""
    assert device == "cuda"
    return Tensor(data, "torch.int64")


def inference_mode() -> AbstractContextManager[None]:
    """Nothing to switch off."""
    return nullcontext()


class cuda:  # noqa: N801 - a module in torch
    """The pretended GPU."""

    @staticmethod
    def is_available() -> bool:
        """Whether there is one."""
        return cuda.device_count() > 0

    @staticmethod
    def device_count() -> int:
        """How many."""
        return behaviour().get("gpus", 1)

    @staticmethod
    def get_device_capability(device: int) -> tuple[int, int]:
        """Its architecture."""
        assert device == 0
        major, minor = behaviour().get("capability", (9, 0))
        return major, minor

    @staticmethod
    def get_device_name(device: int) -> str:
        """Its name, as the driver gives it."""
        assert device == 0
        return behaviour().get("gpu", "NVIDIA H100 80GB HBM3")

    @staticmethod
    def mem_get_info(device: int) -> tuple[int, int]:
        """Free and total bytes."""
        assert device == 0
        return 10 * 2**30, 80 * 2**30
