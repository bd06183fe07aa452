"""What the real library's classes take, as a table: names, types and defaults of TensorRT-LLM around 1.2.1.

Facts, taken down from NVIDIA's API stability references and from argument classes on both sides of 1.2.1;
`tests/contract/test_tensorrt_llm_api.py` holds them to that data where it is at hand. `...` is a value that has to
be given, `Any` a type that only the real library has.
"""

from typing import Any, Literal

Surface = dict[str, tuple[Any, Any]]

OptInt, OptFloat, OptStr = int | None, float | None, str | None

KV_CACHE_CONFIG: Surface = {
    "enable_block_reuse": (bool, True),
    "max_tokens": (OptInt, None),
    "max_attention_window": (list[int] | None, None),
    "sink_token_length": (OptInt, None),
    "free_gpu_memory_fraction": (OptFloat, 0.9),
    "host_cache_size": (OptInt, None),
    "onboard_blocks": (bool, True),
    "cross_kv_cache_fraction": (OptFloat, None),
    "secondary_offload_min_priority": (OptInt, None),
    "event_buffer_max_size": (int, 0),
    "attention_dp_events_gather_period_ms": (int, 5),
    "enable_partial_reuse": (bool, True),
    "copy_on_partial_reuse": (bool, True),
    "use_uvm": (bool, False),
    "max_gpu_total_bytes": (int, 0),
    "dtype": (str, "auto"),
    "mamba_ssm_cache_dtype": (Literal["auto", "float16", "bfloat16", "float32"], "auto"),
    "tokens_per_block": (int, 32),
}

CAPACITY_SCHEDULER_POLICIES = ("MAX_UTILIZATION", "GUARANTEED_NO_EVICT", "STATIC_BATCH")

SCHEDULER_CONFIG: Surface = {
    "capacity_scheduler_policy": (Any, "GUARANTEED_NO_EVICT"),
    "context_chunking_policy": (Any, None),
    "dynamic_batch_config": (Any, None),
}

PLUGIN_CONFIG: Surface = {
    "dtype": (str, "float16"),
    "gpt_attention_plugin": (OptStr, "auto"),
    "gemm_plugin": (OptStr, None),
    "gemm_swiglu_plugin": (OptStr, None),
    "low_latency_gemm_plugin": (OptStr, None),
    "nccl_plugin": (OptStr, "auto"),
    "context_fmha": (bool, True),
    "paged_kv_cache": (bool | None, None),
    "remove_input_padding": (bool, True),
    "norm_quant_fusion": (bool, False),
    "reduce_fusion": (bool, False),
    "user_buffer": (bool, False),
    "tokens_per_block": (int, 32),
    "use_paged_context_fmha": (bool, True),
    "use_fp8_context_fmha": (bool, True),
    "multiple_profiles": (bool, False),
    "manage_weights": (bool, False),
    "use_fused_mlp": (bool, True),
}

BUILD_CONFIG: Surface = {
    "max_input_len": (int, 1024),
    "max_seq_len": (OptInt, None),
    "opt_batch_size": (int, 8),
    "max_batch_size": (int, 2048),
    "max_beam_width": (int, 1),
    "max_num_tokens": (int, 8192),
    "opt_num_tokens": (OptInt, None),
    "max_prompt_embedding_table_size": (int, 0),
    "kv_cache_type": (Any, None),
    "gather_context_logits": (bool, False),
    "gather_generation_logits": (bool, False),
    "strongly_typed": (bool, True),
    "force_num_profiles": (OptInt, None),
    "profiling_verbosity": (str, "layer_names_only"),
    "enable_debug_output": (bool, False),
    "max_draft_len": (int, 0),
    "speculative_decoding_mode": (Any, "NONE"),
    "use_refit": (bool, False),
    "input_timing_cache": (OptStr, None),
    "output_timing_cache": (str, "model.cache"),
    "lora_config": (Any, "default_factory"),
    "weight_sparsity": (bool, False),
    "weight_streaming": (bool, False),
    "plugin_config": (Any, "default_factory"),
    "use_strip_plan": (bool, False),
    "max_encoder_input_len": (int, 1024),
    "dry_run": (bool, False),
    "visualize_network": (OptStr, None),
    "monitor_memory": (bool, False),
    "use_mrope": (bool, False),
}

QUANT_CONFIG: Surface = {
    "clamp_val": (list[float] | None, None),
    "exclude_modules": (list[str] | None, None),
    "group_size": (int, 128),
    "has_zero_point": (bool, False),
    "kv_cache_quant_algo": (Any, None),
    "mamba_ssm_cache_dtype": (OptStr, None),
    "pre_quant_scale": (bool, False),
    "quant_algo": (Any, None),
    "smoothquant_val": (float, 0.5),
    "use_meta_recipe": (bool, False),
}

CALIB_CONFIG: Surface = {
    "calib_batch_size": (int, 1),
    "calib_batches": (int, 512),
    "calib_dataset": (str, "cnn_dailymail"),
    "calib_max_seq_length": (int, 512),
    "device": (Literal["cuda", "cpu"], "cuda"),
    "random_seed": (int, 1234),
    "tokenizer_max_seq_length": (int, 2048),
}

