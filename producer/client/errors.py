"""What a client raises, worded for a person."""

from http import HTTPStatus

from pydantic import BaseModel, ValidationError

from schemas import problems
from schemas.batch import Batch
from schemas.comparison import Comparison
from schemas.problems import FieldError, ProblemDocument, ProblemKind

_TITLES = {kind.code: kind.title for kind in vars(problems).values() if isinstance(kind, ProblemKind)}


class _OpenAIError(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str


class _OpenAIBody(BaseModel):
    error: _OpenAIError


def read_problem(status: int, body: bytes, request_id: str | None) -> ProblemDocument:
    """Read a problem in our form, or in OpenAI's, which `/v1/files` and `/v1/batches` speak.

    Args:
        status: the HTTP status that it came with.
        body: what came.
        request_id: of the header `X-Request-Id`, since OpenAI's form has no place for it.

    Raises:
        ValidationError: it is in neither form.
    """
    try:
        return ProblemDocument.model_validate_json(body)
    except ValidationError as ours:
        try:
            error = _OpenAIBody.model_validate_json(body).error
        except ValidationError:
            raise ours from None
    return ProblemDocument(
        type=f"urn:nightcourt:problem:{error.code}",
        title=_TITLES.get(error.code, HTTPStatus(status).phrase),
        status=status,
        detail=error.message,
        code=error.code,
        request_id=request_id,
        errors=[FieldError(field=error.param, message=error.message)] if error.param else None,
    )


class ClientError(Exception):
    """Anything that a client raises about a call, worded for a person."""

    passing = False
    """Whether the same call may go well another time: nothing answered, what did could not do it now, or the time to
    wait was up. After `judge`, wait for the comparison that it filed, since judging anew would file another."""


class ServerProblem(ClientError):  # noqa: N818 - RFC 9457's own word; the names below say what is the matter
    """The server said no. `document` is what it sent, `status` the HTTP status, `code` a code that never changes."""

    def __init__(self, document: ProblemDocument) -> None:
        super().__init__(document)
        self.document, self.status, self.code = document, document.status, document.code

    def __str__(self) -> str:
        return f"{self.document.title}: {self.document.detail}"


class InvalidRequest(ServerProblem, ValueError):  # noqa: N818
    """The server would say no, so it was not asked: `document.errors` names each field at fault, in its words."""


class ServerUnreachable(ClientError):  # noqa: N818
    """Nothing answered, at any attempt."""


class UnexpectedAnswer(ClientError):  # noqa: N818
    """What answered was not nightcourt: another program, a proxy, or a server of another version."""


class NotDecided(ClientError, TimeoutError):  # noqa: N818
    """The time is up. The comparison stays filed; `comparison` is how it stood, with the id to go on waiting for."""

    passing = True

    def __init__(self, comparison: Comparison) -> None:
        super().__init__(comparison)
        self.comparison = comparison

    def __str__(self) -> str:
        return (
            f"{self.comparison.id} was still {self.comparison.status} when the time to wait was over. It stays filed "
            "and will be judged; wait for it again. Is a worker running? `nightcourt doctor` tells."
        )


class BatchNotEnded(ClientError, TimeoutError):  # noqa: N818
    """The time is up. The batch goes on; `batch` is how it stood."""

    passing = True

    def __init__(self, batch: Batch) -> None:
        super().__init__(batch)
        self.batch = batch

    def __str__(self) -> str:
        counts, why = self.batch.request_counts, self.batch.progress.waiting_for
        return (
            f"{self.batch.id} was still {self.batch.status} when the time to wait was over, with "
            f"{self.batch.progress.decided} of {counts.total} lines decided{f' ({why})' if why else ''}. It goes on; "
            "wait for it again."
        )


class CallbackRefused(ClientError, ValueError):  # noqa: N818
    """A callback that is not to be acted on: it is not from the service, was changed, or is an old one sent again."""

    def __str__(self) -> str:
        return f"The callback is refused: {self.args[0]}."
