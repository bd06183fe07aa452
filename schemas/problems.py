"""Every error that a user can see, in one table each: problems of a request, and reasons of an outcome.

Over HTTP a problem is an RFC 9457 document with a stable `code`; the command line prints the same title and detail.
"""

from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel, Field, ValidationError


@dataclass(frozen=True, slots=True)
class ProblemKind:
    """A kind of problem: a code that never changes, the HTTP status it goes with, and a title."""

    code: str
    status: HTTPStatus
    title: str


MALFORMED_JSON = ProblemKind("malformed_json", HTTPStatus.BAD_REQUEST, "The body is not JSON")
INVALID_REQUEST = ProblemKind("invalid_request", HTTPStatus.UNPROCESSABLE_ENTITY, "The request does not fit its schema")
INVALID_HEADER = ProblemKind("invalid_header", HTTPStatus.BAD_REQUEST, "A header has a value it cannot have")
BODY_TOO_LARGE = ProblemKind(
    "body_too_large", HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The body is larger than this server takes"
)
BODY_TOO_SLOW = ProblemKind("body_too_slow", HTTPStatus.REQUEST_TIMEOUT, "The body did not come in time")
UNSUPPORTED_MEDIA_TYPE = ProblemKind(
    "unsupported_media_type", HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "The body is of a type not taken here"
)
NOT_FOUND = ProblemKind("not_found", HTTPStatus.NOT_FOUND, "There is no such thing here")
METHOD_NOT_ALLOWED = ProblemKind(
    "method_not_allowed", HTTPStatus.METHOD_NOT_ALLOWED, "This path does not take that method"
)
IDEMPOTENCY_KEY_REUSED = ProblemKind(
    "idempotency_key_reused",
    HTTPStatus.UNPROCESSABLE_ENTITY,
    "This Idempotency-Key was used before with another body",
)
KEY_MISSING = ProblemKind("key_missing", HTTPStatus.UNAUTHORIZED, "A key is needed")
KEY_INVALID = ProblemKind("key_invalid", HTTPStatus.UNAUTHORIZED, "The key is not valid")
TOO_MANY_WRONG_KEYS = ProblemKind(
    "too_many_wrong_keys", HTTPStatus.TOO_MANY_REQUESTS, "Too many wrong keys came from this address"
)
RATE_LIMITED = ProblemKind("rate_limited", HTTPStatus.TOO_MANY_REQUESTS, "The key sends too many requests")
QUEUE_FULL = ProblemKind("queue_full", HTTPStatus.TOO_MANY_REQUESTS, "Too many comparisons are queued")
TOO_MANY_BATCHES = ProblemKind("too_many_batches", HTTPStatus.TOO_MANY_REQUESTS, "Too many batches have not ended")
TOO_MANY_STREAMS = ProblemKind("too_many_streams", HTTPStatus.TOO_MANY_REQUESTS, "Too many streams of events are open")
TOKENS_USED_UP = ProblemKind("tokens_used_up", HTTPStatus.TOO_MANY_REQUESTS, "The tokens of the day are used up")
FORM_REFUSED = ProblemKind("form_refused", HTTPStatus.FORBIDDEN, "The form was not sent from here")
SCOPE_MISSING = ProblemKind("scope_missing", HTTPStatus.FORBIDDEN, "The key may not do this")
BAD_COMPRESSION = ProblemKind("bad_compression", HTTPStatus.BAD_REQUEST, "The file's compression cannot be undone")
MALFORMED_UPLOAD = ProblemKind("malformed_upload", HTTPStatus.BAD_REQUEST, "The upload is not a form with a file")
BATCH_ENDED = ProblemKind("batch_ended", HTTPStatus.CONFLICT, "The batch has already ended")
BATCH_RUNNING = ProblemKind("batch_running", HTTPStatus.CONFLICT, "The batch has not ended yet")
ALREADY_DECIDED = ProblemKind("already_decided", HTTPStatus.CONFLICT, "The comparison has already ended")
PART_OF_A_BATCH = ProblemKind("part_of_a_batch", HTTPStatus.CONFLICT, "The comparison is a line of a batch")
NO_CALLBACK_SECRET = ProblemKind(
    "no_callback_secret", HTTPStatus.CONFLICT, "There is no secret yet to sign callbacks with"
)
TOO_MANY_RECEIVERS = ProblemKind("too_many_receivers", HTTPStatus.CONFLICT, "There are too many receivers of callbacks")
ENDPOINT_DISABLED = ProblemKind("endpoint_disabled", HTTPStatus.CONFLICT, "The callback endpoint is disabled")
UNAVAILABLE = ProblemKind(
    "unavailable", HTTPStatus.SERVICE_UNAVAILABLE, "The service cannot answer now; try again shortly"
)
INTERNAL = ProblemKind("internal_error", HTTPStatus.INTERNAL_SERVER_ERROR, "The service made a mistake")

