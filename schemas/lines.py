"""The forms that a line of a batch file may have, and the comparison that each stands for.

- OpenAI's request: `{"custom_id", "method": "POST", "url": "/v1/comparisons", "body": {a comparison}}`.
- A bare pair: the fields of a comparison; `id` for `custom_id`, and `label`, `topic`, `subset`, `dataset` may stand
  beside.
- A preference row: `{"prompt", "chosen", "rejected"}`, as text or conversations, or `chosen` and `rejected` as whole
  conversations, or whole texts, that share a beginning, which is the prompt then. Which of them is shown as response A
  is drawn from a hash of the row, so that it is fixed and yet no pattern, and the gold label is known. Other columns
  of such rows are left alone.
"""

import hashlib
import json
import re
from typing import Any, Literal, NamedTuple

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, from_json

from schemas.bodies import HAS_NUL
from schemas.comparison import ComparisonRequest, CustomId, is_plain
from schemas.problems import field_path

ENDPOINT = "/v1/comparisons"

_TURN = "\n\nAssistant:"
"""Opens an answer in transcripts of the form of Anthropic's HH-RLHF."""
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
"""NUL as JSON spells it; behind a backslash of its own it would be the characters of a text."""
_KINDS = ("subset", "topic", "dataset")
"""The columns that say which part of a set a row belongs to; the first that a row has counts."""
_BESIDE_A_PAIR = frozenset({"id", "label", *_KINDS})
_OPTIONS = frozenset({"order", "profile", "tie_margin", "metadata", "custom_id"})
_PREFERENCE = ("chosen", "rejected")
_RESPONSES = ("response_a", "response_b")
_NAME = TypeAdapter(CustomId)


