"""A built engine in this process.

Prompts go in as token ids, and of what comes back the logits of one token are read; nothing is decoded but what the
profile that writes asks for. Requests are submitted under a lock, because TensorRT-LLM gives out their numbers without
one, and waited for outside it. A request that is refused or late fails its step; any other failure means that the
executor has shut itself down or the device is broken, and then the process has to end, so that the leases bring the
work back.
"""

import math
import queue
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from infra.engine_folder import build_of, check_files, is_verified, read_manifest
from schemas.engine import Manifest
from schemas.problems import ENGINE_FOLDER, Problem
from worker.engines.base import (
    EngineCard,
    EngineError,
    EngineGoneError,
    EngineOutOfMemoryError,
    Generation,
    Prompt,
    Score,
    check_length,
)
from worker.engines.naming import is_critic
from worker.engines.tensorrt_llm.device_time import DeviceTime
from worker.engines.tensorrt_llm.gpu import Gpu, gpu_at_hand, keep_to_one_process
from worker.engines.tensorrt_llm.statistics import Statistics
from worker.engines.vocabulary import Vocabulary

log = structlog.get_logger()

SECONDS_PER_WRITTEN_TOKEN = 0.1
"""For a deadline: writing is ten times faster than this with nothing else going on."""
_DRAIN_EVERY_SECONDS = 0.2
_DRAIN_SECONDS = 0.02  # TensorRT-LLM adds to the queue every 0.2 s; a wait longer than that would never end
_GLANCE_SECONDS = 0.001  # to see whether an answer has arrived
_LOGITS_DIMENSIONS = 2
_FORWARD_FAILED = "Encountered an error in forward"  # as TensorRT-LLM tells requests that its step itself has failed


@dataclass(slots=True)
class _Request:
    """A prompt in TensorRT-LLM's hands."""

    future: Any
    tokens: int
    reading: float


