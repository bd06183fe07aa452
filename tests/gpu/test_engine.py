"""On a real GPU: what the stand-in takes for granted. How to run it there stands in docs/gpu.md, at the end of step 5.

Nothing of this has been run yet: no GPU was at hand when it was written.
"""

import importlib.util
import inspect
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.checkpoints import write_pairs
from support.gpu import STAND_INS
from support.waiting import wait_until

from worker import prompts
from worker.commands.pairs import both_orders, read_pairs
from worker.engines.tensorrt_llm.engine import TensorRtLlmEngine

pytestmark = pytest.mark.filterwarnings("default")
"""TensorRT-LLM and torch warn of their own affairs when they are imported, which is nobody's mistake here."""


@pytest.fixture(scope="module")
def engine(engine_folder: Path) -> Iterator[TensorRtLlmEngine]:
    """The engine, loaded once."""
    engine = TensorRtLlmEngine(engine_folder, prompt=prompts.PROFILES["card"].sha256)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def steps(engine: TensorRtLlmEngine, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Comparisons in both orders, as token ids."""
    pairs = read_pairs(write_pairs(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", 64))
    return [both_orders(pair.comparison, engine.encode) for pair in pairs]


@pytest.fixture(scope="module")
def surface() -> Any:
    """What the stand-in takes the library to take: its table, read beside the real library and not in its place."""
    file = STAND_INS / "tensorrt_llm" / "_surface.py"
    spec = importlib.util.spec_from_file_location("standin_surface", file)
    table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(table)
    return table


class TestLibrary:
    def test_the_real_classes_take_what_the_stand_in_takes_them_to(self, surface: Any):
        """Every name of the stand-in's table is a name of the installed library."""
        from tensorrt_llm import BuildConfig, SamplingParams, llmapi  # noqa: PLC0415 - on GPU hosts alone
        from tensorrt_llm.llmapi.llm_args import TrtLlmArgs  # noqa: PLC0415

        real = {
            "LLM": (TrtLlmArgs, surface.LLM),
            "SamplingParams": (SamplingParams, surface.SAMPLING_PARAMS),
            "BuildConfig": (BuildConfig, surface.BUILD_CONFIG),
            "PluginConfig": (type(BuildConfig().plugin_config), surface.PLUGIN_CONFIG),
            "KvCacheConfig": (llmapi.KvCacheConfig, surface.KV_CACHE_CONFIG),
            "SchedulerConfig": (llmapi.SchedulerConfig, surface.SCHEDULER_CONFIG),
            "QuantConfig": (llmapi.QuantConfig, surface.QUANT_CONFIG),
            "CalibConfig": (llmapi.CalibConfig, surface.CALIB_CONFIG),
        }
        missing = {}
        for name, (cls, names) in real.items():
            known = set(getattr(cls, "model_fields", ())) | set(inspect.signature(cls).parameters)
            missing[name] = sorted(set(names) - known)
        assert {name: names for name, names in missing.items() if names} == {}

    def test_methods_have_the_arguments_of_the_table(self, surface: Any, engine: TensorRtLlmEngine):
        """What is called is there, with the keywords that it is called with."""
        for method, arguments in surface.METHODS["LLM"].items():
            assert set(arguments) <= set(inspect.signature(getattr(engine._llm, method)).parameters), method


class TestEngine:
    def test_it_stays_one_process(self, engine: TensorRtLlmEngine, steps: list[Any]):
        """With one GPU and generation logits, TensorRT-LLM starts no process of its own."""
        engine.score(steps[0])
        children = psutil.Process(os.getpid()).children(recursive=True)
        assert not [child for child in children if "python" in child.name()]

    def test_nearly_all_probability_is_on_the_verdicts(self, engine: TensorRtLlmEngine, steps: list[Any]):
        """Logits are raw, of the shape that is expected, and the judge answers A or B."""
        scores = [score for step in steps for score in engine.score(step)]
        assert min(score.mass for score in scores) > 0.5
        assert max(score.mass for score in scores) <= 1.0

    def test_a_prompt_gets_the_same_odds_alone_and_among_others(self, engine: TensorRtLlmEngine, steps: list[Any]):
        """Batching and reuse move log-odds by no more than a verification lets them drift."""
        many = [prompt for step in steps for prompt in step]
        together = engine.score(many[:64], salt="together")
        for prompt, score in zip(many[:64], together, strict=True):
            [alone] = engine.score([prompt], salt="alone")
            assert alone.log_odds == pytest.approx(score.log_odds, abs=0.35)

    def test_slots_begin_no_pools_of_threads(self, engine: TensorRtLlmEngine, steps: list[Any]):
        """Reading logits takes the thread that asks, and none beside it."""
        process, all_scored, seen = psutil.Process(os.getpid()), threading.Barrier(9), threading.Event()
        engine.score(steps[0])
        before = process.num_threads()

        def slot(number: int) -> None:
            engine.score(steps[number])
            all_scored.wait(timeout=60)
            seen.wait(timeout=60)

        with ThreadPoolExecutor(8) as slots:
            for number in range(8):
                slots.submit(slot, number)
            all_scored.wait(timeout=60)
            during = process.num_threads()
            seen.set()
        assert during <= before + 8

    def test_statistics_have_the_keys_that_are_read(self, engine: TensorRtLlmEngine, steps: list[Any]):
        """Their names are not promised anywhere, so they are looked at here."""
        engine.score(steps[1])
        found = wait_until(
            lambda: engine.statistics.snapshot() if len(engine.statistics.snapshot()) > 2 else None,
            within=10,
            what="statistics come",
        )
        assert {"gpu_memory_bytes", "active", "cache_blocks", "blocks_reused"} <= set(found)

    def test_a_longest_prompt_is_taken(self, engine: TensorRtLlmEngine, steps: list[Any]):
        """Chunked prefill takes prompts up to the limit that the card states."""
        filler = list(steps[0][0])
        prompt = (filler * (engine.card.max_prompt_tokens // len(filler) + 1))[-engine.card.max_prompt_tokens :]
        assert engine.score([prompt])
