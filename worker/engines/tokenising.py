"""Turning prompts into token ids for a model that runs elsewhere, so that no content becomes a control token.

Two sources can be trusted with that. A tokenizer's own file, read here: contents go through a copy of it from which
every added token was taken out, so that it knows none to find. And the tokenizer of a llama.cpp server, which can be
told not to parse control tokens. Both are tried out at the start, and what comes out for a content is looked over again
each time.
"""

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from worker.engines.base import EngineError, Prompt
from worker.engines.chat import ChatTemplate, encode
from worker.engines.lengths import LeastTokens

Tokenise = Callable[[str], list[int]]

_MARKUP = re.compile(r"<[^<>\s]+>")
"""How control tokens are spelled, in all templates known: something in angle brackets."""


_UNKNOWN = LeastTokens(0, ())
_LARGE = 64 * 1024
"""Characters of a text that is tokenised while no other such is in this process: the library takes hundreds of times
a text's size for as long, and a worker has as many texts at a time as slots."""


class UnsafeTokenizerError(ValueError):
    """The tokenizer cannot be used, or candidates' texts could become control tokens."""


class PromptTokenizer:
    """A chat template with a tokenizer of its two kinds of text. Thread-safe as far as its functions are.

    Args:
        template: the model's chat template.
        plain: tokenises contents; it must not know control tokens.
        whole: tokenises what the template wrote, control tokens and all.
        control: control tokens and how they are spelled; no content may become one of them.
        fingerprint: hash of what determines the ids.
        names: gives the ids of all tokens that are written as this text; None where that cannot be found out.
        least: how many tokens a text has at least.

    Raises:
        UnsafeTokenizerError: `plain` makes control tokens of what spells them.
    """

    def __init__(
        self,
        template: ChatTemplate,
        *,
        plain: Tokenise,
        whole: Tokenise,
        control: dict[str, int],
        fingerprint: str,
        names: Callable[[str], list[int]] | None = None,
        least: LeastTokens = _UNKNOWN,
    ) -> None:
        self._template = template
        self._plain = plain
        self._whole = whole
        self._control_ids = frozenset(control.values())
        self._written: dict[str, list[int]] = {}
        self.fingerprint = fingerprint
        self.names = names
        self._least = least
        for text in (*control, "".join(control), " ".join(control)):
            if not self._control_ids.isdisjoint(plain(text)):
                raise UnsafeTokenizerError(
                    "the tokenizer makes control tokens of a text that merely spells them, so a candidate could end "
                    "its own turn and speak for the judge"
                )

    def tokenise(self, text: str, most: int | None = None) -> list[int]:
        """The ids of a content.

        Raises:
            PromptTooLongError: it has more than so many, as its length alone tells.
            EngineError: the text is not valid Unicode, or came out with a control token in it.
        """
        try:
            text.encode()
        except UnicodeEncodeError:
            # Not chained: the error holds the text.
            raise EngineError("a text holds half of a surrogate pair, which no tokenizer takes") from None
        if most is not None:
            self._least.check(text, most)
        ids = self._plain(text)
        if not self._control_ids.isdisjoint(ids):
            raise EngineError("the tokenizer made a control token of a content; it is not sent")
        return ids

    def encode(self, prompt: Prompt, most: int | None = None) -> list[int]:
        """The ids of a conversation, with control tokens from the template alone.

        Args:
            prompt: the conversation.
            most: how many tokens the engine takes: a content that must have more is not tokenised.

        Raises:
            PromptTooLongError: there is such a content.
            EngineError: the template does not take this conversation, or a text cannot be tokenised.
        """
        return encode(
            self._template, prompt, control=self._template_ids, content=lambda text: self.tokenise(text, most)
        )

    def _template_ids(self, text: str) -> list[int]:
        """The ids of what the template wrote: a handful of texts, so each is tokenised once."""
        ids = self._written.get(text)
        if ids is None:
            ids = self._written[text] = self._whole(text)
        return ids


