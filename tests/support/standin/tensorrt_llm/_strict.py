"""Classes made from the table: they take what the real ones take, and refuse everything else."""

from dataclasses import field, make_dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, create_model

from tensorrt_llm._surface import Surface


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True, strict=True, arbitrary_types_allowed=True)


def model(name: str, surface: Surface) -> type[BaseModel]:
    """A class that refuses unknown names with a ValueError, at construction and at assignment."""
    return create_model(name, __base__=_Strict, **{key: (kind, default) for key, (kind, default) in surface.items()})


def record(name: str, surface: Surface) -> type:
    """A dataclass with slots and keywords alone, as which it refuses unknown names and attributes."""

    def check(self: Any) -> None:
        for key, (kind, _) in surface.items():
            TypeAdapter(kind).validate_python(getattr(self, key), strict=True)

    fields = [
        (key, Any)
        if default is ...
        else (key, Any, field(default_factory=lambda d=default: list(d) if isinstance(d, list) else d))
        for key, (_, default) in surface.items()
    ]
    made = make_dataclass(name, fields, kw_only=True, slots=True)
    made.check = check
    return made
