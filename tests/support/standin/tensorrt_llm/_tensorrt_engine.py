"""The class that runs engines: its arguments, how it gives out numbers, how it answers and how it fails."""

import itertools
import json
import os
import queue
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Self

import torch
from standin_model import StandInModel, behaviour

from tensorrt_llm import _surface as surface
from tensorrt_llm._classes import CompletionOutput, RequestError, SamplingParams
from tensorrt_llm._strict import model

_BLOCK = 32
_Args = model("TrtLlmArgs", surface.LLM)


class RequestOutput:
    """A request under way, and in the end its answer."""

    __slots__ = ("_aborted", "_executor", "_output", "_params", "_queue", "prompt_token_ids", "request_id")

    def __init__(self, executor: "_Executor", number: int, ids: list[int], params: SamplingParams) -> None:
        self.request_id = number
        self.prompt_token_ids = ids
        self._params = params
        self._executor = executor
        self._queue: queue.Queue[Any] = queue.Queue()
        self._output: CompletionOutput | None = None
        self._aborted = False

    @property
    def prompt(self) -> None:
        """There was no text."""
        return

    @property
    def context_logits(self) -> None:
        """They were not asked for."""
        return

    @property
    def outputs(self) -> list[Any]:
        """The answer; an empty one until it is there."""
        return [self._output or CompletionOutput(index=0)]

    @property
    def finished(self) -> bool:
        """Whether the answer is there."""
        return self._output is not None

    def result(self, timeout: float | None = None) -> "RequestOutput":
        """Wait for the answer. `queue.Empty` if it is late, and the request goes on."""
        if self._output is None:
            answer = self._queue.get(timeout=timeout)
            if isinstance(answer, RequestError):
                raise answer
            if isinstance(answer, Exception):
                self._executor.shutdown()
                raise answer
            self._output = answer
        return self

    def abort(self) -> None:
        """Call it off."""
        self._aborted = True
        self._executor.abort(self)

    def aborted(self) -> bool:
        """Whether it was called off."""
        return self._aborted


