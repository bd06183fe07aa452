"""Opens the engine that the settings name, and imports no other one's libraries."""

from collections.abc import Callable, Sequence

from infra.local import LocalStackError
from infra.local.model import adapter_over, embedded_model
from infra.settings import Settings
from schemas.problems import MISSING_EXTRA, Problem
from worker import prompts
from worker.engines.base import Engine
from worker.engines.simulated import SimulatedEngine, call_log, faults


def open_engine(settings: Settings) -> Engine:
    """Open the engine that the settings name. Loading a model takes as long as it takes.

    Raises:
        ValueError: the model cannot be used as a judge; the message says why.
        Problem: the engine folder, the GPU and the libraries do not fit each other, or something is not installed.
    """
    try:
        return _open(settings)
    except ModuleNotFoundError as error:
        raise Problem(
            MISSING_EXTRA, f"The engine {settings.engine} needs {error.name}; docs/engines.md says what brings it."
        ) from None
    except LocalStackError as error:
        raise Problem(MISSING_EXTRA, f"{error}.") from None


def _open(settings: Settings) -> Engine:
    if settings.engine == "simulated":
        return SimulatedEngine(
            tokens_per_second=settings.simulated_tokens_per_second,
            max_prompt_tokens=settings.context_tokens,
            on_score=_simulated_hook(settings),
            strengths=settings.simulated_strengths,
        )
    if settings.engine == "openai_server":
        from worker.engines.openai_server import OpenAIServerEngine  # noqa: PLC0415 - no other engine needs a client

        return OpenAIServerEngine(
            settings.engine_url or "",
            key=settings.engine_key.get_secret_value() if settings.engine_key else None,
            model=settings.engine_model,
            tokenizer=settings.engine_tokenizer,
            context_tokens=settings.context_tokens,
            requests=settings.engine_requests,
            request_seconds=settings.engine_request_seconds,
            patience_seconds=settings.engine_patience_seconds,
            ca_file=settings.engine_ca_file,
        )
    if settings.engine == "tensorrt_llm" and settings.engine_folder is not None:
        from worker.engines.tensorrt_llm.engine import TensorRtLlmEngine  # noqa: PLC0415 - on GPU hosts alone

        return TensorRtLlmEngine(
            settings.engine_folder,
            prompt=prompts.PROFILES["card"].sha256,
            memory_share=settings.engine_memory_share,
            reuse=settings.engine_reuse,
            timeout_seconds=settings.engine_timeout_seconds,
        )
    # Imported here, so that a worker with another engine needs no CPU runtime.
    from worker.engines.llama_cpp import LlamaCppEngine  # noqa: PLC0415

    model = settings.model or embedded_model()
    return LlamaCppEngine(
        model,
        adapter=settings.adapter or adapter_over(model),
        threads=settings.threads,
        context_tokens=settings.context_tokens,
    )


def _simulated_hook(settings: Settings) -> Callable[[Sequence[Sequence[int]]], None] | None:
    hooks = [] if settings.simulated_call_log is None else [call_log(settings.simulated_call_log)]
    marks = {"poison": settings.simulated_poison, "hang": settings.simulated_hang, "fail": settings.simulated_fail}
    if any(marks.values()):
        hooks.append(faults(**marks))

    def call_all(prompts: Sequence[Sequence[int]]) -> None:
        for hook in hooks:
            hook(prompts)

    return call_all if hooks else None
