"""A comparison as it is filed, and as it is read back."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
)

from schemas.bodies import Body, Metadata, storable
from schemas.pages import Listed, Page
from schemas.states import ComparisonStatus
from schemas.verdict import Verdict

Profile = Literal["own", "card", "pocket", "rewardbench"]
Orders = Literal["both", "ab", "ba"]


Text = Annotated[str, BeforeValidator(storable)]
Filled = Annotated[str, StringConstraints(min_length=1), BeforeValidator(storable)]
_NAME_CHARACTERS = 256
CustomId = Annotated[str, StringConstraints(min_length=1, max_length=_NAME_CHARACTERS), BeforeValidator(storable)]

CallbackUrl = Annotated[str, StringConstraints(min_length=1, max_length=2048), BeforeValidator(storable)]


class _Strict(Body):
    model_config = ConfigDict(strict=True)


class PromptTurn(_Strict):
    """One turn of the conversation that both responses answer."""

    role: Literal["system", "user", "assistant"]
    content: Filled


class ResponseTurn(_Strict):
    """One turn of a response that is itself a conversation."""

    role: Literal["user", "assistant"]
    content: Text


def _text_or_turns(value: object) -> str | None:
    if isinstance(value, str):
        return "text"
    return "turns" if isinstance(value, list | tuple) else None


# A tagged union, so that a problem is told in the form that the caller meant, not in both.
_FORM = Discriminator(
    _text_or_turns,
    custom_error_type="text_or_turns",
    custom_error_message="Input should be text or a list of turns",
)


def _ends_with_user(turns: list[PromptTurn]) -> list[PromptTurn]:
    if turns[-1].role != "user":
        raise ValueError("the last turn must be the user's, since the responses answer it")
    return turns


def _alternates(turns: list[ResponseTurn]) -> list[ResponseTurn]:
    roles = [turn.role for turn in turns]
    if roles != [("assistant", "user")[index % 2] for index in range(len(roles))] or len(roles) % 2 == 0:
        raise ValueError("turns must alternate, beginning and ending with the assistant's")
    return turns


# Of turns that are wrong the first is told: a thousand of them with an error for each member would take minutes.
_TURNS = Field(min_length=1, max_length=1024, fail_fast=True)

PromptInput = Annotated[
    Annotated[Filled, Tag("text")] | Annotated[list[PromptTurn], _TURNS, AfterValidator(_ends_with_user), Tag("turns")],
    _FORM,
]
ResponseInput = Annotated[
    Annotated[Text, Tag("text")] | Annotated[list[ResponseTurn], _TURNS, AfterValidator(_alternates), Tag("turns")],
    _FORM,
]


class ComparisonRequest(_Strict):
    """One prompt and two responses, to be judged."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "prompt": "What is the capital of Australia?",
                "response_a": "Sydney.",
                "response_b": "Canberra.",
            }
        }
    )

    prompt: PromptInput = Field(
        description="The question as text, or a conversation of turns that ends with the user's"
    )
    response_a: ResponseInput = Field(
        description="The first answer as text, or turns that begin and end with the assistant's. May be empty "
        "text: a system that said nothing is judged for it"
    )
    response_b: ResponseInput = Field(description="The second answer, in the same form")
    order: Orders = Field(
        default="both",
        description="Which orders to ask. 'both' asks twice and cancels the judge's leaning to a slot",
    )
    profile: Profile = Field(
        default="own",
        description="How it is put to the judge, word for word; 'own' is the form that the judge was made for",
    )
    tie_margin: float | None = Field(
        default=None,
        ge=0,
        lt=0.5,
        allow_inf_nan=False,
        description="Call it a tie when probability_a is within this of 0.5. Without it there are no ties",
    )
    custom_id: CustomId | None = Field(default=None, description="Your own name for it, given back as it is")
    metadata: Metadata = Field(default_factory=dict, description="Up to 16 pairs of text, given back as they are")
    callback_url: CallbackUrl | None = Field(
        default=None, description="Where a signed callback goes when it has ended, signed with your default secret"
    )


def is_plain(parsed: dict[str, Any]) -> bool:
    """Tell whether what `schemas.lines.parse` gave is three texts, with a name or none.

    If there is no NUL in it, it is surely a `ComparisonRequest`: half of a surrogate pair does not pass there. Most
    lines of large files are such, and it takes a fraction of the time to see.
    """
    texts = parsed.get("prompt"), parsed.get("response_a"), parsed.get("response_b")
    name = parsed.get("custom_id", "none")
    return (
        isinstance(texts[0], str)
        and isinstance(texts[1], str)
        and isinstance(texts[2], str)
        and texts[0] != ""
        and isinstance(name, str)
        and 0 < len(name) <= _NAME_CHARACTERS
        and len(parsed) == len(texts) + ("custom_id" in parsed)
    )


class ComparisonError(BaseModel):
    """Why a comparison ended without a verdict."""

    code: str
    message: str


class Comparison(Listed):
    """A comparison as it stands: what was asked about it, and the verdict once there is one."""

    object: Literal["comparison"] = "comparison"
    status: ComparisonStatus
    created_at: datetime
    decided_at: datetime | None
    custom_id: str | None
    metadata: dict[str, str]
    label: Literal["A", "B"] | None = Field(
        default=None,
        description="The better response by the line of the batch: the `chosen` one of a preference row, or what the "
        "line's own `label` says; null where it says nothing, and for a comparison that was filed singly",
    )
    verdict: Verdict | None
    error: ComparisonError | None
    waiting_for: str | None = Field(
        default=None,
        description="Why it is not being judged yet, in a sentence, where a single comparison is read; null where a "
        "worker has it, and once it is decided",
    )


class ComparisonPage(Page[Comparison]):
    """A page of comparisons, newest first. Ask for the next with `after=last_id`."""
