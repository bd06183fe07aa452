"""What the stand-ins of TensorRT-LLM and transformers have for a model: opinions that are hashes of the answers.

The better answer is the one whose hash is higher, whichever slot it stands in, with a little leaning to the first. So
both orders of a pair mostly agree, as they do with a judge, and two stand-ins with the same tokenizer say the same.
"""

import functools
import hashlib
import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

MASS = 0.97
_ELSE = -5.0
_LEANING = 0.2
_ANSWERS = re.compile(r"Assistant A's Answer\]\n(.*?)\n\[The End.*Assistant B's Answer\]\n(.*?)\n\[The End", re.DOTALL)


@functools.cache
def behaviour() -> dict[str, Any]:
    """How a test wants the stand-ins to behave, from the environment; read once a process."""
    return json.loads(os.environ.get("NIGHTCOURT_STANDIN", "{}"))  # noqa: TID251 - tests reach child processes by it


class StandInModel:
    """Opinions on prompts, by the tokenizer of a folder."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        config = json.loads((folder / "config.json").read_text())
        self.vocabulary = config.get("vocab_size") or config["pretrained_config"]["vocab_size"]
        a, b = (self.tokenizer.encode(f"[[{slot}]]", add_special_tokens=False).ids for slot in "AB")
        [(self.a, self.b)] = [pair for pair in zip(a, b, strict=True) if pair[0] != pair[1]]

    def log_odds(self, ids: Sequence[int]) -> float:
        """The opinion on a prompt."""
        text = self.tokenizer.decode(list(ids), skip_special_tokens=False)
        found = _ANSWERS.search(text)
        if found is None:
            return _spread(text)
        return _spread(found[1]) - _spread(found[2]) + _LEANING

    def row(self, log_odds: float) -> list[float]:
        """Logits over the whole vocabulary: `MASS` of the probability on A and B, the rest spread evenly."""
        rest = (self.vocabulary - 2) * math.exp(_ELSE)
        both = math.exp(log_odds / 2) + math.exp(-log_odds / 2)
        level = math.log(rest * MASS / (1 - MASS) / both)
        row = [_ELSE] * self.vocabulary
        row[self.a], row[self.b] = level + log_odds / 2, level - log_odds / 2
        return row


def _spread(text: str) -> float:
    digest = hashlib.blake2b(text.strip().encode(), digest_size=8).digest()
    return 6.0 * (int.from_bytes(digest, "big") / 2**64 - 0.5)