class TensorRtLlmEngine:
    """A built engine on the one GPU at hand. Thread-safe, batching inside.

    Args:
        folder: what `nightcourt engine build` made.
        prompt: hash of the prompt profile that it is asked with: the one that it was built for, or it is refused.
        memory_share: how much of the memory that the weights leave free becomes KV cache, 0 to 1.
        reuse: whether prompts of one salt that begin alike are computed once.
        timeout_seconds: how long one call may take.

    Raises:
        Problem: the folder, the GPU and TensorRT-LLM do not fit each other; the detail says what to do.
    """

    def __init__(
        self,
        folder: Path,
        *,
        prompt: str,
        memory_share: float = 0.85,
        reuse: bool = True,
        timeout_seconds: float = 120.0,
    ) -> None:
        folder = folder.absolute()
        self.manifest = read_manifest(folder)
        check_files(folder, self.manifest, contents=False)
        self._vocabulary = Vocabulary(folder)
        self.gpu = gpu_at_hand()
        _check(self.manifest, self.gpu, prompt=prompt, tokenizer=self._vocabulary.fingerprint)
        self._card = _card(folder, self.manifest, self._vocabulary)
        self._timeout = timeout_seconds
        self._submission = threading.Lock()
        self._device_time = DeviceTime()
        self._answered_at = time.monotonic()
        self._closing = threading.Event()
        self._failed = False
        self._asked = False
        keep_to_one_process()
        import torch  # noqa: PLC0415 - on GPU hosts alone
        from tensorrt_llm import SamplingParams  # noqa: PLC0415
        from tensorrt_llm._tensorrt_engine import LLM  # noqa: PLC0415
        from tensorrt_llm.llmapi import (  # noqa: PLC0415
            CapacitySchedulerPolicy,
            KvCacheConfig,
            RequestError,
            SchedulerConfig,
        )

        # Else each slot's thread has a pool of threads begun for it, as many as there are cores, to add up one row.
        torch.set_num_threads(1)
        self._sampling_params = SamplingParams
        self._request_error = RequestError
        try:
            self._llm = LLM(
                model=str(folder),
                skip_tokenizer_init=True,
                gather_generation_logits=True,
                enable_chunked_prefill=True,
                max_batch_size=self.manifest.limits.max_batch_size,
                max_num_tokens=self.manifest.limits.max_num_tokens,
                kv_cache_config=KvCacheConfig(enable_block_reuse=reuse, free_gpu_memory_fraction=memory_share),
                # A prompt is let in once all of it fits. With one token to write, that costs nothing.
                scheduler_config=SchedulerConfig(capacity_scheduler_policy=CapacitySchedulerPolicy.GUARANTEED_NO_EVICT),
            )
        except Exception as error:
            raise Problem(ENGINE_FOLDER, _not_loaded(folder, error)) from error
        self.statistics = Statistics()
        self._drain = threading.Thread(target=self._keep_draining, name="engine-statistics", daemon=True)
        self._drain.start()

    @property
    def card(self) -> EngineCard:
        """Who this is and what it can take."""
        return self._card

    def encode(self, prompt: Prompt) -> list[int]:
        """Apply the model's chat template and tokenise, with control tokens from the template alone.

        Raises:
            PromptTooLongError: a text is too long for this engine, however it would be tokenised.
            EngineError: the template does not take this conversation, or a text is not valid Unicode.
        """
        return self._vocabulary.encode(prompt, self._card.max_prompt_tokens)

    def score(self, prompts: Sequence[Sequence[int]], *, salt: str = "") -> list[Score]:
        """Read the verdict token's odds after each prompt. All prompts of a call are in flight together."""
        return self._scores(prompts, salt, time.monotonic() + self._timeout)

    def _scores(self, prompts: Sequence[Sequence[int]], salt: str, deadline: float) -> list[Score]:
        # Made anew for each call, because TensorRT-LLM writes into it. With the ids given, it needs no tokenizer.
        params = self._sampling_params(
            max_tokens=1,
            top_k=1,
            end_id=self._vocabulary.end,
            pad_id=self._vocabulary.end,
            detokenize=False,
            # A token that ends the turn is not counted, and where none is counted there are no logits.
            ignore_eos=True,
            return_generation_logits=True,
        )
        return [self._opinion(*each) for each in self._run(prompts, params, salt, self._timeout, deadline)]

    def generate(self, prompt: Sequence[int], max_tokens: int, *, salt: str = "") -> Generation:
        """Let the model write greedily until its turn ends, `max_tokens` are written or the context is full.

        The verdict's odds come from a second prompt, with what was written up to the verdict: nearly all of it is still
        in the cache, and the logits of every token written would be a gigabyte. Both have one deadline.
        """
        room = min(max_tokens, self.manifest.limits.max_seq_len - len(prompt))
        params = self._sampling_params(
            max_tokens=room,
            top_k=1,
            end_id=self._vocabulary.end,
            pad_id=self._vocabulary.end,
            detokenize=False,
        )
        timeout = self._timeout + room * SECONDS_PER_WRITTEN_TOKEN
        deadline = time.monotonic() + timeout
        [(output, seconds)] = self._run([prompt], params, salt, timeout, deadline)
        written = [int(token) for token in output.token_ids]
        until = self._vocabulary.up_to_opening(written)
        verdict = None
        if until is not None and len(prompt) + len(until) <= self._card.max_prompt_tokens:
            [verdict] = self._scores([[*prompt, *until]], salt, deadline)
        return Generation(
            text=self._vocabulary.decode(written),
            verdict=verdict,
            generated_tokens=len(written),
            cached_tokens=0,
            seconds=seconds + (verdict.seconds if verdict else 0.0),
        )

    def health(self) -> bool:
        """Whether the engine would take a prompt now."""
        return not (self._failed or self._closing.is_set())

    def close(self) -> None:
        """Shut the executor down and give the GPU's memory back. May be called twice."""
        self._closing.set()
        self._drain.join(timeout=5)
        self._llm.shutdown()

    def _run(
        self, prompts: Sequence[Sequence[int]], params: Any, salt: str, timeout: float, deadline: float
    ) -> list[tuple[Any, float]]:
        """Put prompts in flight together; returns of each its output and its share of the GPU's time, in order."""
        for prompt in prompts:
            check_length(prompt, self._card)
        flying: deque[_Request] = deque()
        answers = []
        try:
            for prompt in prompts:
                flying.append(self._submit(prompt, params, salt))
            while flying:
                output = self._await(flying, deadline, timeout)
                request = flying.popleft()
                answers.append((output, self._device_time.leave(request.tokens, request.reading)))
        except queue.Empty:
            raise EngineError("the step was not done in time; its prompts were called off") from None
        except EngineError:
            raise
        except Exception as error:
            raise self._failure(error) from error
        finally:
            self._call_off(flying)
        return answers

    def _failure(self, error: Exception) -> EngineError:
        """Tell what an error of the library means. What it says is left out: nobody vouches for what it quotes."""
        if _is_out_of_memory(error):
            # Where the executor did not survive it, the next submission is told so.
            return EngineOutOfMemoryError("the GPU had too little memory for the step")
        # An error of the device reaches every request as if that had been refused, and each one after it as well.
        if isinstance(error, self._request_error) and _FORWARD_FAILED not in str(error):
            return EngineError("TensorRT-LLM refused the prompt")
        self._failed = True
        return EngineGoneError(f"TensorRT-LLM's executor has failed ({type(error).__name__})")

    def _submit(self, prompt: Sequence[int], params: Any, salt: str) -> _Request:
        if not self.health():
            raise EngineGoneError("the engine has failed, or is closed")
        with self._submission:
            future = self._llm.generate_async(list(prompt), params, streaming=False, cache_salt=salt or None)
            self._asked = True
        return _Request(future, len(prompt), self._device_time.enter(len(prompt)))

    def _await(self, flying: Sequence[_Request], deadline: float, timeout: float) -> Any:
        """Wait for the output of the first of some requests.

        Raises:
            queue.Empty: it was not there in time, and others were.
            EngineGoneError: nothing at all was there for `timeout`.
        """
        first, *others = flying
        try:
            first.future.result(timeout=max(_GLANCE_SECONDS, deadline - time.monotonic()))
        except queue.Empty:
            # Answers that wait behind a late one were not seen yet.
            if time.monotonic() - self._answered_at < timeout or any(map(_is_there, others)):
                raise
            self._failed = True
            raise EngineGoneError(f"TensorRT-LLM has answered nothing for {timeout:.0f} s") from None
        self._answered_at = time.monotonic()
        return first.future.outputs[0]

    def _call_off(self, requests: Iterable[_Request]) -> None:
        """Abort what nobody waits for any more: it would go on taking memory and time."""
        for request in requests:
            self._device_time.leave(request.tokens, request.reading)
            if not self._failed:
                try:
                    request.future.abort()
                except Exception as error:  # noqa: BLE001 - whatever it is, the next submission meets it too
                    log.warning("abort_failed", error=type(error).__name__)

    def _opinion(self, output: Any, seconds: float) -> Score:
        logits = output.generation_logits
        tokens = self._card.verdict_tokens
        if logits is None:
            raise EngineError(f"TensorRT-LLM gave no logits; the request ended as {output.finish_reason}")
        shape = tuple(logits.shape)
        if len(shape) != _LOGITS_DIMENSIONS or shape[0] != 1 or shape[1] <= max(tokens.a, tokens.b):
            self._failed = True
            raise EngineGoneError(f"TensorRT-LLM gave logits of shape {shape} instead of (1, vocabulary)")
        row = logits[0].float()
        for_a, for_b, for_all = float(row[tokens.a]), float(row[tokens.b]), float(row.logsumexp(-1))
        return Score(
            log_odds=for_a - for_b,
            mass=min(1.0, math.exp(for_a - for_all) + math.exp(for_b - for_all)),
            # TensorRT-LLM tells of reuse for all requests together (`statistics`), and not for one.
            cached_tokens=0,
            seconds=seconds,
        )

    def _keep_draining(self) -> None:
        """Take statistics off TensorRT-LLM's queue, which has no end and would fill the memory."""
        told = False
        while not self._failed and not self._closing.wait(_DRAIN_EVERY_SECONDS):
            if not self._asked:
                continue  # before the first prompt TensorRT-LLM has none, and prints a line each time to say so
            try:
                self.statistics.add(self._llm.get_stats(timeout=_DRAIN_SECONDS))
            except Exception as error:  # noqa: BLE001 - that the engine is gone is told to who waits for an answer
                if not told:
                    log.warning("engine_statistics_failed", error=type(error).__name__)
                told = True
            self.statistics.log_now_and_then()


