"""The engine for a model behind an OpenAI-compatible server: vLLM, SGLang, trtllm-serve, NIM, llama.cpp's server.

Prompts go to `/v1/completions` as arrays of token ids, which all of these take as they are; a text or a chat would be
parsed for control tokens by the server, whatever it spells. So the ids are made here (see `tokenising.py`), and a
server for which that cannot be done safely is refused at the start, as is one that does not go on as a model would
that was given these very ids.
"""

import asyncio
import hashlib
import json
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple, TypeVar

import structlog

from worker.engines import completions, tokenising
from worker.engines.base import (
    VERDICT_OPENING,
    EngineAwayError,
    EngineCard,
    EngineError,
    EngineGoneError,
    Generation,
    Prompt,
    Score,
    VerdictTokens,
    check_length,
)
from worker.engines.chat import ChatTemplateError, verdict_tokens
from worker.engines.naming import is_critic
from worker.engines.remote import AwayError, RefusedError, Remote
from worker.engines.tokenising import PromptTokenizer

log = structlog.get_logger()

T = TypeVar("T")

STEP_TOKENS_A_REQUEST = 1024
"""A step holds about one prompt of this length for each request that may be under way."""

_ALTERNATIVES = (100, 20, 5)
"""How many likeliest tokens to ask for: vLLM grants 20 unless told otherwise, OpenAI's own limit is 5."""
_WRITING_ALTERNATIVES = 5
_HEALTH_SECONDS = 5.0
_PROBES = 6
_DOUBT_SECONDS = 1.0
"""The pause before a server that failed is asked again what it has answered before; an answer that comes sooner leaves
time for more."""


class UnusableServerError(ValueError):
    """The server cannot be used as a judge, or not safely; the message says why and what to do."""


class Form(NamedTuple):
    """How this server is to be asked for the odds of the verdict tokens."""

    fields: dict[str, Any]
    by_text: bool
    """Whether "A" and "B" may be told by their text: no other token is written so."""
    salted: bool
    """Whether the server takes fields beyond OpenAI's, such as the salt of what it keeps of prompts."""


