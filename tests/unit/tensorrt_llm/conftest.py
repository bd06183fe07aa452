"""An engine folder for the tests of the TensorRT-LLM engine."""

from pathlib import Path

import pytest
from support.checkpoints import make_checkpoint, write_pairs
from support.gpu import gpu_host

from schemas.engine import BuildOrder, Limits
from worker.commands.build import build


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine folder, built by the builder."""
    room = tmp_path_factory.mktemp("engine")
    order = BuildOrder(
        checkpoint=str(make_checkpoint(room)),
        folder=room / "built",
        pairs=write_pairs(room / "pairs.jsonl", 20),
        limits=Limits(max_batch_size=8, max_num_tokens=4096, max_seq_len=2048),
    )
    with gpu_host():
        build(order, lambda _: None)
    return order.folder
