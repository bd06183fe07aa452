"""What the tests of the engine for OpenAI-compatible servers have: servers, and engines on them."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.model_server import ModelServer, serving, write_tokenizer

from worker.engines import remote
from worker.engines.openai_server import OpenAIServerEngine


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The toy tokenizer's files."""
    return write_tokenizer(tmp_path_factory.mktemp("toy") / "tokenizer")


@pytest.fixture
def start() -> Iterator[Callable[..., ModelServer]]:
    """Start servers, and stop them at the end."""
    with ExitStack() as stack:
        yield lambda **ways: stack.enter_context(serving(ModelServer(**ways)))


@pytest.fixture
def open_engine(folder: Path) -> Iterator[Callable[..., OpenAIServerEngine]]:
    """Open engines on servers, with little patience, and close them at the end."""
    with ExitStack() as stack:

        def opened(server: ModelServer, **options) -> OpenAIServerEngine:
            chosen = {"tokenizer": folder, "patience_seconds": 5.0, "request_seconds": 2.0} | options
            engine = OpenAIServerEngine(f"{server.url}/v1", **chosen)
            stack.callback(engine.close)
            server.asked.clear()
            return engine

        yield opened


@pytest.fixture
def quick(monkeypatch) -> None:
    """Pauses between tries too short to wait for."""
    monkeypatch.setattr(remote, "_FIRST_PAUSE", 0.01)