def from_folder(folder: Path) -> PromptTokenizer:
    """Read a tokenizer as Hugging Face keeps it: `tokenizer.json`, with the chat template beside it.

    Raises:
        UnsafeTokenizerError: a file is missing or cannot be used; the message says which.
        ChatTemplateError: the chat template cannot be used.
    """
    source = _read(folder / "tokenizer.json")
    described = _object(folder / "tokenizer.json", source)
    configuration = _object(folder / "tokenizer_config.json", _read(folder / "tokenizer_config.json"))
    template = _template(folder, configuration)
    # Nothing may be cut, filled up or put around a text behind our back.
    settled = described | {"truncation": None, "padding": None, "post_processor": None}
    added = settled.get("added_tokens") or []
    try:
        whole = Tokenizer.from_str(json.dumps(settled))
        plain = Tokenizer.from_str(json.dumps(settled | {"added_tokens": []}))
    except Exception as error:  # the library raises no class of its own
        raise UnsafeTokenizerError(f"{folder / 'tokenizer.json'} is no tokenizer: {error}") from error

    large = threading.Lock()

    def content(text: str) -> list[int]:
        with large if len(text) > _LARGE else nullcontext():
            return list(plain.encode(text, add_special_tokens=False).ids)

    def names(text: str) -> list[int]:
        return [token for token in range(whole.get_vocab_size()) if whole.decode([token]) == text]

    return PromptTokenizer(
        ChatTemplate(
            template, bos_token=spelled(configuration, "bos_token"), eos_token=spelled(configuration, "eos_token")
        ),
        plain=content,
        whole=lambda text: list(whole.encode(text, add_special_tokens=False).ids),
        control={token["content"]: token["id"] for token in added if token["special"]},
        fingerprint=_sha256(source, template),
        names=names,
        least=LeastTokens.of_hugging_face(settled),
    )


def from_llama_server(ask: Callable[[str, dict[str, Any] | None], Any]) -> PromptTokenizer:
    """Use a llama.cpp server's own tokenizer and chat template.

    Args:
        ask: sends a body to a path of the server, or gets the path where there is none, and returns the answer.

    Raises:
        UnsafeTokenizerError: the server does not tell texts from control tokens.
        ChatTemplateError: the chat template cannot be used.
    """

    def tokenise(text: str, *, control: bool = False, add: bool = False) -> list[int]:
        body = {"content": text, "parse_special": control, "add_special": add}
        ids: list[int] = ask("/tokenize", body)["tokens"]
        return ids

    properties = ask("/props", None)
    bos, eos, template = (str(properties.get(name) or "") for name in ("bos_token", "eos_token", "chat_template"))
    chat = ChatTemplate(template, bos_token=bos, eos_token=eos, add_bos=bool(tokenise("", add=True)))
    frame = "".join(text for text, control in chat.render(Prompt((("user", "x"),))) if control)
    control = _single_tokens({bos, eos, *_MARKUP.findall(frame)} - {""}, lambda text: tokenise(text, control=True))
    if not control:
        raise UnsafeTokenizerError(
            "the server's chat template and end token hold no control token that could be tried out: set "
            "NIGHTCOURT_ENGINE_TOKENIZER to a folder with the model's tokenizer.json"
        )
    return PromptTokenizer(
        chat,
        plain=tokenise,
        whole=lambda text: tokenise(text, control=True),
        control=control,
        fingerprint=_sha256(template, bos, eos),
    )


def _single_tokens(texts: Iterable[str], whole: Tokenise) -> dict[str, int]:
    found = {text: whole(text) for text in texts}
    return {text: ids[0] for text, ids in found.items() if len(ids) == 1}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UnsafeTokenizerError(
            f"{path} cannot be read ({error.strerror}): NIGHTCOURT_ENGINE_TOKENIZER takes the folder of the model's "
            "tokenizer.json and tokenizer_config.json"
        ) from None
    except UnicodeDecodeError:
        raise UnsafeTokenizerError(f"{path} is no text") from None


def _object(path: Path, text: str) -> dict[str, Any]:
    """What a file of JSON holds. Where git fetched no large files, a few lines that stand for it are in its place."""
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise UnsafeTokenizerError(f"{path} holds no JSON object: it may be a pointer of git-lfs, or cut short")
    return content


def _template(folder: Path, configuration: dict[str, Any]) -> str:
    """The chat template: in a file of its own, or within the configuration, alone or as one of several."""
    own = folder / "chat_template.jinja"
    if own.exists():
        return _read(own)
    template = configuration.get("chat_template")
    if isinstance(template, list):
        template = next((each["template"] for each in template if each.get("name") == "default"), None)
    if not isinstance(template, str):
        raise UnsafeTokenizerError(f"{folder} has no chat template, so the model's prompt format is unknown")
    return template


def spelled(configuration: dict[str, Any], name: str) -> str:
    """A token of the configuration as text: it stands there as text, or as an object that holds it."""
    token = configuration.get(name)
    return str(token.get("content", "")) if isinstance(token, dict) else str(token or "")


def _sha256(*texts: str) -> str:
    return hashlib.sha256("\x00".join(texts).encode()).hexdigest()
