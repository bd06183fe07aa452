"""How many tokens a text has at least, told from its bytes alone, before anything is tokenised."""

from collections.abc import Collection
from typing import Any

from worker.engines.base import PromptTooLongError
from worker.engines.gguf import GgufHeader

_TOKENS = "tokenizer.ggml.tokens"
_BYTE_LEVEL = "gpt2"
_KEEPING = {"ByteLevel", "Digits", "Punctuation", "Split"}
"""What cuts a text and leaves out nothing, unless it is told to."""
_SPELT_AS_THEY_ARE = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}


def _letters() -> list[str]:
    """How byte-level vocabularies spell each byte: those that do not print are moved to where letters are."""
    moved = iter(range(0x100, 0x200))
    return [chr(byte if byte in _SPELT_AS_THEY_ARE else next(moved)) for byte in range(0x100)]


class LeastTokens:
    """A lower bound that holds for every text, where a model's tokenizer is byte-level BPE; 0 for other models.

    Each byte of a text is in one token, and no token holds more bytes than the longest is spelt with. Bytes that the
    vocabulary has no token for are not counted: they may be left out.

    Args:
        longest: bytes of the longest token; 0 where the tokenizer is another.
        letters: what single bytes are spelt with that are tokens.
    """

    def __init__(self, longest: int, letters: Collection[str]) -> None:
        self._longest = longest
        self._left_out = bytes(byte for byte, letter in enumerate(_letters()) if letter not in letters)

    @classmethod
    def of_gguf(cls, header: GgufHeader) -> "LeastTokens":
        """Of a model in GGUF."""
        known = header.values.get("tokenizer.ggml.model") == _BYTE_LEVEL
        return cls(header.longest_texts.get(_TOKENS, 0) if known else 0, header.letters.get(_TOKENS, frozenset()))

    @classmethod
    def of_hugging_face(cls, tokenizer: dict[str, Any]) -> "LeastTokens":
        """Of a `tokenizer.json`. One that changes a text before it cuts it, or drops a part, is none of these."""
        model = tokenizer["model"]
        cuts = tokenizer.get("pre_tokenizer") or {}
        cuts = cuts.get("pretokenizers", [cuts])
        known = (
            model.get("type") == "BPE"
            and tokenizer.get("normalizer") is None
            and any(cut.get("type") == "ByteLevel" for cut in cuts)
            and all(cut.get("type") in _KEEPING and cut.get("behavior") != "Removed" for cut in cuts)
        )
        tokens = model["vocab"] if known else ()
        return cls(max(map(len, tokens), default=0), [token for token in tokens if len(token) == 1])

    def of(self, text: str) -> int:
        """Tell how many tokens this text has at least."""
        if not self._longest:
            return 0
        counted = len(text.encode("utf-8", "surrogatepass").translate(None, self._left_out))
        return -(-counted // self._longest)

    def check(self, text: str, most: int) -> None:
        """See that a text need not have more tokens than an engine takes.

        Raises:
            PromptTooLongError: it has.
        """
        if (least := self.of(text)) > most:
            raise PromptTooLongError(f"the prompt is at least {least} tokens long, the judge takes {most}")
