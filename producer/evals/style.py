"""The style of an answer: what Chatbot Arena's and Arena-Hard's style control count."""

import re
from typing import NamedTuple

_CODE = re.compile(r"```.*?```", re.DOTALL)
_HEADER = re.compile(r"^ {0,3}#{1,6}\s", re.MULTILINE)
# No newline among the blanks: each of a run of empty lines would be the start of a search through all that follow.
_LIST = re.compile(r"^[^\S\n]*(?:[-*+]|\d+[.)])\s", re.MULTILINE)
_BOLD = re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__")


class Style(NamedTuple):
    """Counts over an answer's text; those of Markdown outside of code blocks."""

    length: int
    """Characters."""
    headers: int
    lists: int
    """Items."""
    bold: int


NO_STYLE = Style(0, 0, 0, 0)
"""Of an empty answer."""


def style(text: str) -> Style:
    """Count the style of a text."""
    prose = _CODE.sub("", text)
    return Style(len(text), *(len(pattern.findall(prose)) for pattern in (_HEADER, _LIST, _BOLD)))
