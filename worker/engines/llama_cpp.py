"""The engine for machines without a GPU: llama.cpp inside this process, from a wheel, on any GGUF model.

A model may wear a low-rank adapter, such as the pocket critic over the embedded model. The adapter says which model it
was made over, and is refused over another; what the two are together is one set of weights with one fingerprint.

The wheel carries llama.cpp's server. It is made to listen on a Unix socket in a private folder, for what it
offers over HTTP alone (its tokenizer); no port is opened. Prompts go in by a direct call, as token ids.

What llama.cpp writes to standard error is kept to its own errors, and these never quote a prompt: the one
thing that would be quoted, text that is not valid JSON or UTF-8, is refused here before it gets there.
"""

import json
import math
import re
import socket
import tempfile
import threading
from collections.abc import Mapping, Sequence
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import xllamacpp

from worker.engines.adapters import Adapter, fingerprint, read_adapter
from worker.engines.base import (
    LEAST_LOGPROB,
    VERDICT_OPENING,
    EngineCard,
    EngineError,
    EngineGoneError,
    Generation,
    Prompt,
    Score,
    check_length,
)
from worker.engines.chat import ChatTemplate, ChatTemplateError, encode, verdict_tokens
from worker.engines.gguf import GgufHeader, read_gguf
from worker.engines.lengths import LeastTokens
from worker.engines.naming import is_critic, plain

STEP_TOKENS = 1024
"""One prompt at a time goes through, so a step is kept short: about one comparison in both orders."""

_TOP = 500  # alternatives asked for at first; "A" and "B" are nearly always among them
_ERRORS_ONLY = 1  # llama.cpp's log level
_LONGEST_SOCKET_PATH = 100  # the kernel takes 107 bytes
_SOCKET_TIMEOUT_SECONDS = 30.0

_STAND_IN = re.compile(r"smollm2-135m")


class UnusableModelError(ValueError):
    """The model cannot serve as a judge, or cannot be loaded at all."""


