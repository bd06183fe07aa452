"""A model that wears an adapter is another judge: other odds, another fingerprint, a profile of its own."""

import hashlib
from pathlib import Path

import pytest
from support.adapters import write_adapter
from support.llama_server import embedded_model_file

pytest.importorskip("xllamacpp", reason="needs the wheel xllamacpp: install the extra 'embedded'")

from infra.local import model as packaged
from worker.engines.adapters import AdapterError
from worker.engines.base import Prompt, Score
from worker.engines.gguf import GgufError
from worker.engines.llama_cpp import LlamaCppEngine, UnusableModelError

PROMPT = Prompt((("user", "Which answer is better?"),), "[[")


@pytest.fixture(scope="module")
def model() -> Path:
    """The embedded model's file."""
    return embedded_model_file()


def ask(model: Path, adapter: Path | None) -> tuple[LlamaCppEngine, Score]:
    """Open the engine, ask it one prompt and close it."""
    engine = LlamaCppEngine(model, adapter=adapter, threads=2, context_tokens=256)
    try:
        return engine, engine.score([engine.encode(PROMPT)])[0]
    finally:
        engine.close()


def test_an_adapter_changes_the_odds_and_the_name_of_the_judge(model, tmp_path):
    """One that changes nothing gives the model's own odds and yet is another judge; one that does changes them."""
    nothing = write_adapter(tmp_path / "nothing.gguf", strength=0.0, general__name="nothing")
    much = write_adapter(tmp_path / "much.gguf", strength=0.5, general__name="much")
    (plain, own), (idle, same), (changed, other) = (ask(model, adapter) for adapter in (None, nothing, much))
    assert same.log_odds == pytest.approx(own.log_odds, abs=0.05)
    assert abs(other.log_odds - own.log_odds) > 0.3
    assert idle.card.model == f"{plain.card.model} + nothing"
    assert len({engine.card.weights for engine in (plain, idle, changed)}) == 3
    assert all(engine.card.weights.startswith("sha256:") for engine in (plain, idle, changed))


def test_an_adapter_says_which_profile_it_was_trained_with(model, tmp_path):
    """The pocket critic is asked in its own words; an adapter that says nothing is asked in the card's."""
    base = f"sha256:{hashlib.sha256(model.read_bytes()).hexdigest()}"
    pocket = write_adapter(tmp_path / "pocket.gguf", strength=0.1, nightcourt__profile="pocket", nightcourt__base=base)
    engine, _ = ask(model, pocket)
    assert engine.card.profile == "pocket"
    assert "hardly at all" in (engine.card.caveat or "")
    engine, _ = ask(model, write_adapter(tmp_path / "other.gguf", strength=0.1))
    assert engine.card.profile == "card"


def test_an_adapter_over_another_model_is_refused(model, tmp_path):
    """Its weights would be added to the wrong ones, and every verdict be noise."""
    strange = write_adapter(tmp_path / "strange.gguf", strength=0.1, nightcourt__base="sha256:" + "0" * 64)
    with pytest.raises(AdapterError, match=r"strange\.gguf was made over the model sha256:000000000000 .* NIGHTCOURT_"):
        LlamaCppEngine(model, adapter=strange)


def test_what_is_no_adapter_is_refused(model, tmp_path):
    """A whole model, a missing file and a file cut short are each told apart."""
    with pytest.raises(AdapterError, match="is no LoRA adapter"):
        LlamaCppEngine(model, adapter=model)
    with pytest.raises(GgufError, match="cannot be read"):
        LlamaCppEngine(model, adapter=tmp_path / "nowhere.gguf")
    whole = write_adapter(tmp_path / "whole.gguf", strength=0.1)
    (tmp_path / "half.gguf").write_bytes(whole.read_bytes()[:4000])
    with pytest.raises(UnusableModelError, match=r"with half\.gguf"):
        LlamaCppEngine(model, adapter=tmp_path / "half.gguf")


def test_nightcourt_s_own_adapter_goes_over_the_embedded_model_alone(model, tmp_path, monkeypatch):
    """A model of the user's own is judged with as it is."""
    own = tmp_path / "pocket-critic.gguf"
    own.write_bytes(b"GGUF")
    monkeypatch.setattr(packaged, "POCKET_CRITIC", own)
    assert packaged.adapter_over(model) == own
    assert packaged.adapter_over(tmp_path / "skywork-critic.gguf") is None
