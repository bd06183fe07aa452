"""TRL's dataset formats as its page of them documents them, for data sets that trainers are to read."""

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Message(_Row):
    """A turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class Preference(_Row):
    """Standard, explicit prompt."""

    prompt: str
    chosen: str
    rejected: str


class ConversationalPreference(_Row):
    """Conversational, explicit prompt."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]


class Unpaired(_Row):
    """Standard unpaired preference, for KTO."""

    prompt: str
    completion: str
    label: bool


class ConversationalUnpaired(_Row):
    """Conversational unpaired preference."""

    prompt: list[Message]
    completion: list[Message]
    label: bool


class Reward(Preference):
    """A preference row with the margin that RewardTrainer reads."""

    margin: float


class ConversationalReward(ConversationalPreference):
    """The same as conversations."""

    margin: float


FORMATS = {
    "dpo": (Preference, ConversationalPreference),
    "kto": (Unpaired, ConversationalUnpaired),
    "reward": (Reward, ConversationalReward),
}


NAMES = frozenset({"prompt", "chosen", "rejected", "completion", "label", "messages"})
"""Columns by which TRL tells formats apart. It leaves others alone."""


def check(rows: Iterable[dict[str, Any]], form: str, *, conversational: bool = False) -> None:
    """Hold every row against the one form that a whole data set must have, with whatever columns stand beside it.

    Raises:
        ValidationError: a row is something else.
    """
    model = FORMATS[form][conversational]
    names = NAMES.union(model.model_fields)
    read = [{name: value for name, value in row.items() if name in names} for row in rows]
    TypeAdapter(list[model]).validate_python(read)