SAMPLING_PARAMS: Surface = {
    "n": (int, 1),
    "best_of": (OptInt, None),
    "use_beam_search": (bool, False),
    "beam_search_diversity_rate": (OptFloat, None),
    "early_stopping": (OptInt, None),
    "max_tokens": (int, 32),
    "min_tokens": (OptInt, None),
    "end_id": (OptInt, None),
    "pad_id": (OptInt, None),
    "seed": (OptInt, None),
    "temperature": (OptFloat, None),
    "top_k": (OptInt, None),
    "top_p": (OptFloat, None),
    "top_p_decay": (OptFloat, None),
    "top_p_min": (OptFloat, None),
    "top_p_reset_ids": (OptInt, None),
    "min_p": (OptFloat, None),
    "repetition_penalty": (OptFloat, None),
    "presence_penalty": (OptFloat, None),
    "frequency_penalty": (OptFloat, None),
    "length_penalty": (OptFloat, None),
    "no_repeat_ngram_size": (OptInt, None),
    "stop": (Any, None),
    "stop_token_ids": (list[int] | None, None),
    "include_stop_str_in_output": (bool, False),
    "bad": (Any, None),
    "bad_token_ids": (list[int] | None, None),
    "logits_processor": (Any, None),
    "apply_batched_logits_processor": (bool, False),
    "guided_decoding": (Any, None),
    "embedding_bias": (Any, None),
    "lookahead_config": (Any, None),
    "ignore_eos": (bool, False),
    "detokenize": (bool, True),
    "add_special_tokens": (bool, True),
    "truncate_prompt_tokens": (OptInt, None),
    "skip_special_tokens": (bool, True),
    "spaces_between_special_tokens": (bool, True),
    "logprobs": (OptInt, None),
    "prompt_logprobs": (OptInt, None),
    "return_context_logits": (bool, False),
    "return_generation_logits": (bool, False),
    "exclude_input_from_output": (bool, True),
    "return_encoder_output": (bool, False),
    "additional_model_outputs": (list[str] | None, None),
    "return_perf_metrics": (bool, False),
    "beam_width_array": (list[int] | None, None),
}

LLM: Surface = {
    # What only the engine class takes.
    "enable_tqdm": (bool, False),
    "workspace": (OptStr, None),
    "enable_build_cache": (Any, False),
    "extended_runtime_perf_knob_config": (Any, None),
    "calib_config": (Any, None),
    "quant_config": (Any, None),
    "embedding_parallel_mode": (str, "SHARDING_ALONG_VOCAB"),
    "fast_build": (bool, False),
    "build_config": (Any, None),
    "enable_prompt_adapter": (bool, False),
    "max_prompt_adapter_token": (int, 0),
    "batching_type": (Any, None),
    "normalize_log_probs": (bool, False),
    # What both classes take.
    "model": (str, ...),
    "tokenizer": (Any, None),
    "tokenizer_mode": (Literal["auto", "slow"], "auto"),
    "skip_tokenizer_init": (bool, False),
    "trust_remote_code": (bool, False),
    "tensor_parallel_size": (int, 1),
    "dtype": (str, "auto"),
    "pipeline_parallel_size": (int, 1),
    "kv_cache_config": (Any, None),
    "enable_chunked_prefill": (bool, False),
    "guided_decoding_backend": (Literal["xgrammar", "llguidance"] | None, None),
    "batched_logits_processor": (Any, None),
    "iter_stats_max_iterations": (OptInt, None),
    "request_stats_max_iterations": (OptInt, None),
    "scheduler_config": (Any, None),
    "max_batch_size": (OptInt, None),
    "max_input_len": (OptInt, None),
    "max_seq_len": (OptInt, None),
    "max_beam_width": (OptInt, None),
    "max_num_tokens": (OptInt, None),
    "gather_generation_logits": (bool, False),
    "num_postprocess_workers": (int, 0),
    "return_perf_metrics": (bool, False),
}

REQUEST_OUTPUT = frozenset(
    {
        *("result", "aresult", "abort", "aborted"),
        *("request_id", "prompt", "prompt_token_ids", "outputs", "context_logits", "finished"),
    }
)

COMPLETION_OUTPUT: Surface = {
    "index": (int, ...),
    "text": (str, ""),
    "token_ids": (list[int], []),
    "cumulative_logprob": (OptFloat, None),
    "logprobs": (list, []),
    "prompt_logprobs": (list, []),
    "finish_reason": (OptStr, None),
    "stop_reason": (Any, None),
    "generation_logits": (Any, None),
    "disaggregated_params": (Any, None),
}

METHODS: dict[str, dict[str, tuple[str, ...]]] = {
    "LLM": {
        "generate_async": (
            *("inputs", "sampling_params", "lora_request", "prompt_adapter_request", "streaming"),
            *("kv_cache_retention_config", "disaggregated_params", "scheduling_params", "cache_salt"),
        ),
        "get_stats": ("timeout",),
        "shutdown": (),
        "save": ("engine_dir",),
    },
    "RequestOutput": {"result": ("timeout",), "aresult": (), "abort": (), "aborted": ()},
}
"""The arguments of methods."""

IMPORTS = frozenset(
    {
        *("tensorrt_llm.BuildConfig", "tensorrt_llm.SamplingParams", "tensorrt_llm._tensorrt_engine.LLM"),
        *("tensorrt_llm.llmapi.CalibConfig", "tensorrt_llm.llmapi.QuantConfig", "tensorrt_llm.llmapi.QuantAlgo"),
        *("tensorrt_llm.llmapi.KvCacheConfig", "tensorrt_llm.llmapi.SchedulerConfig"),
        *("tensorrt_llm.llmapi.CapacitySchedulerPolicy", "tensorrt_llm.llmapi.RequestError"),
    }
)

QUANT_ALGOS = ("FP8", "W4A16_AWQ")
