"""Ids as producers see them, and how they name rows.

A filing is what was filed together: a batch, or one single comparison. Its id is a UUID of version 7, so that
ids sort by time. A comparison is a line of a filing; a single comparison is line 0 of its own.
"""

import os
import re
import time
from typing import Literal, NamedTuple
from uuid import UUID

SINGLE_LINE = 0
"""The line number of a comparison that was filed by itself. Lines of a batch count from 1."""
LAST_LINE = 2**31 - 1
"""No line of any batch has a greater number: it is that of Postgres's column."""

View = Literal["output", "errors"]
"""OpenAI's two files of a batch. We store neither: each is a view of the batch, written out when it is read."""

_VIEW_ID = re.compile(r"file-(output|errors)-([0-9a-f]{32})")
_COMPARISON_ID = re.compile(r"cmp_([0-9a-f]{32})(?:_([1-9][0-9]{0,8}))?")


class ComparisonKey(NamedTuple):
    """Where a comparison stands: the primary key of `comparisons` and `outcomes`."""

    filing_id: UUID
    line: int


def new_filing_id() -> UUID:
    """Make a UUID of version 7 (RFC 9562, 5.7): 48 bits of Unix milliseconds, then randomness."""
    milliseconds = time.time_ns() // 1_000_000
    value = (milliseconds << 80) | int.from_bytes(os.urandom(10))
    value = value & ~(0xF << 76) | (0x7 << 76)
    value = value & ~(0x3 << 62) | (0x2 << 62)
    return UUID(int=value)


def comparison_id(key: ComparisonKey) -> str:
    """Spell a comparison's id: `cmp_<filing>` for a single one, `cmp_<filing>_<line>` in a batch."""
    suffix = "" if key.line == SINGLE_LINE else f"_{key.line}"
    return f"cmp_{key.filing_id.hex}{suffix}"


def parse_comparison_id(text: str) -> ComparisonKey | None:
    """Read a comparison's id; None where the text is no such id."""
    match = _COMPARISON_ID.fullmatch(text)
    if match is None:
        return None
    return ComparisonKey(UUID(hex=match[1]), int(match[2] or SINGLE_LINE))


def file_id(filing_id: UUID) -> str:
    """Spell an uploaded file's id."""
    return f"file-{filing_id.hex}"


def view_id(view: View, batch: UUID) -> str:
    """Spell the id of a batch's output or error file."""
    return f"file-{view}-{batch.hex}"


def parse_view_id(text: str) -> tuple[UUID, View] | None:
    """Read the id of an output or error file: its batch, and which of the two; None where the text is no such id."""
    match = _VIEW_ID.fullmatch(text)
    if match is None:
        return None
    return UUID(hex=match[2]), "output" if match[1] == "output" else "errors"


def batch_id(filing_id: UUID) -> str:
    """Spell a batch's id."""
    return f"batch_{filing_id.hex}"


def event_id(event: UUID) -> str:
    """Spell an event's id, which is the `webhook-id` of its callbacks."""
    return f"evt_{event.hex}"


def callback_id(callback: UUID) -> str:
    """Spell a callback's id."""
    return f"cbk_{callback.hex}"


def endpoint_id(endpoint: UUID) -> str:
    """Spell the id of a callback endpoint."""
    return f"cep_{endpoint.hex}"


def key_id(key: UUID) -> str:
    """Spell the id of a key, with which the key itself begins."""
    return f"nck_{key.hex}"


def parse_prefixed(text: str, prefix: str) -> UUID | None:
    """Read an id of a prefix and 32 hexadecimal digits; None where the text is no such id."""
    match = re.fullmatch(re.escape(prefix) + "([0-9a-f]{32})", text)
    return UUID(hex=match[1]) if match else None