class LlamaCppEngine:
    """A model run by llama.cpp in this process. Thread-safe; prompts pass one at a time.

    Args:
        model: the GGUF file.
        adapter: a LoRA adapter over it, in GGUF; None for the model as it is.
        threads: how many threads compute; None lets llama.cpp decide.
        context_tokens: the longest prompt to make room for; the model's own limit is never exceeded.

    Raises:
        GgufError: a file is not a GGUF file.
        VerdictTokenError: the model's tokenizer cannot say a verdict in one token.
        AdapterError: the adapter is none, or one over another model.
        UnusableModelError: llama.cpp cannot load the model, or it has no chat template.
    """

    def __init__(
        self, model: Path, *, adapter: Path | None = None, threads: int | None = None, context_tokens: int = 8192
    ) -> None:
        header = read_gguf(model)
        if header.parts > 1:
            raise UnusableModelError(
                f"{model.name} is one of {header.parts} parts: merge them with llama-gguf-split --merge first"
            )
        if header.chat_template is None:
            raise UnusableModelError(f"{model.name} carries no chat template, so its prompt format is unknown")
        weights = fingerprint(model)
        worn = None if adapter is None else read_adapter(adapter, over=weights)
        self._folder = _socket_folder()
        self._socket = f"{self._folder.name}/x.sock"
        self._lock = threading.Lock()
        self._server: Any = None
        self._control_ids: dict[str, list[int]] = {}
        self._salt = ""
        self._afresh = False
        try:
            context = min(context_tokens, header.context_length or context_tokens)
            self._server = _load(model, adapter=adapter, socket_path=self._socket, threads=threads, context=context)
            properties = self._ask("GET", "/props")
            begins = bool(self._tokenise("", add_special=True))
            self._template = ChatTemplate(
                header.chat_template,
                bos_token=properties["bos_token"],
                eos_token=properties["eos_token"],
                add_bos=begins,
            )
            # The server may have rounded the context; one place of it is for the token after the prompt.
            self._context = int(properties["default_generation_settings"]["n_ctx"])
            self._least = LeastTokens.of_gguf(header)
            self._vocabulary = header.vocabulary or 1 << 20
            self._card = EngineCard(
                engine="llama_cpp",
                engine_build=f"xllamacpp {xllamacpp.__version__}",
                model=_name(header, model) if worn is None else f"{_name(header, model)} + {worn.name}",
                weights=weights if worn is None else worn.weights,
                quantisation=header.quantisation,
                verdict_tokens=verdict_tokens(self._tokenise),
                max_prompt_tokens=self._context - 1,
                step_tokens=STEP_TOKENS,
                profile="card" if worn is None else worn.profile,
                caveat=_caveat(header, model, worn),
            )
        except BaseException as error:
            self.close()
            if isinstance(error, ChatTemplateError | EngineError):
                raise UnusableModelError(f"{model.name} cannot be used: {error}") from error
            raise

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
        return encode(self._template, prompt, control=self._control, content=self._content)

    def score(self, prompts: Sequence[Sequence[int]], *, salt: str = "") -> list[Score]:
        """Read the verdict token's odds after each prompt, in the order given.

        What a prompt has in common with the one before it is not computed again, where the salt is the same.
        """
        for prompt in prompts:
            check_length(prompt, self._card)
        with self._lock:
            self._tell_apart(salt)
            return [self._odds(prompt) for prompt in prompts]

    def generate(self, prompt: Sequence[int], max_tokens: int, *, salt: str = "") -> Generation:
        """Let the model write greedily until its turn ends, `max_tokens` are written or the context is full.

        The verdict's odds are read by a second pass over what was written up to the verdict, which is cheap
        (all but its last token is still cached) and exact.
        """
        check_length(prompt, self._card)
        room = min(max_tokens, self._context - len(prompt))
        with self._lock:
            self._tell_apart(salt)
            reply = self._complete(prompt, tokens=room, alternatives=1)
            written = [(int(token["id"]), bytes(token["bytes"])) for token in reply.tokens]
            until = _ids_up_to_opening(written)
            verdict = None
            if until is not None and len(prompt) + len(until) < self._context:
                verdict = self._odds([*prompt, *until])
        return Generation(
            text=reply.text,
            verdict=verdict,
            generated_tokens=reply.generated_tokens,
            cached_tokens=reply.cached_tokens,
            seconds=reply.seconds + (verdict.seconds if verdict else 0.0),
        )

    def health(self) -> bool:
        """Whether the engine would take a prompt now."""
        try:
            return self._server is not None and self._ask("GET", "/health").get("status") == "ok"
        except EngineError:
            return False

    def close(self) -> None:
        """Stop the server, once the prompt in flight is done, and remove its socket. May be called twice."""
        with self._lock:
            self._server = None
        self._folder.cleanup()

    def _tell_apart(self, salt: str) -> None:
        """Compute the next prompt from its beginning if the one before it was somebody else's. The lock is held."""
        self._afresh = salt != self._salt
        self._salt = salt

    def _odds(self, prompt: Sequence[int]) -> Score:
        """One forward pass; and the last token again where the verdicts were not among the likeliest."""
        reply = self._complete(prompt, tokens=1, alternatives=_TOP)
        logprobs, seconds = reply.logprobs, reply.seconds
        a, b = self._card.verdict_tokens.a, self._card.verdict_tokens.b
        if a not in logprobs or b not in logprobs:
            again = self._complete(prompt, tokens=1, alternatives=self._vocabulary)
            logprobs, seconds = again.logprobs, seconds + again.seconds
        try:
            for_a, for_b = (max(float(logprobs[token]), LEAST_LOGPROB) for token in (a, b))
        except (KeyError, TypeError) as error:
            raise EngineError("llama.cpp gave no probability for a verdict token") from error
        return Score(
            log_odds=for_a - for_b,
            mass=min(1.0, math.exp(for_a) + math.exp(for_b)),
            cached_tokens=reply.cached_tokens,
            seconds=seconds,
        )

    def _complete(self, prompt: Sequence[int], *, tokens: int, alternatives: int) -> "_Reply":
        """Run the model after a prompt. The lock is held."""
        if self._server is None:
            raise EngineGoneError("the engine is closed")
        request = {
            "prompt": list(prompt),
            "n_predict": tokens,
            "n_probs": alternatives,
            "temperature": 0,
            "cache_prompt": not self._afresh,
        }
        self._afresh = False
        try:
            answer = self._server.handle_completions(request)
        except Exception as error:
            kind = EngineError if self.health() else EngineGoneError
            raise kind(f"llama.cpp failed: {error}") from error
        return _Reply(answer, expected_tokens=len(prompt))

    def _control(self, text: str) -> list[int]:
        """The ids of what the template wrote: a handful of texts, so each is tokenised once."""
        ids = self._control_ids.get(text)
        if ids is None:
            ids = self._control_ids[text] = self._tokenise(text, parse_special=True)
        return ids

    def _content(self, text: str) -> list[int]:
        self._least.check(text, self._card.max_prompt_tokens)
        return self._tokenise(text)

    def _tokenise(self, text: str, *, parse_special: bool = False, add_special: bool = False) -> list[int]:
        body = {"content": text, "parse_special": parse_special, "add_special": add_special}
        ids: list[int] = self._ask("POST", "/tokenize", body)["tokens"]
        return ids

    def _ask(self, method: str, path: str, body: Mapping[str, object] | None = None) -> dict[str, Any]:
        """One request over the socket, on a connection of its own: opening a local one takes microseconds."""
        try:
            data = None if body is None else json.dumps(body, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            # Not chained: the error holds the text, and so would the server's own.
            raise EngineError("a text holds half of a surrogate pair, which no tokenizer takes") from None
        connection = _SocketConnection(self._socket)
        try:
            connection.request(method, path, data, {"Content-Type": "application/json"})
            response = connection.getresponse()
            content = response.read()
        except TimeoutError as error:
            # Much to tokenise at a time takes long, and is no reason to end the process while the server answers.
            kind = EngineError if path != "/health" and self.health() else EngineGoneError
            raise kind(f"llama.cpp did not answer {path} in {_SOCKET_TIMEOUT_SECONDS:g} s") from error
        except (OSError, HTTPException) as error:
            raise EngineGoneError("llama.cpp does not answer on its socket") from error
        finally:
            connection.close()
        if response.status != 200:  # noqa: PLR2004
            # The answer may quote the text, so it is not passed on.
            raise EngineError(f"llama.cpp refused {path} with status {response.status}")
        answer: dict[str, Any] = json.loads(content)
        return answer


class _Reply:
    """What the server answered to one prompt, checked for being whole."""

    def __init__(self, answer: Mapping[str, Any], *, expected_tokens: int) -> None:
        if "error" in answer:
            raise EngineError(f"llama.cpp refused the prompt: {answer['error'].get('message')}")
        try:
            choice, usage, timings = answer["choices"][0], answer["usage"], answer["timings"]
            self.text: str = choice["text"]
            self.tokens: list[dict[str, Any]] = choice["logprobs"]["content"]
            self.generated_tokens = int(usage["completion_tokens"])
            self.cached_tokens = int(timings["cache_n"])
            self.seconds = (timings["prompt_ms"] + timings["predicted_ms"]) / 1000
            read = int(usage["prompt_tokens"])
        except (KeyError, IndexError, TypeError) as error:
            raise EngineError("llama.cpp gave an answer of an unknown shape") from error
        if read != expected_tokens:
            raise EngineError(f"llama.cpp read {read} of {expected_tokens} prompt tokens")

    @property
    def logprobs(self) -> dict[int, float]:
        """The likeliest first tokens with the logarithms of their probabilities."""
        return {entry["id"]: entry["logprob"] for token in self.tokens[:1] for entry in token["top_logprobs"]}


class _SocketConnection(HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_SOCKET_TIMEOUT_SECONDS)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket's path instead of a host."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _load(model: Path, *, adapter: Path | None, socket_path: str, threads: int | None, context: int) -> Any:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(model)
    parameters.hostnames = [socket_path]
    parameters.n_ctx = context
    parameters.n_parallel = 1
    parameters.cache_ram_mib = 0
    parameters.verbosity = _ERRORS_ONLY
    parameters.offline = True
    parameters.ui = False
    parameters.endpoint_slots = False
    if adapter is not None:
        worn = xllamacpp.CommonAdapterLoraInfo()
        worn.path, worn.scale = str(adapter), 1.0
        parameters.lora_adapters = [worn]
    if threads is not None:
        parameters.cpuparams.n_threads = threads
        parameters.cpuparams_batch.n_threads = threads
    try:
        return xllamacpp.Server(parameters)
    except RuntimeError as error:
        what = model.name if adapter is None else f"{model.name} with {adapter.name}"
        raise UnusableModelError(f"llama.cpp cannot load {what}: {error}") from error


def _socket_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder that only this user can enter, with a path short enough for a socket."""
    if len(tempfile.gettempdir()) + len("/nightcourt-12345678/x.sock") <= _LONGEST_SOCKET_PATH:
        return tempfile.TemporaryDirectory(prefix="nightcourt-")
    return tempfile.TemporaryDirectory(prefix="nightcourt-", dir="/tmp")


def _name(header: GgufHeader, model: Path) -> str:
    return header.name or model.stem


def _caveat(header: GgufHeader, model: Path, worn: Adapter | None) -> str | None:
    """What a reader must know of a model that is not the critic; names are all there is to tell it by."""
    if worn is not None and worn.profile == "pocket":
        return (
            "The pocket critic is a small stand-in: it notices answers that are off the topic, cut, garbled or empty, "
            "and tells a good answer from a better one hardly at all. "
            "Set NIGHTCOURT_MODEL to a Skywork-Critic GGUF for real verdicts."
        )
    names = (header.name or "", model.stem)
    if is_critic(*names):
        return None
    if any(_STAND_IN.search(plain(name)) for name in names):
        return (
            "SmolLM2-135M-Instruct is a stand-in that proves the pipeline: it judges no better than chance. "
            "Set NIGHTCOURT_MODEL to a Skywork-Critic GGUF for real verdicts."
        )
    return f"{_name(header, model)} is not Skywork-Critic: nothing is known of how well it judges."


def _ids_up_to_opening(written: Sequence[tuple[int, bytes]]) -> list[int] | None:
    """The tokens up to the end of the last opening; None where there is none or a token reaches beyond."""
    whole = b"".join(piece for _, piece in written)
    opening = VERDICT_OPENING.encode()
    start = whole.rfind(opening)
    end = 0
    for count, (_, piece) in enumerate(written, 1):
        end += len(piece)
        if start >= 0 and end == start + len(opening):
            return [token for token, _ in written[:count]]
    return None