def _is_there(request: _Request) -> bool:
    """Whether a request's output has arrived."""
    try:
        request.future.result(timeout=_GLANCE_SECONDS)
    except queue.Empty:
        return False
    return True


def _check(manifest: Manifest, gpu: Gpu, *, prompt: str, tokenizer: str) -> None:
    """See that an engine fits where it is to run.

    Raises:
        Problem: it does not; the detail names both sides.
    """
    again = "Build it anew with `nightcourt engine build`, here and into another folder."
    if manifest.gpu_architecture != gpu.architecture:
        raise Problem(
            ENGINE_FOLDER,
            f"The engine was built on a {manifest.gpu}, for GPUs of architecture {manifest.gpu_architecture}; this one "
            f"({gpu.name}) has {gpu.architecture}, and engines do not run on another. {again}",
        )
    if manifest.tensorrt_llm != gpu.tensorrt_llm:
        raise Problem(
            ENGINE_FOLDER,
            f"The engine was built with TensorRT-LLM {manifest.tensorrt_llm}, and {gpu.tensorrt_llm} is here. {again}",
        )
    if manifest.prompt != prompt:
        raise Problem(
            ENGINE_FOLDER,
            "The engine was calibrated and verified with another prompt than this version of nightcourt asks with. "
            f"{again}",
        )
    if manifest.tokenizer != tokenizer:
        raise Problem(
            ENGINE_FOLDER, f"Tokenizer and chat template are not those that the engine was built with. {again}"
        )


