"""An engine folder for the tests of the TensorRT-LLM engine."""

from pathlib import Path

import pytest
from support.gpu import build_engine


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine folder, built by the builder."""
    return build_engine(
        tmp_path_factory.mktemp("engine"), pairs=20, max_batch_size=8, max_num_tokens=4096, max_seq_len=2048
    )
