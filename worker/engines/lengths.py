"""How many tokens a text has at least, told from its bytes alone, before anything is tokenised."""

from worker.engines.gguf import GgufHeader

_TOKENS = "tokenizer.ggml.tokens"
_BYTE_LEVEL = "gpt2"
_SPELT_AS_THEY_ARE = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}


def _letters() -> list[str]:
    """How byte-level vocabularies spell each byte: those that do not print are moved to where letters are."""
    moved = iter(range(0x100, 0x200))
    return [chr(byte if byte in _SPELT_AS_THEY_ARE else next(moved)) for byte in range(0x100)]


class LeastTokens:
    """A lower bound that holds for every text, where a model's tokenizer is byte-level BPE; 0 for other models.

    Each byte of a text is in one token, and no token holds more bytes than the longest is spelt with. Bytes that the
    vocabulary has no token for are not counted: llama.cpp leaves them out.
    """

    def __init__(self, header: GgufHeader) -> None:
        letters = header.letters.get(_TOKENS, frozenset())
        self._longest = header.longest_texts.get(_TOKENS, 0)
        self._left_out = bytes(byte for byte, letter in enumerate(_letters()) if letter not in letters)
        if header.values.get("tokenizer.ggml.model") != _BYTE_LEVEL:
            self._longest = 0

    def of(self, text: str) -> int:
        """Tell how many tokens this text has at least."""
        if not self._longest:
            return 0
        counted = len(text.encode("utf-8", "surrogatepass").translate(None, self._left_out))
        return -(-counted // self._longest)
