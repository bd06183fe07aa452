"""An engine that asks no model: deterministic opinions at a stated speed, for planning and load tests.

An opinion is a checksum of the token ids, begun with a seed, and spread as a logistic distribution with a standard
deviation of 2 in log-odds. The engine sees ids and nothing else, so it cannot know that two prompts are the same
comparison in two orders: about half of its verdicts are inconsistent, as those of a model that judges by chance would
be. The card says in every verdict that it is simulated.

Where strengths are asked for, the first two marks in a prompt, such as `{{strength=1.5}}`, are read from its ids, and
their difference is added to the log-odds: verdicts whose truth is known, for trying out what is made of verdicts.
"""

import hashlib
import os
import re
import signal
import struct
import threading
import time
import zlib
from array import array
from collections.abc import Callable, Sequence
from functools import lru_cache
from math import log, pi, sqrt
from pathlib import Path

from worker.engines.base import (
    VERDICT_OPENING,
    EngineCard,
    EngineError,
    EngineGoneError,
    Generation,
    Prompt,
    Score,
    VerdictTokens,
)

CAVEAT = "Simulated: no model was asked. The verdict is a hash of the text and means nothing."

STRENGTHS_CAVEAT = "Simulated: no model was asked. The verdict is chance, and marks in the answers where there are any."

_STRENGTH = re.compile(rb"\{\{strength=(-?\d+(?:\.\d+)?)\}\}")
_TEXT_IDS = 1 << 31  # ids below are text; the control tokens above are what no text can spell
_ROLES = {role: struct.pack("I", _TEXT_IDS + number) for number, role in enumerate(("system", "user", "assistant"))}
_END = struct.pack("I", _TEXT_IDS + 3)
_VERDICT_TOKENS = VerdictTokens(a=_TEXT_IDS + 4, b=_TEXT_IDS + 5)
_BYTES_PER_TOKEN = 4
_PADDING = tuple(b" " * short for short in range(_BYTES_PER_TOKEN))
_SEVEN_BITS = bytes(byte & 0x7F for byte in range(256))
_SCALE = 2.0 * sqrt(3) / pi
"""Of the logistic distribution whose standard deviation is 2."""
_STEP_TOKENS = 8192
_FREE_STEP_TOKENS = 262_144
"""Of a device that takes no time: a step is over at once, and each has its price in turns and counts."""
_FIBONACCI = 0x9E3779B97F4A7C15
"""2^64 / the golden ratio: multiplied by it, and cut to 64 bits, all bits of a checksum change the topmost ones. The
checksum alone would not do: the same change of two texts, as of the order of the same two answers, changes the same
bits of it."""