class BadLineError(ValueError):
    """The line is no comparison. The message names field or column, and never quotes the text."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        param: str | None = None,
        custom_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.param = param
        self.custom_id = custom_id
        """What the line calls itself, where that much of it could be understood."""


class Line(NamedTuple):
    """A line of a batch file, understood."""

    request: dict[str, Any]
    """The fields of a comparison, validated; only those that the line gave."""
    label: Literal["A", "B"] | None
    """The better response where the line says it."""

    @property
    def custom_id(self) -> str | None:
        """What the line calls itself."""
        return self.request.get("custom_id")


def read_line(raw: bytes) -> Line:
    """Understand a line.

    Args:
        raw: UTF-8 JSON without its line break.

    Raises:
        BadLineError: it is no comparison in any form.
    """
    row = parse(raw)
    line = unwrap(row)
    # As JSON spells it; as itself it stands in none. One character is found in a twentieth of the time.
    nul = b"\\" in raw and b"\\u0000" in raw
    if not nul and is_plain(line.request):
        return line
    try:
        ComparisonRequest.model_validate(line.request)
    except ValidationError as error:
        errors = as_given(error.errors(include_url=False, include_input=False), row, line)
        first = errors[0]
        where = field_path(first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        # Of a line that is wrong as a whole, nothing was looked at.
        named = not any(each["loc"][:1] in {(), ("custom_id",)} for each in errors)
        raise BadLineError(
            "invalid_request",
            f"{where or 'line'}: {message}",
            param=where or None,
            custom_id=line.custom_id if named else None,
        ) from None
    if line.request.get("callback_url") is not None:
        raise BadLineError(
            "invalid_request",
            "callback_url: give it for the batch, with callback_comparisons",
            param="callback_url",
            custom_id=line.custom_id,
        )
    if nul and _NUL.search(raw):
        # Of a row that is the request itself every column was validated. What a key says that comes again is in none.
        column = None if line.request is row else _column_with_nul(row)
        raise BadLineError(
            "invalid_request",
            f"{column or 'line'}: {HAS_NUL}",
            param=column,
            custom_id=line.custom_id,
        )
    return line


def as_given(errors: list[ErrorDetails], row: dict[str, Any], line: Line) -> list[ErrorDetails]:
    """Say what is wrong with a comparison by the columns that its row has.

    Args:
        errors: what `ValidationError.errors()` gives for the line's request.
        row: as it was parsed.
        line: what `unwrap` made of it.
    """
    if _is_request(row) or not _is_preference(row):
        return errors
    chosen, rejected = _RESPONSES if line.label == "A" else reversed(_RESPONSES)
    columns = {chosen: "chosen", rejected: "rejected"}
    # Of a whole conversation the first turns are the prompt.
    whole = line.request["prompt"] is not row.get("prompt") and isinstance(line.request["prompt"], list)
    shared = len(line.request["prompt"]) if whole else 0

    def there(place: tuple[int | str, ...]) -> tuple[int | str, ...]:
        match place:
            case ("prompt", "turns", int(turn), *rest) if whole:
                return ("chosen", "turns", turn, *rest)
            case (str(name), "turns", int(turn), *rest) if name in columns:
                return (columns[name], "turns", turn + shared, *rest)
            case (str(name), *rest) if name in columns:
                return (columns[name], *rest)
        return place

    return [{**error, "loc": there(error["loc"])} for error in errors]


def _column_with_nul(row: dict[str, Any]) -> str | None:
    """Name the column that Postgres would choke on, of those that are left alone: a line is kept as it came."""
    found = (name for name, value in row.items() if "\0" in name or _has_nul(value))
    return next((field_path((name,)) for name in found), None)


def _has_nul(value: Any) -> bool:
    if isinstance(value, dict):
        return any("\0" in name or _has_nul(held) for name, held in value.items())
    if isinstance(value, list):
        return any(map(_has_nul, value))
    return isinstance(value, str) and "\0" in value


def parse(raw: bytes) -> dict[str, Any]:
    """Parse a line to an object.

    Raises:
        BadLineError: it is not JSON, or not an object; the message names the column.
    """
    try:
        value = from_json(raw, allow_inf_nan=False, cache_strings="keys")
    except ValueError as error:
        message = str(error)
        column = message.rpartition(" column ")[2]
        raise BadLineError(
            "invalid_json_line",
            f"not JSON: {message.rpartition(' at line ')[0]} at column {column}",
        ) from None
    if not isinstance(value, dict):
        raise BadLineError("invalid_json_line", "a line is a JSON object")
    return value


def unwrap(row: dict[str, Any]) -> Line:
    """Find the comparison in a parsed line, whatever its form. Fields are not validated.

    Raises:
        BadLineError: the line has the form of a request, but to somewhere else, or a label that is none.
    """
    if _is_request(row):
        return _request(row)
    if _is_preference(row):
        return _preference(row)
    fields = row
    if not _BESIDE_A_PAIR.isdisjoint(row):
        fields = {name: value for name, value in row.items() if name not in _BESIDE_A_PAIR}
        _name_by_id(fields, row)
    label = row.get("label")
    if label not in ("A", "B", None):  # a tuple, since a label may be anything that JSON can say
        raise BadLineError("invalid_request", 'label: is "A" or "B", the better response', param="label")
    return Line(fields, label)


def subset_of(row: dict[str, Any]) -> str | None:
    """Tell which part of a set a parsed line belongs to, where it says so."""
    said = next((row[kind] for kind in _KINDS if row.get(kind) is not None), None)
    return None if said is None else str(said)


def group_of(prompt: Any) -> str:
    """Name a prompt by its text: pairs on one prompt are of one group, however and wherever they were read.

    Draws of prompts go by the order of these names, so that other names of the same prompts would give others.
    """
    return hashlib.sha256(json.dumps(prompt, sort_keys=True).encode()).hexdigest()[:16]


def _name_by_id(fields: dict[str, Any], row: dict[str, Any]) -> None:
    """Take a row's `id` for the `custom_id` of its comparison, where it has no other."""
    if row.get("id") is not None:
        fields.setdefault("custom_id", str(row["id"]))


def _is_request(row: dict[str, Any]) -> bool:
    return "body" in row and "url" in row


