"""Requests a second of the llama_cpp engine beside the same runtime called bare, on the same prompts in one run.

Three arms over the examples, both orders: the runtime called bare on prompts in a shuffled order, bare in our order,
and the engine. Bare calls get ready-made token ids and read nothing but the runtime's own answer.
"""

import random
import time
from collections.abc import Sequence
from typing import Any

import xllamacpp

from infra.filed import Filed, from_request
from infra.local.model import embedded_model
from producer.cli.pairs import example_file, read_pairs
from worker import prompts
from worker.engines.llama_cpp import LlamaCppEngine

_PAIRS = 14
_CONTEXT = 4096


def _comparisons() -> list[Filed]:
    pairs = read_pairs(example_file())[:_PAIRS]
    return [
        from_request(pair.request.model_dump(mode="json"), line=number) for number, pair in enumerate(pairs, start=1)
    ]


def _open_bare() -> Any:
    """Open the runtime as anyone would, with the settings that the engine was measured best with."""
    params = xllamacpp.CommonParams()
    params.model.path = str(embedded_model())
    params.n_ctx = _CONTEXT
    params.n_parallel = 1
    params.cache_ram_mib = 0
    params.verbosity = 0
    return xllamacpp.Server(params)


def _bare(server: Any, ids: Sequence[Sequence[int]]) -> float:
    """Ask the runtime for one token a prompt, and give the requests a second."""
    started = time.perf_counter()
    for prompt in ids:
        server.handle_completions({"prompt": list(prompt), "n_predict": 1, "temperature": 0, "cache_prompt": True})
    return len(ids) / (time.perf_counter() - started)


def measure() -> dict[str, Any]:
    """Measure each arm twice, in turns, and keep the better of the two."""
    bare = _open_bare()
    engine = LlamaCppEngine(embedded_model(), threads=None, context_tokens=_CONTEXT)
    try:
        ids = [engine.encode(prompts.build(row, order)) for row in _comparisons() for order in ("ab", "ba")]
        shuffled = random.Random(7).sample(ids, len(ids))  # noqa: S311 - a seeded order, no secret
        rates: dict[str, list[float]] = {"bare_shuffled": [], "bare": [], "engine": []}
        for _ in range(2):
            rates["bare_shuffled"].append(_bare(bare, shuffled))
            rates["bare"].append(_bare(bare, ids))
            started = time.perf_counter()
            engine.score(ids)
            rates["engine"].append(len(ids) / (time.perf_counter() - started))
    finally:
        engine.close()
    best = {arm: max(values) for arm, values in rates.items()}
    return {
        "requests": len(ids),
        "tokens_median": sorted(len(prompt) for prompt in ids)[len(ids) // 2],
        "requests_per_second": {arm: round(rate, 3) for arm, rate in best.items()},
        "engine_to_bare": round(best["engine"] / best["bare"], 3),
        "engine_to_bare_shuffled": round(best["engine"] / best["bare_shuffled"], 3),
    }
