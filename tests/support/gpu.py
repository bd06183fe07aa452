"""A pretended GPU host: the stand-ins put where `import` finds them, in this process or in its children."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from schemas.engine import BuildOrder, Limits
from support.checkpoints import make_checkpoint, write_pairs
from worker import prompts
from worker.commands.build import build
from worker.engines.tensorrt_llm.engine import TensorRtLlmEngine

STAND_INS = Path(__file__).resolve().parent / "standin"
CARD = prompts.PROFILES["card"].sha256
_NAMES = ("tensorrt_llm", "torch", "transformers", "standin_model")


def _forget() -> None:
    for name in [each for each in sys.modules if each.partition(".")[0] in _NAMES]:
        del sys.modules[name]


@contextmanager
def gpu_host(**behaviour: object) -> Iterator[None]:
    """Pretend to be a GPU host until the block ends, with the behaviour that `standin_model.behaviour` hands out."""
    with pytest.MonkeyPatch.context() as patch:
        _forget()
        patch.syspath_prepend(str(STAND_INS))
        patch.setenv("PYTHONPATH", str(STAND_INS))
        patch.setenv("NIGHTCOURT_STANDIN", json.dumps(behaviour))
        patch.delenv("TLLM_WORKER_USE_SINGLE_PROCESS", raising=False)
        try:
            yield
        finally:
            _forget()


def build_engine(room: Path, *, pairs: int, **limits: int) -> Path:
    """Have the builder make an engine of a checkpoint and of so many pairs, which are made in the room, too."""
    order = BuildOrder(
        checkpoint=str(make_checkpoint(room)),
        folder=room / "engine",
        pairs=write_pairs(room / "pairs.jsonl", pairs),
        limits=Limits(**limits),
    )
    with gpu_host():
        build(order, lambda _: None)
    return order.folder


@contextmanager
def opened(folder: Path, *, timeout: float = 10.0, **behaviour: object) -> Iterator[TensorRtLlmEngine]:
    """The engine on a pretended GPU host."""
    with gpu_host(**behaviour):
        engine = TensorRtLlmEngine(folder, prompt=CARD, timeout_seconds=timeout)
        try:
            yield engine
        finally:
            engine.close()