class _Executor:
    """One pretended device: a thread that takes as many requests as a step holds, and answers them."""

    def __init__(self, folder: Path, args: Any) -> None:
        self._model = StandInModel(folder)
        self._args = args
        self._limits = json.loads((folder / "config.json").read_text())["build_config"]
        self._last_id = 0
        self._results: dict[int, RequestOutput] = {}
        self._waiting: queue.Queue[Any] = queue.Queue()
        self._down = False
        self._broken = False
        self._served = 0
        self._cache: set[int] = set()
        self.stats: queue.Queue[dict[str, Any]] = queue.Queue()
        self.counts = {"requests": 0, "duplicate_ids": 0, "aborted": 0, "in_flight_most": 0, "reused": 0, "computed": 0}
        self.counts["looks_before"] = 0
        threading.Thread(target=self._work, name="standin-device", daemon=True).start()

    def _get_next_client_id(self) -> int:
        # As in the real one: no lock, and whoever comes between gets the same number.
        last = self._last_id
        time.sleep(0.00001)
        self._last_id = last + 1
        return self._last_id

    def submit(self, ids: list[int], params: SamplingParams, salt: str | None) -> RequestOutput:
        if self._down:
            raise RuntimeError("LLM is shutting down")
        request = RequestOutput(self, self._get_next_client_id(), ids, params)
        self.counts["requests"] += 1
        self.counts["duplicate_ids"] += request.request_id in self._results
        self._results[request.request_id] = request
        self.counts["in_flight_most"] = max(self.counts["in_flight_most"], len(self._results))
        self._waiting.put((request.request_id, salt))
        return request

    def abort(self, request: RequestOutput) -> None:
        if self._results.pop(request.request_id, None) is not None:
            self.counts["aborted"] += 1
            request._queue.put(CompletionOutput(index=0, finish_reason="cancelled"))

    def shutdown(self) -> None:
        self._down = True
        self._waiting.put(None)
        self._report()

    def _work(self) -> None:
        while (first := self._waiting.get()) is not None:
            if behaviour().get("hang_after") is not None and self._served >= behaviour()["hang_after"]:
                continue  # taken, and never answered
            step, tokens = [first], self._tokens(first)
            while len(step) < self._limits["max_batch_size"] and tokens < self._limits["max_num_tokens"]:
                try:
                    following = self._waiting.get_nowait()
                except queue.Empty:
                    break
                if following is None:
                    return
                step.append(following)
                tokens += self._tokens(following)
            if rate := behaviour().get("tokens_per_second"):
                time.sleep(tokens / rate)
            if len(step) > behaviour().get("room_for", 1 << 30):
                self._have_no_memory(step)
                continue
            self._forward(step)

    def _forward(self, step: list[tuple[int, str | None]]) -> None:
        if not self._broken:
            for number, salt in step:
                self._serve(number, salt)
            self._tell(len(step))
            self._broken = self._breaks()
        if self._broken:
            self._fail_forward()

    def _tokens(self, waiting: tuple[int, str | None]) -> int:
        request = self._results.get(waiting[0])
        return len(request.prompt_token_ids) if request else 0

    def _have_no_memory(self, step: list[tuple[int, str | None]]) -> None:
        """Fail a step as CUDA does when it has nothing to give."""
        words = "[TensorRT-LLM][ERROR] CUDA runtime error in cudaMallocAsync(ptr, n, mCudaStream->get()): out of memory"
        kind = RuntimeError if behaviour().get("dies_of_it") else RequestError
        for number, _ in step:
            if (request := self._results.pop(number, None)) is not None:
                request._queue.put(kind(words))

    def _serve(self, number: int, salt: str | None) -> None:
        request = self._results.get(number)
        if request is None:
            return  # aborted, or overwritten by a double
        self._served += 1
        late, refused = behaviour().get("late_every"), behaviour().get("refuse_every")
        beyond = behaviour().get("late_beyond", 1 << 30)
        if (late and self._served % late == 0) or len(request.prompt_token_ids) > beyond:
            return  # still in flight, until somebody calls it off
        self._results.pop(number, None)
        if refused and self._served % refused == 0:
            request._queue.put(RequestError(f"request {number} was refused"))
            return
        self._remember(request.prompt_token_ids, salt)
        request._queue.put(self._answer(request))

    def _answer(self, request: RequestOutput) -> Any:
        params, ids = request._params, request.prompt_token_ids
        if len(ids) + 1 > self._limits["max_seq_len"]:
            return RequestError(f"prompt of {len(ids)} tokens exceeds max_seq_len")
        odds = self._model.log_odds(ids) + behaviour().get("shift", 0.0)
        if len(ids) > behaviour().get("wrong_beyond", 1 << 30):
            odds = -odds - 3.0
        if params.max_tokens == 1:
            token = self._model.a if odds > 0 else self._model.b
            logits = None
            if params.return_generation_logits:
                if not self._args.gather_generation_logits:
                    return RequestError("gather_generation_logits was not asked for")
                rows = [self._model.row(odds)]
                if behaviour().get("would_end"):
                    rows[0][params.end_id] = max(rows[0]) + 1.0
                    if not params.ignore_eos:
                        return CompletionOutput(index=0, finish_reason="stop", generation_logits=torch.Tensor([]))
                logits = torch.Tensor([rows] if behaviour().get("odd_shape") else rows)
            return CompletionOutput(index=0, token_ids=[token], finish_reason="length", generation_logits=logits)
        text = f"The answer is clear. [[{'A' if odds > 0 else 'B'}]]"
        written = self._model.tokenizer.encode(text, add_special_tokens=False).ids[: params.max_tokens]
        return CompletionOutput(index=0, token_ids=written, finish_reason="stop")

    def _remember(self, ids: list[int], salt: str | None) -> None:
        """Count the blocks that were computed before for the same salt."""
        beginning = hash(salt)
        for start in range(0, len(ids) - _BLOCK + 1, _BLOCK):
            beginning = hash((beginning, tuple(ids[start : start + _BLOCK])))
            known = beginning in self._cache and self._args.kv_cache_config.enable_block_reuse
            self.counts["reused" if known else "computed"] += 1
            self._cache.add(beginning)

    def _tell(self, active: int) -> None:
        cache = {"reusedBlocks": self.counts["reused"], "missedBlocks": self.counts["computed"], "maxNumBlocks": 4096}
        self.stats.put({"iter": self._served, "numActiveRequests": active, "gpuMemUsage": 2**30, "kvCacheStats": cache})

    def _breaks(self) -> bool:
        """Whether the device breaks now."""
        after, marker = behaviour().get("die_after"), behaviour().get("die_once")
        if after is None or self._served < after:
            return False
        if marker is not None:
            if Path(marker).exists():
                return False
            Path(marker).touch()
        self._report()
        return True

    def _fail_forward(self) -> None:
        """Fail as on a broken device: the executor goes on, and whatever it has in flight is told of the error."""
        words = "Encountered an error in forwardAsync function: an illegal memory access was encountered"
        for number in list(self._results):
            if (request := self._results.pop(number, None)) is not None:
                request._queue.put(RequestError(words))

    def _report(self) -> None:
        """Leave the counts where a test asked for them."""
        if folder := behaviour().get("report"):
            counts = self.counts | {"stats_left": self.stats.qsize()}
            left = Path(folder) / f"{os.getpid()}.json"
            left.with_suffix(".new").write_text(json.dumps(counts))
            left.with_suffix(".new").rename(left)  # whoever waits for it finds it whole


