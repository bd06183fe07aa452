"""From a Hugging Face checkpoint to an engine: what of the build is TensorRT-LLM's own work."""

import os
from pathlib import Path
from typing import Any

from schemas.engine import Limits, Quantisation
from worker.engines.tensorrt_llm.gpu import keep_to_one_process

CALIBRATION_TOKENS = 2048
"""Longer calibration prompts are cut to this many tokens."""


def compile_engine(
    checkpoint: Path,
    folder: Path,
    *,
    quantisation: Quantisation,
    limits: Limits,
    calibration: Path | None,
    samples: int,
    workspace: Path,
) -> None:
    """Quantise where asked, build, and save the engine's files. Takes minutes, and the whole GPU.

    Args:
        checkpoint: a folder that transformers could load.
        folder: where `config.json` and `rank0.engine` go.
        quantisation: how weights, and with fp8 the KV cache too, are stored and computed with.
        limits: what the engine is to take.
        calibration: a folder that `datasets` could load, with a split `train` and a column `text`.
        samples: how many of its rows to calibrate with.
        workspace: room for what is made on the way: about twice the checkpoint.
    """
    keep_to_one_process()
    # `datasets` keeps what it reads in the user's home, which an image may have sealed.
    os.environ["HF_DATASETS_CACHE"] = str(workspace / "datasets")  # noqa: TID251 - set for a library, not read
    from tensorrt_llm import BuildConfig  # noqa: PLC0415 - on GPU hosts alone
    from tensorrt_llm._tensorrt_engine import LLM  # noqa: PLC0415
    from tensorrt_llm.llmapi import CalibConfig, QuantAlgo, QuantConfig  # noqa: PLC0415

    build = BuildConfig(
        max_batch_size=limits.max_batch_size,
        max_num_tokens=limits.max_num_tokens,
        max_seq_len=limits.max_seq_len,
        max_input_len=limits.max_input_len,
        max_beam_width=1,
    )
    # What block reuse and chunked prefill stand on; it is the default, and here it is a promise.
    build.plugin_config.use_paged_context_fmha = True
    if quantisation != "fp8":
        build.plugin_config.gemm_plugin = "auto"
    quantised: dict[str, Any] = {}
    if quantisation == "fp8":
        quantised["quant_config"] = QuantConfig(quant_algo=QuantAlgo.FP8, kv_cache_quant_algo=QuantAlgo.FP8)
    elif quantisation == "int4_awq":
        quantised["quant_config"] = QuantConfig(quant_algo=QuantAlgo.W4A16_AWQ)
    if quantised:
        quantised["calib_config"] = CalibConfig(
            calib_dataset=str(calibration),
            calib_batches=samples,
            calib_batch_size=1,
            calib_max_seq_length=CALIBRATION_TOKENS,
            tokenizer_max_seq_length=CALIBRATION_TOKENS,
        )
    with LLM(
        model=str(checkpoint),
        dtype="bfloat16" if quantisation in {"fp8", "bf16"} else "float16",
        build_config=build,
        workspace=str(workspace),
        max_batch_size=limits.max_batch_size,
        max_num_tokens=limits.max_num_tokens,
        max_seq_len=limits.max_seq_len,
        max_input_len=limits.max_input_len,
        max_beam_width=1,
        **quantised,
    ) as llm:
        llm.save(str(folder))
