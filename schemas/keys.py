"""What a key of the service is: how it is spelled, what it may do, and within which limits."""

import re
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Literal, NamedTuple
from uuid import UUID

from pydantic import BaseModel, Field

MOST, MOST_TOKENS = 2**31 - 1, 2**63 - 1
"""The largest limit of a key that can be stored, and that of its tokens."""
_KEY = re.compile(r"nck_([0-9a-f]{32})_([A-Za-z0-9_-]{43})")


class Scope(StrEnum):
    """What a key may be used for. A key has one or more; `admin` includes the others."""

    SUBMIT = "submit"
    """File comparisons, upload files, run batches, and call off what was filed."""
    READ = "read"
    """Read comparisons, batches, files, callbacks and reports."""
    ADMIN = "admin"
    """Register and remove callback endpoints, rotate their secrets, replay callbacks; and all of the above."""


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """The limits of one key; None where the setting's default holds."""

    requests_per_second: float | None = None
    queued_comparisons: int | None = None
    tokens_per_day: int | None = None
    concurrent_batches: int | None = None
    max_body_bytes: int | None = None


class SpelledKey(NamedTuple):
    """A key taken apart: what names it, and what proves it."""

    id: UUID
    secret: str


def spell_key(key: SpelledKey) -> str:
    """Spell a key as it is sent: its id, and its secret after that."""
    return f"nck_{key.id.hex}_{key.secret}"


def parse_key(text: str) -> SpelledKey | None:
    """Read a key; None where the text is none."""
    match = _KEY.fullmatch(text)
    return SpelledKey(UUID(hex=match[1]), match[2]) if match else None


class Key(BaseModel):
    """What is known of a key. Its secret is not."""

    id: str = Field(description="`nck_` and 32 hexadecimal digits, with which the key itself begins")
    tenant: str
    name: str | None
    scopes: list[Scope]
    status: Literal["active", "expired", "revoked"]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    replaces: str | None = Field(description="The id of the key that this one was made to take the place of")
    limits: KeyLimits


class NewKey(Key):
    """A key that was just made."""

    key: str = Field(description="What is sent as `Authorization: Bearer`; shown this once")


class Successor(NewKey):
    """A key that was made in place of another."""

    previous_valid_until: datetime = Field(description="When the key that it replaces ends")