class LLM:
    """Builds an engine from a checkpoint, or loads one."""

    def __init__(self, model: str, tokenizer: Any = None, **given: Any) -> None:
        self._args = _Args(model=model, tokenizer=tokenizer, **given)
        folder = Path(model)
        config = json.loads((folder / "config.json").read_text())
        self._scratch = None
        if "build_config" not in config:
            self._scratch = tempfile.TemporaryDirectory(dir=self._args.workspace)
            try:
                folder = self._build(folder, config, Path(self._scratch.name) / "tmp.engine")
            except Exception:
                self._scratch.cleanup()
                raise
        elif not (folder / "rank0.engine").stat().st_size:
            raise RuntimeError("the engine cannot be deserialized")
        elif behaviour().get("no_room_to_load"):
            raise RuntimeError("CUDA runtime error in cudaMalloc: out of memory")
        self._engine_dir = folder
        self._executor: _Executor | None = _Executor(folder, self._args)

    def _build(self, checkpoint: Path, config: dict[str, Any], target: Path) -> Path:
        build = self._args.build_config
        if behaviour().get("build_fails"):
            raise RuntimeError("out of memory")
        if self._args.calib_config is not None:
            rows = (Path(self._args.calib_config.calib_dataset) / "train.jsonl").read_text().splitlines()
            texts = [json.loads(row)["text"] for row in rows]
            assert len(texts) >= self._args.calib_config.calib_batches
        target.mkdir()
        limits = {name: getattr(build, name) for name in ("max_seq_len", "max_batch_size", "max_num_tokens")}
        written = {"version": "1.2.1", "pretrained_config": config, "build_config": limits}
        (target / "config.json").write_text(json.dumps(written))
        quantised = str(self._args.quant_config and self._args.quant_config.quant_algo)
        (target / "rank0.engine").write_bytes(json.dumps({"dtype": self._args.dtype, "quant": quantised}).encode() * 99)
        shutil.copy(checkpoint / "tokenizer.json", target)
        return target

    def save(self, engine_dir: str) -> None:
        """Copy the engine."""
        shutil.copytree(self._engine_dir, engine_dir, dirs_exist_ok=True)

    def generate_async(
        self,
        inputs: Any,
        sampling_params: SamplingParams | None = None,
        lora_request: Any = None,
        prompt_adapter_request: Any = None,
        streaming: bool = False,
        kv_cache_retention_config: Any = None,
        disaggregated_params: Any = None,
        scheduling_params: Any = None,
        cache_salt: str | None = None,
    ) -> RequestOutput:
        """Submit one prompt."""
        if self._executor is None:
            raise RuntimeError("LLM is shutting down")
        if not isinstance(inputs, list) or not all(isinstance(each, int) for each in itertools.islice(inputs, 3)):
            raise TypeError(f"The inputs must be type str or list of int, but got {type(inputs)}")
        if not isinstance(sampling_params, SamplingParams):
            raise TypeError("sampling_params must be of type SamplingParams")
        if sampling_params.end_id is None:
            raise ValueError("tokenizer is required to reset end_id if it is None")
        sampling_params._stream_interval = sampling_params._stream_interval or 1
        limits = json.loads((self._engine_dir / "config.json").read_text())["build_config"]
        if not self._args.enable_chunked_prefill and len(inputs) + sampling_params.max_tokens > limits["max_seq_len"]:
            raise ValueError("prompt and max_tokens should not exceed max_seq_len")
        return self._executor.submit(inputs, sampling_params, cache_salt)

    def get_stats(self, timeout: float | None = 2) -> list[dict[str, Any]]:
        """Take what there is off the queue, until nothing comes for as long as `timeout`."""
        if self._executor is not None and not self._executor.counts["requests"]:
            self._executor.counts["looks_before"] += 1  # the real one prints a line each time
            return []
        taken = []
        while self._executor is not None:
            try:
                taken.append(self._executor.stats.get(timeout=timeout))
            except queue.Empty:
                break
        return taken

    def shutdown(self) -> None:
        """End the executor."""
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown()
        if self._scratch is not None:
            self._scratch.cleanup()
        if behaviour().get("break_at_end"):
            raise RuntimeError("the executor breaks as it ends")

    def __enter__(self) -> Self:
        """For the length of a block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Shut down."""
        self.shutdown()
