"""An OpenAI-compatible server of the tests' own: real HTTP on loopback, a toy of a model, and faults on demand.

It speaks as the servers do whose kind it is given (their published sources say how): which fields they take, how many
alternatives they grant, and whether they list tokens by id or by text.
"""

import json
import math
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from worker.engines import openai_server, remote
from worker.engines.base import VERDICT_OPENING, Prompt
from worker.engines.openai_server import OpenAIServerEngine

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
ASKED = Prompt((("user", "Which?"),), VERDICT_OPENING)
STANDARD = {"model", "prompt", "max_tokens", "temperature", "logprobs"}


def toy_tokenizer(special: tuple[str, ...] = SPECIAL) -> Tokenizer:
    """A token for every byte, and one for each control token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: at for at, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in special])
    return tokenizer


def write_tokenizer(folder: Path, tokenizer: Tokenizer | None = None, template: str = TEMPLATE) -> Path:
    """Write a tokenizer as Hugging Face keeps it."""
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text((tokenizer or toy_tokenizer()).to_str())
    configuration = {"chat_template": template, "bos_token": None, "eos_token": {"content": "<|im_end|>"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(configuration))
    return folder


@dataclass
class Trouble:
    """What goes wrong with one request."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    late: float = 0.0
    cut: bool = False
    trickle: bool = False
    """Send a byte now and then, and never end."""
    answer: Callable[[dict[str, Any]], Any] = lambda answer: answer
    """Changes the answer."""


@dataclass
class ModelServer:
    """The server's ways, and what it has seen."""

    kind: str = "vllm"
    models: list[str] = field(default_factory=lambda: ["toy"])
    key: str | None = None
    tokenizer: Tokenizer = field(default_factory=toy_tokenizer)
    shift: int = 0
    """How far its ids are from those of the tokenizer's files."""
    stumbles: bool = False
    """Whether it fails at fields that are not OpenAI's."""
    most_alternatives: int = 20
    context: int | None = 4096
    mass: float = 0.9
    """The probability on A and B together."""
    likes: Callable[[str], float] = lambda _: 0.8
    """Of that, A's share after a prompt that does not repeat a verdict."""
    writes: str = "Well. [[A]]"
    troubles: deque[Trouble] = field(default_factory=deque)
    asked: list[dict[str, Any]] = field(default_factory=list)
    """The bodies sent to /v1/completions."""
    busiest: int = 0
    url: str = ""
    over: threading.Event = field(default_factory=threading.Event)
    _busy: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def under_way(self, body: dict[str, Any]) -> Iterator[Trouble]:
        """Count a request while it is, and give it the trouble that is due."""
        with self._lock:
            if "prompt" in body:
                self.asked.append(body)
            self._busy += 1
            self.busiest = max(self.busiest, self._busy)
            trouble = self.troubles.popleft() if self.troubles else Trouble()
        try:
            yield trouble
        finally:
            with self._lock:
                self._busy -= 1

    def probabilities(self, text: str) -> dict[str, float]:
        """What comes after a text: the verdict it has repeated, or what the server likes."""
        lines = text.splitlines()
        repeated = lines[-2] if len(lines) > 1 and lines[-1] == "[[" else ""
        share = {"[[A]]": 0.99, "[[B]]": 0.01}.get(repeated, self.likes(text))
        rest = 1.0 - self.mass
        others = {chr(ord("a") + at): rest * 0.5 ** (at + 1) for at in range(24)}
        return {"A": self.mass * share, "B": self.mass * (1 - share)} | others

    def complete(self, body: dict[str, Any]) -> tuple[int, Any]:
        """Answer a completion request."""
        if self.stumbles and body.keys() - STANDARD:
            return 500, {}
        if self.kind == "tensorrt_llm" and body.keys() - STANDARD:
            return 400, {"message": f"extra fields not permitted: {body['prompt']}"}
        if body["logprobs"] > self.most_alternatives and not (self.kind == "vllm" and "logprob_token_ids" in body):
            return 400, {"message": "too many logprobs"}
        if not all(isinstance(token, int) for token in body["prompt"]):
            return 400, {"message": "no ids"}
        text = self.text_of(body)
        written = self.writes if body["max_tokens"] > 1 else ""
        positions = [self._position(text + written[:at], letter, body) for at, letter in enumerate(written)]
        positions = positions or [self._position(text, "", body)]
        tokens, chosen, listed = zip(*positions, strict=True)
        logprobs: dict[str, Any] = {"tokens": tokens, "token_logprobs": chosen, "top_logprobs": listed}
        if self.kind == "llamacpp":
            logprobs = {"content": [self._entry(*position) for position in zip(tokens, listed, strict=True)]}
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": len(positions), "total_tokens": 0}
        return 200, {"choices": [{"text": written or tokens[0], "logprobs": logprobs}], "usage": usage}

    def _entry(self, token: str, listed: dict[str, float]) -> dict[str, Any]:
        likeliest = [{"id": self.tokenizer.token_to_id(each), "logprob": value} for each, value in listed.items()]
        return {"token": token, "top_logprobs": likeliest}

    def tokenise(self, body: dict[str, Any]) -> tuple[int, Any]:
        """Answer a request for the ids of a text."""
        settled = json.loads(self.tokenizer.to_str())
        plain = Tokenizer.from_str(json.dumps(settled | {"added_tokens": []}))
        return 200, {"tokens": (self.tokenizer if body["parse_special"] else plain).encode(body["content"]).ids}

    def text_of(self, body: dict[str, Any]) -> str:
        """Read what it is asked."""
        ids = [token + self.shift for token in body["prompt"]]
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def _position(self, text: str, letter: str, body: dict[str, Any]) -> tuple[str, float, dict[str, float]]:
        ranked = sorted(self.probabilities(text).items(), key=lambda pair: -pair[1])
        logs = {token: math.log(probability) if probability > 0 else -9999.0 for token, probability in ranked}
        if self.kind == "vllm" and "logprob_token_ids" in body:
            listed = {token: logs[token] for token in ("A", "B")}
        else:
            listed = dict(list(logs.items())[: body["logprobs"]])
        name = (lambda token: f"token_id:{self.tokenizer.token_to_id(token)}") if self._by_id(body) else str
        first = letter or ranked[0][0]
        return name(first), logs.get(first, -9999.0), {name(token): value for token, value in listed.items()}

    def _by_id(self, body: dict[str, Any]) -> bool:
        return self.kind == "vllm" and bool(body.get("return_tokens_as_token_ids"))

    def listed(self) -> Any:
        """Answer /v1/models."""
        entry = {"object": "model", "owned_by": self.kind, "created": int(time.time())}
        entry |= {"max_model_len": self.context} if self.context else {}
        return {"object": "list", "data": [entry | {"id": name} for name in self.models]}


