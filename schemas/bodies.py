"""What any body of a request keeps to: fields that it knows, and no more members than it takes little time to refuse.

Each unknown member and each bad pair is an error of its own, which takes far longer to tell than to send.
"""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

_MEMBERS = 64
"""More than any object here has fields. The errors of as many are told one by one."""

METADATA_PAIRS = 16


def storable(value: object) -> object:
    """Refuse text that Postgres cannot store, before anything else is said of it."""
    if isinstance(value, str):
        if "\x00" in value:
            raise ValueError(HAS_NUL)
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"contains a lone surrogate at character {error.start}, which is not text; remove it"
            ) from None
    return value


HAS_NUL = "contains a NUL character (U+0000), which cannot be stored; remove it"


def _few_pairs(value: object) -> object:
    """Count before looking at each: what is said of a dictionary's length comes after its pairs."""
    if isinstance(value, dict) and len(value) > METADATA_PAIRS:
        raise ValueError(f"Dictionary should have at most {METADATA_PAIRS} items, not {len(value)}")
    return value


MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=64), BeforeValidator(storable)]
MetadataValue = Annotated[str, StringConstraints(max_length=512), BeforeValidator(storable)]
Metadata = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=METADATA_PAIRS), BeforeValidator(_few_pairs)]


class Body(BaseModel):
    """An object that is sent. One with members that it does not know is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _few_members(cls, value: Any) -> Any:
        if isinstance(value, dict) and len(value) > _MEMBERS:
            raise ValueError(f"has {len(value)} members, and nothing here takes more than {_MEMBERS}")
        return value
