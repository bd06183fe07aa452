"""The tokenizer of a Hugging Face folder, as an engine uses it: prompts to ids, the verdict's ids, ids to text."""

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from schemas.problems import ENGINE_FOLDER, Problem
from worker.engines.base import VERDICT_OPENING, Prompt, VerdictTokens
from worker.engines.chat import verdict_tokens
from worker.engines.tokenising import PromptTokenizer, from_folder, spelled

FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
"""What makes up a tokenizer; the first two have to be there."""

_LLAMA_3_VOCABULARY = 128_256
_LLAMA_3_TOKENS = VerdictTokens(a=32, b=33)
_LLAMA_3_OPENING = [15873]


class Vocabulary:
    """Tokenizer and chat template of a folder. Thread-safe.

    Raises:
        Problem: a file is missing, a text could become a control token, or the verdict is not one token.
    """

    def __init__(self, folder: Path) -> None:
        try:
            self._prompts: PromptTokenizer = from_folder(folder)
            self.verdict_tokens = verdict_tokens(self._prompts.tokenise)
            configuration = json.loads((folder / "tokenizer_config.json").read_bytes())
        except ValueError as error:
            raise Problem(ENGINE_FOLDER, f"The tokenizer in {folder} cannot be used: {error}.") from None
        self._tokens = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.opening = self._prompts.tokenise(VERDICT_OPENING)
        if self._tokens.get_vocab_size() == _LLAMA_3_VOCABULARY and (
            self.verdict_tokens != _LLAMA_3_TOKENS or self.opening != _LLAMA_3_OPENING
        ):
            raise Problem(
                ENGINE_FOLDER,
                f"The tokenizer in {folder} has the size of Llama 3's and writes the verdict otherwise: "
                f'"[[" as {self.opening}, "A" and "B" as {self.verdict_tokens.a} and {self.verdict_tokens.b}, and not '
                "as 15873, 32 and 33. Take the tokenizer that came with the model.",
            )
        end = self._tokens.token_to_id(spelled(configuration, "eos_token"))
        if end is None:
            raise Problem(ENGINE_FOLDER, f"{folder / 'tokenizer_config.json'} names no eos_token of the tokenizer.")
        self.end: int = end
        self._begin = spelled(configuration, "bos_token")
        self.fingerprint = f"sha256:{self._prompts.fingerprint}"

    def encode(self, prompt: Prompt, most: int | None = None) -> list[int]:
        """Apply the chat template and tokenise.

        Raises:
            PromptTooLongError: a text has more than so many tokens, as its length alone tells.
            EngineError: the template does not take this conversation, or a text cannot be tokenised.
        """
        return self._prompts.encode(prompt, most)

    def decode(self, ids: Sequence[int]) -> str:
        """What ids spell, control tokens left out."""
        return str(self._tokens.decode(list(ids), skip_special_tokens=True))

    def as_text(self, prompt: Prompt) -> str:
        """What the ids of a prompt spell, control tokens and all, without the one that begins a text."""
        spelled = str(self._tokens.decode(self.encode(prompt), skip_special_tokens=False))
        return spelled.removeprefix(self._begin)

    def up_to_opening(self, written: Sequence[int]) -> list[int] | None:
        """The ids up to the end of the last verdict opening; None where there is none or a token reaches beyond."""
        for end in range(len(written), 0, -1):
            if self._tokens.decode(written[max(0, end - 4) : end]).endswith(VERDICT_OPENING):
                return list(written[:end])
        return None