class OpenAIServerEngine:
    """A model behind an OpenAI-compatible server. Thread-safe; up to `requests` prompts are under way at a time.

    Args:
        url: where the server is, such as "http://host:8000/v1".
        key: sent as `Authorization: Bearer`, to this server alone.
        model: the model's name there; needed where the server has several.
        tokenizer: a folder with the model's `tokenizer.json` and chat template; a llama.cpp server needs none.
        context_tokens: the longest prompt, where the server does not say.
        requests: how many requests may be under way.
        request_seconds: how long one request may take.
        patience_seconds: how long one `encode`, `score` or `generate` may take in all, whatever the server does.
        ca_file: certificates to trust, in PEM, instead of the usual authorities.

    Raises:
        UnusableServerError: the server cannot be reached in time, or cannot be used, or not safely.
        UnsafeTokenizerError, ChatTemplateError, VerdictTokenError: the tokenizer cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        model: str | None = None,
        tokenizer: Path | None = None,
        context_tokens: int = 8192,
        requests: int = 16,
        request_seconds: float = 120.0,
        patience_seconds: float = 300.0,
        ca_file: Path | None = None,
    ) -> None:
        self._root = url.rstrip("/").removesuffix("/v1")
        self._patience_seconds = patience_seconds
        self._doubted = self._changed = False
        """Whether the server failed when it was last asked, and whether it does not fail now, but answers otherwise."""
        self._waiting: asyncio.Task[None] | None = None
        self._remote = Remote(
            self._root,
            key=key,
            requests=requests,
            request_seconds=request_seconds,
            patience_seconds=patience_seconds,
            ca_file=ca_file,
        )
        try:
            self._open(model, tokenizer, context_tokens, requests)
        except BaseException as error:
            self.close()
            if isinstance(error, EngineError | ChatTemplateError):
                raise UnusableServerError(f"the server at {self._root} cannot be used: {error}") from error
            raise

    @property
    def card(self) -> EngineCard:
        """Who this is and what it can take."""
        return self._card

    def encode(self, prompt: Prompt) -> list[int]:
        """Apply the model's chat template and tokenise, with control tokens from the template alone.

        Raises:
            EngineAwayError, EngineGoneError: as in `score`, where the server itself is what tokenises.
            PromptTooLongError: a text is too long for this engine, however it would be tokenised.
            EngineError: the template does not take this conversation, or a text cannot be tokenised.
        """
        return self._tokenizer.encode(prompt, self._card.max_prompt_tokens)

    def score(self, prompts: Sequence[Sequence[int]], *, salt: str = "") -> list[Score]:
        """Read the verdict token's odds after each prompt, several at a time.

        Args:
            prompts: token ids, each at most `card.max_prompt_tokens` long.
            salt: whose prompts these are; a server that takes a salt computes nothing for one that another may see.

        Raises:
            EngineAwayError: the server failed before, and fails still at what it has answered at the start.
            EngineGoneError: it answers that otherwise now; a new start finds out how it is to be asked.
            EngineError: the server refused a prompt, or could not be brought to answer in time.
        """
        for prompt in prompts:
            check_length(prompt, self._card)
        return self._remote.run(self._once_it_answers(lambda: self._scores(prompts, self._form, salt)))

    def generate(self, prompt: Sequence[int], max_tokens: int, *, salt: str = "") -> Generation:
        """Let the model write greedily; the verdict's odds are read where it wrote one. `salt` is as in `score`.

        Raises:
            EngineAwayError, EngineGoneError, EngineError: as in `score`.
        """
        check_length(prompt, self._card)
        room = min(max_tokens, self._card.max_prompt_tokens + 1 - len(prompt))
        fields = {"logprobs": _WRITING_ALTERNATIVES} | _salted(self._form, salt)

        async def write() -> tuple[completions.Answer, float]:
            started = time.monotonic()
            return await self._complete(prompt, max_tokens=room, fields=fields), time.monotonic() - started

        answer, seconds = self._remote.run(self._once_it_answers(write))
        position = completions.verdict_position(answer.positions)
        verdict = None
        if position is not None:
            odds = completions.opinion(position.likeliest, self._card.verdict_tokens, by_text=self._form.by_text)
            if math.isfinite(odds.log_odds):
                verdict = Score(odds.log_odds, odds.mass, cached_tokens=0, seconds=0.0)
        return Generation(
            text=answer.text,
            verdict=verdict,
            generated_tokens=min(answer.generated_tokens, room),
            cached_tokens=answer.cached_tokens,
            seconds=seconds,
        )

    def health(self) -> bool:
        """Whether this engine is open and gets on; of the server it says nothing, since no restart here mends that."""
        return self._remote.turns(within=_HEALTH_SECONDS)

    def close(self) -> None:
        """Close all connections; what is under way fails. May be called twice."""
        self._remote.close()

    def _open(self, model: str | None, tokenizer: Path | None, context_tokens: int, requests: int) -> None:
        """Find out what the server is, and try out all that judging will stand on."""
        entry = self._remote.run(self._find_model(model))
        self._model = str(entry["id"])
        # Servers call a model by its path where nobody named it; the folders are nobody's business.
        title = PurePath(self._model).name if PurePath(self._model).is_absolute() else self._model
        kind = str(entry.get("owned_by") or "unknown")
        if tokenizer is not None:
            self._tokenizer = tokenising.from_folder(tokenizer)
        elif kind == "llamacpp":
            self._tokenizer = tokenising.from_llama_server(self._ask)
        else:
            raise UnusableServerError(
                f"the server at {self._root} ({kind}) needs NIGHTCOURT_ENGINE_TOKENIZER, a folder with the model's "
                "tokenizer.json and tokenizer_config.json: such a server's own tokenizer makes control tokens of "
                "whatever spells them, so it must never see a candidate's text"
            )
        tokens = verdict_tokens(self._tokenizer.tokenise)
        limit, quantisation, build = self._describe(entry, kind, context_tokens)
        self._card = EngineCard(
            engine="openai_server",
            engine_build=f"{kind} {build}",
            model=title,
            weights=f"unverified:sha256:{_fingerprint(entry, self._tokenizer)}",
            quantisation=quantisation,
            verdict_tokens=tokens,
            max_prompt_tokens=limit - 1,
            step_tokens=STEP_TOKENS_A_REQUEST * requests,
            caveat=_caveat(title, str(entry.get("root") or "")),
        )
        self._form, self._known = self._find_form(tokens)
        self._remote.expect_no_refusal()

    async def _find_model(self, wanted: str | None) -> dict[str, Any]:
        try:
            listed = (await self._remote.call("/v1/models"))["data"]
            names = [str(entry["id"]) for entry in listed]
        except RefusedError as error:
            if error.status in {401, 403}:
                raise UnusableServerError(
                    f"the server at {self._root} refuses the key: set NIGHTCOURT_ENGINE_KEY to one that it takes"
                ) from None
            raise
        except (KeyError, TypeError):
            raise EngineError("its /v1/models is not that of an OpenAI-compatible server") from None
        if len(names) != 1 if wanted is None else wanted not in names:
            asked = "one of several models has to be named" if wanted is None else f"it has no model {wanted!r}"
            raise UnusableServerError(
                f"the server at {self._root} cannot be used: {asked}. NIGHTCOURT_ENGINE_MODEL takes one of: "
                f"{', '.join(names) or 'none'}"
            )
        found: dict[str, Any] = listed[0 if wanted is None else names.index(wanted)]
        return found

    def _describe(self, entry: dict[str, Any], kind: str, context_tokens: int) -> tuple[int, str, str]:
        """What the server says of its context, of how the weights are stored, and of its version."""
        meta = entry.get("meta") or {}
        path, name = ("/props", "build_info") if kind == "llamacpp" else ("/version", "version")
        try:
            build = self._remote.ask(path, None).get(name) or "unknown"
        except (EngineError, AttributeError):
            build = "unknown"
        limit = int(entry.get("max_model_len") or meta.get("n_ctx") or context_tokens)
        return limit, str(meta.get("ftype") or "unknown"), str(build)

    def _find_form(self, tokens: VerdictTokens) -> tuple[Form, Sequence[Sequence[int]]]:
        """Try forms of asking until one gives the odds, best first. Returns what was asked, too.

        The opening is written so that any model goes on with the one verdict, and then with the other. That proves that
        the ids mean there what they mean here, and that the numbers are read the right way round.
        """
        by_text = self._tokenizer.names is not None and (
            self._tokenizer.names("A"),
            self._tokenizer.names("B"),
        ) == ([tokens.a], [tokens.b])
        exact = {"return_tokens_as_token_ids": True, "logprob_token_ids": [tokens.a, tokens.b]}
        probes = {
            slot: self.encode(Prompt((("user", "Go on."),), f"{VERDICT_OPENING}{slot}]]\n" * _PROBES + VERDICT_OPENING))
            for slot in "AB"
        }
        reason = "it takes no array of token ids as prompt"
        for extra in (exact, {}):  # the fields are vLLM's; trtllm-serve refuses what it does not know
            for alternatives in _ALTERNATIVES:
                form = Form({"logprobs": alternatives} | extra, by_text, salted=bool(extra))
                try:
                    odds = dict(zip(probes, self._remote.run(self._scores([*probes.values()], form)), strict=True))
                except AwayError:
                    raise
                except EngineError as error:
                    reason = str(error)
                    continue
                if odds["A"].log_odds > 0 > odds["B"].log_odds and min(each.mass for each in odds.values()) > 1 / 2:
                    return form, [*probes.values()]
                reason = _wrong(odds, by_text=by_text)
        raise EngineError(reason)

    async def _once_it_answers(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask something; if the server failed before, wait until it answers again what it has answered at the start.

        So a server that fails at everything is told from one that fails at a prompt: of what is asked there, an
        attempt is counted for what was on its way when it began to fail, and for nothing after.
        """
        if self._doubted:
            await self._wait_for_it()
        try:
            return await ask()
        except EngineError:
            self._doubted = True
            raise

    def _ask(self, path: str, body: dict[str, Any] | None) -> Any:
        """Ask from a thread that is not the loop's, as `_once_it_answers` does."""
        return self._remote.run(self._once_it_answers(lambda: self._remote.call(path, body)))

    async def _wait_for_it(self) -> None:
        """Wait for the server, no longer than one call may take. If that took its time, none is left to ask in."""
        began = time.monotonic()
        if self._waiting is None or self._waiting.done():
            # One for all who wait. And a task of its own, since before Python 3.13 one in which a task group failed
            # takes no timeout for what it is.
            self._waiting = asyncio.create_task(self._until_it_answers())
        done, _ = await asyncio.wait({self._waiting}, timeout=self._patience_seconds)
        for each in done:
            each.result()  # what nobody foresaw is nothing to wait for
        if self._doubted and self._changed:
            raise EngineGoneError("the server came back, and answers otherwise than at the start")
        if self._doubted:
            raise EngineAwayError("the server failed, and fails still at what it answered at the start")
        if time.monotonic() - began > _DOUBT_SECONDS:
            raise EngineAwayError("the server failed, and answers again only now")

    async def _until_it_answers(self) -> None:
        give_up_at = time.monotonic() + self._patience_seconds
        while self._doubted and time.monotonic() < give_up_at:
            trouble = await self._trouble()
            if trouble is None:
                self._doubted = False
            else:
                log.warning("engine_doubted", trouble=trouble)
                await asyncio.sleep(_DOUBT_SECONDS)

    async def _trouble(self) -> str | None:
        """Say what is amiss with the server's answers to what it was asked at the start."""
        try:
            a, b = await self._scores(self._known, self._form)
        except EngineError as error:
            self._changed = isinstance(error, RefusedError)
            return str(error)
        self._changed = not a.log_odds > 0 > b.log_odds
        return "its odds are others than at the start" if self._changed else None

    async def _scores(self, prompts: Sequence[Sequence[int]], form: Form, salt: str = "") -> list[Score]:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._odds(prompt, form, salt)) for prompt in prompts]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _odds(self, prompt: Sequence[int], form: Form, salt: str) -> Score:
        started = time.monotonic()
        answer = await self._complete(prompt, max_tokens=1, fields=form.fields | _salted(form, salt))
        if not answer.positions:
            raise EngineError("the server gave no log-probabilities")
        odds = completions.opinion(answer.positions[0].likeliest, self._card.verdict_tokens, by_text=form.by_text)
        return Score(odds.log_odds, odds.mass, answer.cached_tokens, time.monotonic() - started)

    async def _complete(self, prompt: Sequence[int], *, max_tokens: int, fields: dict[str, Any]) -> completions.Answer:
        body = {"model": self._model, "prompt": list(prompt), "max_tokens": max_tokens, "temperature": 0} | fields
        answer = await self._remote.call("/v1/completions", body)
        return completions.read(answer, expected_tokens=len(prompt))