def _request(row: dict[str, Any]) -> Line:
    if row.get("method") != "POST" or row["url"] != ENDPOINT:
        raise BadLineError("invalid_request", f"method and url must be POST and {ENDPOINT}", param="url")
    if not isinstance(row["body"], dict):
        raise BadLineError("invalid_request", "body: Input should be an object", param="body")
    body = dict(row["body"])
    body.pop("model", None)  # clients of OpenAI's shapes send one; the judge is the service's
    if row.get("custom_id") is not None:
        body["custom_id"] = row["custom_id"]
    return Line(request=body, label=None)


def _is_preference(row: dict[str, Any]) -> bool:
    """Tell a preference row: it has both of its columns, or at least one of them and none of a pair's."""
    if "chosen" not in row and "rejected" not in row:
        return False
    return ("chosen" in row and "rejected" in row) or ("response_a" not in row and "response_b" not in row)


def _name(row: dict[str, Any]) -> str | None:
    """Find what a row calls itself, where a comparison could be called so."""
    fields = {"custom_id": row["custom_id"]} if row.get("custom_id") is not None else {}
    _name_by_id(fields, row)
    try:
        return _NAME.validate_python(fields.get("custom_id"), strict=True)
    except ValidationError:
        return None


def _preference(row: dict[str, Any]) -> Line:
    missing = next((name for name in _PREFERENCE if name not in row), None)
    if missing is not None:
        raise BadLineError("invalid_request", f"{missing}: Field required", param=missing, custom_id=_name(row))
    prompt, chosen, rejected = row.get("prompt"), row["chosen"], row["rejected"]
    if prompt is None or (_whole(chosen) and _whole(rejected)):
        prompt, chosen, rejected = _shared_beginning(chosen, rejected)
    mark = hashlib.sha256(repr((prompt, chosen, rejected)).encode("utf-8", "surrogatepass")).digest()
    label: Literal["A", "B"] = "A" if mark[0] < 128 else "B"  # noqa: PLR2004 - half of a byte's values
    first, second = (chosen, rejected) if label == "A" else (rejected, chosen)
    fields = {name: row[name] for name in _OPTIONS if row.get(name) is not None}
    _name_by_id(fields, row)
    fields |= {"prompt": prompt, "response_a": first, "response_b": second}
    return Line(request=fields, label=label)


def _whole(response: Any) -> bool:
    """Tell whether this is a whole conversation: an answer does not begin with what the user said."""
    return (
        isinstance(response, list)
        and bool(response)
        and isinstance(response[0], dict)
        and response[0].get("role") in {"system", "user"}
    )


def _shared_beginning(chosen: Any, rejected: Any) -> tuple[Any, Any, Any]:
    """Split whole conversations or texts into the prompt that they share and the answers in which they differ.

    Raises:
        BadLineError: they share no beginning, or are neither both conversations nor both texts.
    """
    shared = 0
    if isinstance(chosen, list) and isinstance(rejected, list):
        while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
            shared += 1
    elif isinstance(chosen, str) and isinstance(rejected, str):
        pairs = zip(chosen, rejected, strict=False)
        alike = next((at for at, (one, other) in enumerate(pairs) if one != other), min(len(chosen), len(rejected)))
        shared = _end_of_prompt(chosen[:alike])
    if not shared:
        raise BadLineError(
            "invalid_request",
            "prompt: is missing; it may only where chosen and rejected are whole conversations, or texts, that begin "
            "with the same prompt",
            param="prompt",
        )
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _end_of_prompt(shared: str) -> int:
    """Find where the prompt ends in what two texts share: an answer may begin alike, too.

    Where the text is a transcript, it ends with the mark of the last turn; else before the last word's space, so that
    no word is cut in two.
    """
    turn = shared.rfind(_TURN)
    if turn >= 0:
        return turn + len(_TURN)
    return max(shared.rfind(" "), shared.rfind("\n") + 1) if shared.strip() else 0