# Problems that only the command line and the client have.
NO_SERVER = ProblemKind("no_server", HTTPStatus.BAD_GATEWAY, "No server answers")
LOCAL_STACK = ProblemKind("local_stack", HTTPStatus.INTERNAL_SERVER_ERROR, "The embedded stack cannot run")
BAD_INPUT_FILE = ProblemKind("bad_input_file", HTTPStatus.BAD_REQUEST, "The input file cannot be used")
BAD_OUTPUT_FILE = ProblemKind("bad_output_file", HTTPStatus.BAD_REQUEST, "The output file cannot be written")
BAD_SETTING = ProblemKind("bad_setting", HTTPStatus.INTERNAL_SERVER_ERROR, "A setting cannot be used")
MISSING_EXTRA = ProblemKind("missing_extra", HTTPStatus.INTERNAL_SERVER_ERROR, "A part of the program is not installed")
BATCH_FAILED = ProblemKind("batch_failed", HTTPStatus.UNPROCESSABLE_ENTITY, "The batch did not end well")
ENGINE_FOLDER = ProblemKind("engine_folder", HTTPStatus.INTERNAL_SERVER_ERROR, "The engine folder cannot be used")
ENGINE_BUILD = ProblemKind("engine_build", HTTPStatus.INTERNAL_SERVER_ERROR, "The engine cannot be built")
ENGINE_UNFIT = ProblemKind("engine_unfit", HTTPStatus.INTERNAL_SERVER_ERROR, "The engine did not pass")
NO_GPU = ProblemKind("no_gpu", HTTPStatus.INTERNAL_SERVER_ERROR, "The GPU cannot be used")
TENANT_PURGED = ProblemKind("tenant_purged", HTTPStatus.CONFLICT, "The tenant was purged")
KEY_ENDED = ProblemKind("key_ended", HTTPStatus.CONFLICT, "The key has ended, or has a successor")
NOT_DECIDED = ProblemKind("not_decided", HTTPStatus.GATEWAY_TIMEOUT, "Not everything was decided in time")


class OutcomeError(StrEnum):
    """Why a comparison ended without a verdict. The codes never change."""

    CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
    """The prompt is longer than the judge takes; the message names both lengths."""
    UNPARSEABLE = "unparseable"
    """The model's answer was no verdict: too little probability on A and B, or no [[A]] or [[B]] in its text."""
    PROFILE_UNFIT = "profile_unfit"
    """The prompt profile has no form for a comparison of this shape."""
    ENGINE_FAILED = "engine_failed"
    """The engine failed at this comparison at each attempt."""
    ENGINE_CRASHED = "engine_crashed"
    """Each attempt ended with the worker's process gone, at last while this comparison was alone in the engine."""
    WORKER_LOST = "worker_lost"
    """Its workers were lost again and again, each time before it had come to the engine."""
    BAD_LINE = "bad_line"
    """The line of the file is no comparison; the message says why."""
    CANCELLED = "cancelled"
    """A producer called it off."""
    DEADLINE_PASSED = "deadline_passed"
    """It was not decided by its deadline."""