def _salted(form: Form, salt: str) -> dict[str, Any]:
    return {"cache_salt": hashlib.sha256(salt.encode()).hexdigest()} if salt and form.salted else {}


def _wrong(odds: dict[str, Score], *, by_text: bool) -> str:
    """Say what was amiss with the answers to the two probes."""
    seen = min(each.mass for each in odds.values())
    said = (
        f"given the ids of a text that says [[A]] again and again it does not go on with A, or with B where it says "
        f"[[B]] (it puts {seen:.3g} of its probability on the two, log-odds {odds['A'].log_odds:.3g} and "
        f"{odds['B'].log_odds:.3g}): the tokenizer is not that of the model it serves"
    )
    return said if by_text else f"{said}, or it names tokens by texts that several tokens have"


def _fingerprint(entry: dict[str, Any], tokenizer: PromptTokenizer) -> str:
    """Hash what the server says of the model and what makes the prompts; what changes by itself is left out."""
    said = {name: entry.get(name) for name in ("id", "root", "owned_by", "max_model_len", "meta")}
    return hashlib.sha256(json.dumps([said, tokenizer.fingerprint], sort_keys=True).encode()).hexdigest()


def _caveat(model: str, root: str) -> str:
    said = f"A server says that this is {model}: nobody here has seen its weights."
    return (
        said if is_critic(model, root) else f"{said} It is not named Skywork-Critic: how well it judges is not known."
    )
