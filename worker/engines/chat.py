"""A model's own chat template, rendered so that no content can ever become a control token.

Chat templates are Jinja programs that paste contents between control tokens, and a tokenizer that then
parses the whole text cannot tell a control token of the template from one that a candidate spelled. So the
template never sees the contents here: it is rendered with unguessable marks in their place, the result is
split at the marks, and the contents are put between the pieces. Only the pieces that the template wrote are
to be parsed for control tokens. Pieces and contents are tokenised one by one, so no token reaches across an
edge.

A template that looks into contents (to find a tool call, say) finds nothing, which is what a judge wants.
What it does to white space at the ends of a content (Llama 3.1 trims it, ChatML does not) is found out by
letting it have the content's own white space around the mark.
"""

import re
import secrets
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple, NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from worker.engines.base import VERDICT_OPENING, Prompt, TemplateRefusesError, VerdictTokens

PINNED_DATE = datetime(2024, 7, 26, tzinfo=UTC)
"""What every template takes for today, as a prompt must not change at midnight: Llama 3.1's default."""

_DATE_STRING = "26 Jul 2024"
_TEMPLATE_FAULTS = (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


class ChatTemplateError(ValueError):
    """The model's chat template cannot be used, or not for this conversation."""


class VerdictTokenError(ValueError):
    """The model's tokenizer does not write the two verdicts so that one token tells them apart."""


class Segment(NamedTuple):
    """A part of a rendered conversation."""

    text: str
    control: bool
    """Whether the template wrote it, so that it is to be parsed for control tokens. Contents never are."""


class ChatTemplate:
    """One model's chat template. Thread-safe.

    Args:
        source: the template, in Jinja.
        bos_token: the token that begins a text, as the template may want to write it.
        eos_token: the token that ends one.
        add_bos: whether the model expects `bos_token` first; it is put there only if the template does not.

    Raises:
        ChatTemplateError: the template cannot render even one user message.
    """

    def __init__(self, source: str, *, bos_token: str = "", eos_token: str = "", add_bos: bool = False) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals.update(
            raise_exception=_raise_exception,
            strftime_now=PINNED_DATE.strftime,
            date_string=_DATE_STRING,
            bos_token=bos_token,
            eos_token=eos_token,
            tools=None,
            documents=None,
        )
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise ChatTemplateError(f"the chat template is not valid Jinja: {error}") from error
        self._prefix = bos_token if add_bos else ""
        self._frames: dict[tuple[str, ...], list[str]] = {}
        self._frame(("user",))

    def render(self, prompt: Prompt) -> list[Segment]:
        """The conversation as the model expects it, up to and with the opening of the assistant's turn.

        Raises:
            ChatTemplateError: the template does not take this conversation (some take no system message).
        """
        roles = tuple(role for role, _ in prompt.messages)
        frame = self._frame(roles)
        start = frame[0] if frame[0].startswith(self._prefix) else self._prefix + frame[0]
        segments = [Segment(start, control=True)]
        for index, (_, content) in enumerate(prompt.messages):
            kept = content
            if content != content.strip():
                kept = self._with_kept_space(roles, frame, index, content)
            segments.append(Segment(kept, control=False))
            segments.append(Segment(frame[index + 1], control=True))
        segments.append(Segment(prompt.opening, control=False))
        return [segment for segment in segments if segment.text]

    def _frame(self, roles: tuple[str, ...]) -> list[str]:
        """What the template writes before, between and after contents of these roles."""
        frame = self._frames.get(roles)
        if frame is None:
            frame = self._frames[roles] = self._pieces(roles, [("", "")] * len(roles))
        return frame

    def _with_kept_space(self, roles: tuple[str, ...], frame: list[str], index: int, content: str) -> str:
        """The content with as much of its outer white space as the template lets through."""
        core = content.strip()
        lead = content[: len(content) - len(content.lstrip())]
        trail = content[len(lead) + len(core) :]
        padding = [("", "")] * len(roles)
        padding[index] = (lead, trail)
        pieces = self._pieces(roles, padding)
        kept_lead = pieces[index].removeprefix(frame[index])
        kept_trail = pieces[index + 1].removesuffix(frame[index + 1])
        if not (lead.endswith(kept_lead) and trail.startswith(kept_trail)):
            raise ChatTemplateError("the chat template changes the white space of contents in an unknown way")
        return kept_lead + core + kept_trail

    def _pieces(self, roles: Sequence[str], padding: Sequence[tuple[str, str]]) -> list[str]:
        """Render with a mark for each content, white space around it, and split the result at the marks."""
        marks = [secrets.token_hex(16) for _ in roles]
        messages = [
            {"role": role, "content": lead + mark + trail}
            for role, mark, (lead, trail) in zip(roles, marks, padding, strict=True)
        ]
        try:
            text = self._template.render(messages=messages, add_generation_prompt=True)
        except _TEMPLATE_FAULTS as error:
            raise ChatTemplateError(f"the chat template refuses a conversation of {roles}: {error}") from error
        parts = re.split(f"({'|'.join(marks)})", text) if marks else [text]
        if parts[1::2] != marks:
            raise ChatTemplateError("the chat template does not write each content once, whole and in order")
        return parts[0::2]


def verdict_tokens(tokenise: Callable[[str], list[int]]) -> VerdictTokens:
    """Find the one token that tells "[[A]]" from "[[B]]", and check that it comes right after "[[".

    Args:
        tokenise: the engine's own tokenizer, special-token parsing off, nothing added.

    Raises:
        VerdictTokenError: one forward pass after the opening would not decide.
    """
    opening = tokenise(VERDICT_OPENING)
    for_a, for_b = (tokenise(f"{VERDICT_OPENING}{slot}]]") for slot in "AB")
    at = len(opening)
    differing = [i for i, pair in enumerate(zip(for_a, for_b, strict=False)) if pair[0] != pair[1]]
    if len(for_a) != len(for_b) or differing != [at] or for_a[:at] != opening:
        raise VerdictTokenError(
            f'this model\'s tokenizer writes "[[" as {opening}, "[[A]]" as {for_a} and "[[B]]" as {for_b}: '
            "the verdicts must begin with the tokens of the opening and differ in the one token after it. "
            "Judge with another model."
        )
    return VerdictTokens(a=for_a[at], b=for_b[at])


def _raise_exception(message: str) -> NoReturn:
    """What templates call to refuse a conversation."""
    raise TemplateError(message)


def encode(
    template: ChatTemplate, prompt: Prompt, *, control: Callable[[str], list[int]], content: Callable[[str], list[int]]
) -> list[int]:
    """Tokenise a conversation, with control tokens from the template alone.

    Args:
        template: the model's.
        prompt: the conversation.
        control: tokenises what the template wrote, control tokens parsed.
        content: tokenises what is text and nothing else.

    Raises:
        TemplateRefusesError: the template does not take this conversation.
        EngineError: a text cannot be tokenised.
    """
    try:
        segments = template.render(prompt)
    except ChatTemplateError as error:
        raise TemplateRefusesError(str(error)) from error
    ids: list[int] = []
    for text, written in segments:
        ids += control(text) if written else content(text)
    return ids