class SimulatedEngine:
    """Deterministic opinions without a model. Thread-safe; one prompt at a time, like one device.

    Args:
        seed: engines with the same seed have the same opinions.
        tokens_per_second: the speed of the pretended device, for prompt and generated tokens alike, with
            nothing ever reused; 0 answers at once.
        max_prompt_tokens: the longest prompt to accept.
        strengths: prefer by marks in the answers.
        on_score: called with the prompts before each `score` and `generate`, outside any lock. A test can
            wait, count or raise in it.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        tokens_per_second: float = 0.0,
        max_prompt_tokens: int = 8192,
        strengths: bool = False,
        on_score: Callable[[Sequence[Sequence[int]]], None] | None = None,
    ) -> None:
        if tokens_per_second < 0:
            raise ValueError("tokens_per_second must not be negative; 0 answers at once")
        key = hashlib.blake2b(str(seed).encode(), digest_size=16).digest()
        self._seed = int.from_bytes(key[:4])
        self._tokens_per_second = tokens_per_second
        self._strengths = strengths
        self._on_score = on_score
        self._device = threading.Lock()
        self._closed = False
        mark = b"simulated 2 strengths " if strengths else b"simulated 2 "
        self._card = EngineCard(
            engine="simulated",
            engine_build="2",
            model="simulated",
            weights=f"sha256:{hashlib.sha256(mark + key).hexdigest()}",
            quantisation="none",
            verdict_tokens=_VERDICT_TOKENS,
            max_prompt_tokens=max_prompt_tokens,
            step_tokens=_STEP_TOKENS if tokens_per_second else _FREE_STEP_TOKENS,
            simulated=True,
            caveat=STRENGTHS_CAVEAT if strengths else CAVEAT,
        )

    @property
    def card(self) -> EngineCard:
        """Who this is and what it can take."""
        return self._card

    def encode(self, prompt: Prompt) -> Sequence[int]:
        """One id for every four bytes of text, and one for the beginning and the end of every turn."""
        words: list[bytes] = []
        for role, content in prompt.messages:
            text = _text(content)
            words += (_ROLES[role], text, _PADDING[-len(text) % _BYTES_PER_TOKEN], _END)
        words.append(_opened(prompt.opening))
        return memoryview(b"".join(words)).cast("I")

    def score(self, prompts: Sequence[Sequence[int]], *, salt: str = "") -> list[Score]:  # noqa: ARG002 - nothing is kept
        """The opinion on each prompt, after as long as the pretended device takes for all of them."""
        self._admit(prompts)
        if self._tokens_per_second:
            self._work(sum(map(len, prompts)))
        return [self._opinion(prompt) for prompt in prompts]

    def generate(self, prompt: Sequence[int], max_tokens: int, *, salt: str = "") -> Generation:  # noqa: ARG002 - as above
        """Write the verdict and nothing else, in three tokens."""
        self._admit([prompt])
        opinion = self._opinion(prompt)
        pieces = [VERDICT_OPENING, "A" if opinion.log_odds >= 0 else "B", "]]"][:max_tokens]
        self._work(len(prompt) + len(pieces))
        return Generation(
            text="".join(pieces),
            verdict=opinion if len(pieces) > 1 else None,
            generated_tokens=len(pieces),
            cached_tokens=0,
            seconds=self._seconds(len(prompt) + len(pieces)),
        )

    def health(self) -> bool:
        """Whether the engine was not closed."""
        return not self._closed

    def close(self) -> None:
        """Refuse all further work."""
        self._closed = True

    def _admit(self, prompts: Sequence[Sequence[int]]) -> None:
        if self._closed:
            raise EngineGoneError("the engine is closed")
        if self._on_score is not None:
            self._on_score(prompts)
        longest = max(map(len, prompts), default=0)
        if longest > self._card.max_prompt_tokens:
            raise EngineError(f"the prompt has {longest} tokens; this engine takes {self._card.max_prompt_tokens}")

    def _work(self, tokens: int) -> None:
        seconds = self._seconds(tokens)
        if seconds:
            with self._device:
                time.sleep(seconds)

    def _seconds(self, tokens: int) -> float:
        return tokens / self._tokens_per_second if self._tokens_per_second else 0.0

    def _opinion(self, prompt: Sequence[int]) -> Score:
        ids = prompt if isinstance(prompt, memoryview) else array("I", prompt)
        # No more than a checksum: hashing the text would be half of what a line costs under load.
        word = zlib.crc32(ids, self._seed) * _FIBONACCI & 0xFFFF_FFFF_FFFF_FFFF
        chance = ((word >> 12) + 0.5) * 2.0**-52
        odds = _SCALE * log(chance / (1 - chance)) + (_difference(ids.tobytes()) if self._strengths else 0.0)
        return Score(odds, 0.95 + 0.05 * ((word & 0xFFFF) * 2.0**-16), 0, self._seconds(len(ids)))


def _difference(data: bytes) -> float:
    """Tell how much stronger the first marked answer is than the second; 0 where there are not two marks."""
    marks = [float(mark) for mark in _STRENGTH.findall(data)]
    return marks[0] - marks[1] if len(marks) > 1 else 0.0


def fingerprint(prompt: Sequence[int]) -> str:
    """Name a prompt by a hash of its ids, 32 hexadecimal digits."""
    return hashlib.blake2b(array("I", prompt).tobytes(), digest_size=16).hexdigest()


def call_log(path: Path) -> Callable[[Sequence[Sequence[int]]], None]:
    """Make an `on_score` that appends the fingerprint of every prompt asked to a file, a line each.

    Several engines may share the file: each step is one write at its end.
    """
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(prompts: Sequence[Sequence[int]]) -> None:
        os.write(file, "".join(f"{fingerprint(prompt)}\n" for prompt in prompts).encode())

    return note


def faults(
    *, poison: str | None = None, hang: str | None = None, fail: str | None = None
) -> Callable[[Sequence[Sequence[int]]], None]:
    """Make an `on_score` that does what a broken engine would, so that recovery can be tested.

    Args:
        poison: an ASCII text that ends the process, as a crash would, where a prompt holds it.
        hang: one at which the engine never comes back.
        fail: one at which the step fails.
    """

    def look(prompts: Sequence[Sequence[int]]) -> None:
        asked = b"\n".join(array("I", prompt).tobytes() for prompt in prompts)
        if poison and poison.encode() in asked:
            os.kill(os.getpid(), signal.SIGKILL)
        if hang and hang.encode() in asked:
            threading.Event().wait()
        if fail and fail.encode() in asked:
            raise EngineError("a prompt holds the text at which this engine is told to fail")

    return look


def _text(text: str) -> bytes:
    """Four bytes a token: nothing like a real tokenizer, but as many tokens as English text would have.

    The topmost bit of every byte is cleared, which ASCII has clear already: ids from a token's limit on are control.
    """
    data = text.encode("utf-8", "replace")
    return data if text.isascii() else data.translate(_SEVEN_BITS)


@lru_cache  # all prompts of a profile are opened alike
def _opened(opening: str) -> bytes:
    text = _text(opening)
    return b"".join((_ROLES["assistant"], text, _PADDING[-len(text) % _BYTES_PER_TOKEN]))