def _not_loaded(folder: Path, error: Exception) -> str:
    """Say why TensorRT-LLM does not load an engine. No prompt was put to it yet that its words could quote."""
    said = f"TensorRT-LLM could not load {folder} ({type(error).__name__}: {str(error)[:500]})."
    if _is_out_of_memory(error):
        return f"{said} Look at `nvidia-smi` for what else is on the GPU, or lower NIGHTCOURT_ENGINE_MEMORY_SHARE."
    return f"{said} Its own lines above say more."


def _is_out_of_memory(error: Exception) -> bool:
    """Whether CUDA had no memory to give: PyTorch has a class of its own for that, and TensorRT-LLM the words alone."""
    return type(error).__name__ == "OutOfMemoryError" or "out of memory" in str(error).lower()


def _card(folder: Path, manifest: Manifest, vocabulary: Vocabulary) -> EngineCard:
    caveats = []
    if not is_critic(manifest.model):
        caveats.append(f"{manifest.model} is not Skywork-Critic: nothing is known of how well it judges.")
    if not is_verified(folder, manifest):
        caveats.append(
            "This engine has not passed `nightcourt engine verify`: whether it says what the model says is open."
        )
    return EngineCard(
        engine="tensorrt_llm",
        engine_build=f"{manifest.tensorrt_llm}, sm{manifest.gpu_architecture}, build {build_of(manifest)}",
        model=manifest.model,
        weights=manifest.weights,
        quantisation=manifest.quantisation,
        verdict_tokens=vocabulary.verdict_tokens,
        max_prompt_tokens=manifest.limits.max_input_len,
        step_tokens=manifest.limits.max_num_tokens,
        steps_ahead=2,
        caveat=" ".join(caveats) or None,
    )