class FieldError(BaseModel):
    """What is wrong with one field of a request."""

    field: str = Field(description="Where, for instance `prompt[0].content`; empty for the whole body")
    message: str


class ProblemDocument(BaseModel):
    """A problem on the wire: RFC 9457 with our `code`, `request_id` and, where fields are at fault, `errors`."""

    type: str = Field(description="`urn:nightcourt:problem:` and the code")
    title: str
    status: int
    detail: str
    code: str
    request_id: str | None = None
    errors: list[FieldError] | None = None


class OpenAIError(BaseModel):
    """A problem as OpenAI's clients look for it."""

    message: str
    type: str = Field(description="`invalid_request_error`, `rate_limit_error` with 429, or `server_error`")
    param: str | None
    code: str


class OpenAIErrorDocument(BaseModel):
    """A problem on the wire where OpenAI's clients go: files and batches."""

    error: OpenAIError


class Problem(Exception):  # noqa: N818 - RFC 9457's own word
    """Something a user did or met, said so that they can act on it."""

    def __init__(
        self,
        kind: ProblemKind,
        detail: str,
        *,
        errors: list[FieldError] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.errors = errors
        self.headers = headers or {}

    def document(self, request_id: str | None = None) -> ProblemDocument:
        """Give the problem the form it has on the wire."""
        return ProblemDocument(
            type=f"urn:nightcourt:problem:{self.kind.code}",
            title=self.kind.title,
            status=self.kind.status,
            detail=self.detail,
            code=self.kind.code,
            request_id=request_id,
            errors=self.errors,
        )


_NAME_CHARACTERS = 64
_FIELDS_NAMED = 20

_UNIONS = frozenset({"prompt", "response_a", "response_b", "chosen", "rejected"})


def field_path(location: tuple[int | str, ...]) -> str:
    """Spell a place in a body: `("prompt", "turns", 0, "content")` is `prompt[0].content`.

    The tag of the union in `schemas/comparison.py` is left out: it stands in no body, and in no row.
    """
    path = ""
    for depth, step in enumerate(location):
        if depth == 1 and location[0] in _UNIONS and step in {"text", "turns"}:
            continue
        if isinstance(step, int):
            path += f"[{step}]"
        else:
            # A name may be anything that a sender made up: no more of it is repeated than tells it from others.
            name = step if len(step) <= _NAME_CHARACTERS else f"{step[:_NAME_CHARACTERS]}…"
            name = name.replace("\0", "?")  # what is told of a line is stored, and this cannot be
            path += f".{name}" if path else name
    return path


def invalid_field(field: str, message: str) -> Problem:
    """Say what is wrong with one field of a request."""
    return Problem(INVALID_REQUEST, f"{field}: {message}.", errors=[FieldError(field=field, message=message)])


def first_error(error: ValidationError) -> tuple[str, str]:
    """Give the place, empty for the whole, and the message of the first thing that is wrong, with nobody's text."""
    first = error.errors(include_url=False, include_input=False)[0]
    return ".".join(str(step) for step in first["loc"]), first["msg"]


def invalid_request(errors: list[Any]) -> Problem:
    """Turn pydantic's error list into a problem that names each field, without repeating anyone's text.

    Args:
        errors: what `ValidationError.errors()` gives, or the like.
    """
    kinds = {error["type"] for error in errors}
    if kinds == {"json_invalid"}:
        return Problem(MALFORMED_JSON, f"The body is not JSON that this server takes: {errors[0]['msg']}.")
    fields = [
        FieldError(field=field_path(error["loc"]), message=error["msg"].removeprefix("Value error, "))
        for error in errors[:_FIELDS_NAMED]
    ]
    first = fields[0]
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return Problem(INVALID_REQUEST, f"{first.field or 'body'}: {first.message}{more}.", errors=fields)
