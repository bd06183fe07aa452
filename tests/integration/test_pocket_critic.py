"""The pocket critic as it ships: in the wheel, over the embedded model, and no coin."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support.llama_server import embedded_model_file

pytest.importorskip("xllamacpp", reason="needs the wheel xllamacpp: install the extra 'embedded'")

from infra.filed import Filed
from infra.local.model import POCKET_CRITIC, adapter_over
from infra.settings import Settings
from worker import prompts
from worker.engines.adapters import read_adapter
from worker.engines.llama_cpp import LlamaCppEngine
from worker.opening import open_engine

ROOT = Path(__file__).resolve().parents[2]
OBVIOUS = [
    row
    for row in map(json.loads, (ROOT / "examples" / "first-docket.jsonl").read_text().splitlines())
    if row["topic"] == "obvious"
]


def test_a_wheel_of_nightcourt_carries_the_adapter(tmp_path):
    """Whoever installs nightcourt has it, at no more than 12 MB."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    packed = zipfile.ZipFile(wheel).read("infra/local/pocket-critic.gguf")
    assert packed == POCKET_CRITIC.read_bytes()
    assert len(packed) <= 12_000_000


def test_the_embedded_model_wears_it_unless_told_otherwise():
    """With nothing set, the judge is model and adapter, asked in the adapter's words, named and fingerprinted."""
    model = embedded_model_file()
    assert adapter_over(model) == POCKET_CRITIC
    engine = open_engine(Settings(context_tokens=1024, threads=1))
    plain = LlamaCppEngine(model, threads=1, context_tokens=1024)
    plain.close()
    try:
        assert engine.card.model.startswith(f"{plain.card.model} + pocket critic")
        assert engine.card.weights == read_adapter(POCKET_CRITIC, over=plain.card.weights).weights
        assert engine.card.profile == "pocket"
        assert "off the topic, cut, garbled or empty" in (engine.card.caveat or "")
    finally:
        engine.close()


def test_it_tells_obvious_pairs_apart_in_either_order():
    """At least ten of twelve ballots on the obvious examples are right; without it six are, for all are "A"."""
    engine = LlamaCppEngine(embedded_model_file(), adapter=POCKET_CRITIC, threads=1, context_tokens=1024)
    try:
        right = 0
        for row in OBVIOUS:
            asked = Filed(0, None, row["prompt"], row["response_a"], row["response_b"], "both", "pocket", None, {})
            first, second = engine.score([engine.encode(prompts.build(asked, order)) for order in ("ab", "ba")])
            sign = 1 if row["label"] == "A" else -1
            right += (sign * first.log_odds > 0) + (sign * second.log_odds < 0)
    finally:
        engine.close()
    assert len(OBVIOUS) == 6
    assert right >= 10
