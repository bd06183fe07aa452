"""What the tests on a real GPU stand on; without one, they are skipped with a word."""

import importlib.metadata
from pathlib import Path

import pytest

from infra.settings import Settings


@pytest.fixture(scope="session", autouse=True)
def gpu_host() -> None:
    """A host with a GPU and TensorRT-LLM."""
    try:
        importlib.metadata.version("tensorrt_llm")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("needs a GPU host: TensorRT-LLM is not installed here (docs/gpu.md)")


@pytest.fixture(scope="session")
def engine_folder() -> Path:
    """A built engine, named by the setting that a worker would have."""
    folder = Settings(engine="llama_cpp").engine_folder
    if folder is None:
        pytest.skip("needs a built engine: set NIGHTCOURT_ENGINE_FOLDER (docs/gpu.md)")
    return folder