def odds(server: ModelServer, share: float) -> tuple[float, float]:
    """Tell what a server thinks that gives A this share: log-odds and mass."""
    return math.log(share / (1 - share)), server.mass


class Http(ThreadingHTTPServer):
    """The listening side."""

    daemon_threads = True

    def __init__(self, ways: ModelServer) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ways = ways

    def handle_error(self, *_: object) -> None:
        """Clients that go away are what is tested."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: Http

    def do_GET(self) -> None:
        """Say what there is."""
        if self._refused():
            return
        answers = {"/v1/models": self.server.ways.listed(), "/version": {"version": "9.9"}}
        if self.server.ways.kind == "llamacpp":
            answers["/props"] = {"bos_token": "", "eos_token": SPECIAL[-1], "chat_template": TEMPLATE}
        self._answer(200 if self.path in answers else 404, answers.get(self.path, {}))

    def do_POST(self) -> None:
        """Take a prompt, and whatever trouble is due."""
        ways = self.server.ways
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self._refused():
            return
        answers = {"/v1/completions": ways.complete}
        if ways.kind == "llamacpp":
            answers["/tokenize"] = ways.tokenise
        if self.path not in answers:
            self._answer(404, {})
            return
        with ways.under_way(body) as trouble:
            self._serve(body, trouble, answers[self.path])

    def _serve(
        self, body: dict[str, Any], trouble: Trouble, complete: Callable[[dict[str, Any]], tuple[int, Any]]
    ) -> None:
        ways = self.server.ways
        ways.over.wait(trouble.late)
        if trouble.cut:
            self.close_connection = True
        elif trouble.trickle:
            self._trickle()
        elif trouble.status != 200:
            # A server that repeats in its errors what it was sent, the key included.
            text = ways.tokenizer.decode(body["prompt"]) if "prompt" in body else body["content"]
            echo = {"message": text, "key": self.headers["Authorization"]}
            self._answer(trouble.status, echo, trouble.headers)
        else:
            status, answer = complete(body)
            self._answer(status, trouble.answer(answer))

    def _trickle(self) -> None:
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Length", "1000000")
        self.end_headers()
        with suppress(OSError):
            while not self.server.ways.over.wait(0.02):
                self.wfile.write(b" ")
                self.wfile.flush()

    def _refused(self) -> bool:
        key = self.server.ways.key
        if key is None or self.headers["Authorization"] == f"Bearer {key}":
            return False
        self._answer(401, {"error": f"Unauthorized: {self.headers['Authorization']}"})
        return True

    def _answer(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        for name, value in ((headers or {}) | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def impatient(
    ways: ModelServer, folder: Path, monkeypatch: pytest.MonkeyPatch, *, request: float, patience: float
) -> Iterator[OpenAIServerEngine]:
    """Open an engine that has found a server well, with seconds for a request and in all, and pauses of moments.

    A server of llama.cpp's is what tokenises, too.
    """
    monkeypatch.setattr(remote, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(openai_server, "_DOUBT_SECONDS", 0.05)
    tokenizer = None if ways.kind == "llamacpp" else write_tokenizer(folder)
    engine = OpenAIServerEngine(ways.url, tokenizer=tokenizer, request_seconds=request, patience_seconds=patience)
    with closing(engine):
        ways.asked.clear()
        yield engine


@contextmanager
def serving(ways: ModelServer, certificate: Path | None = None) -> Iterator[ModelServer]:
    """Serve until the block ends, with TLS where there is a certificate (with its key, in PEM)."""
    http = Http(ways)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        http.socket = context.wrap_socket(http.socket, server_side=True)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    ways.url = f"{'https' if certificate else 'http'}://127.0.0.1:{http.server_port}"
    try:
        yield ways
    finally:
        ways.over.set()
        http.shutdown()
        http.server_close()
        thread.join()
