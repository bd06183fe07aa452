"""Problems on the wire: whatever goes wrong in a request is answered as an RFC 9457 document, or as a page."""

from http import HTTPStatus

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from psycopg.errors import InsufficientPrivilege
from sqlalchemy.exc import ProgrammingError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from infra.database import UNREACHABLE
from producer import keys
from producer.api.access import no_good_key
from producer.dashboard import render
from schemas.problems import (
    INTERNAL,
    INVALID_REQUEST,
    METHOD_NOT_ALLOWED,
    NOT_FOUND,
    UNAVAILABLE,
    OpenAIError,
    OpenAIErrorDocument,
    Problem,
    invalid_request,
)

log = structlog.get_logger()

_PLAIN = {HTTPStatus.NOT_FOUND: NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED: METHOD_NOT_ALLOWED}

_OPENAI_SHAPED = ("/v1/files", "/v1/batches")
"""Where OpenAI's clients go, who look for errors in OpenAI's shape."""

_SAID: dict[int | str, str] = {
    401: "No key was sent, or none that is good",
    403: "The key has not the scope that this takes",
    429: "Too much was sent; `Retry-After` says for how long",
    "default": "A problem",
}

_TEXT = {"type": "string"}
_HEADERS: dict[str, object] = {
    "Retry-After": {"description": "Seconds after which to send it again", "schema": {"type": "integer"}},
    "RateLimit-Policy": {"description": "What is limited: `q` in `w` seconds, or `q` at a time", "schema": _TEXT},
    "RateLimit": {"description": "How much is left, `r`, and for how many seconds, `t`", "schema": _TEXT},
}

DOCUMENTED: dict[int | str, dict[str, object]] = {
    status: {
        "description": f"{said} (RFC 9457)",
        "headers": _HEADERS if status == HTTPStatus.TOO_MANY_REQUESTS else {},
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}},
    }
    for status, said in _SAID.items()
}
"""What a route adds to the OpenAPI document."""

DOCUMENTED_AS_OPENAI: dict[int | str, dict[str, object]] = {
    status: {
        "description": f"{said}, in the shape of OpenAI's errors",
        "headers": _HEADERS if status == HTTPStatus.TOO_MANY_REQUESTS else {},
        "model": OpenAIErrorDocument,
    }
    for status, said in _SAID.items()
}
"""What a route adds that OpenAI's clients know."""


def answer(request: Request, problem: Problem) -> Response:
    """Write a problem as a response."""
    if f"{request.url.path}/".startswith(f"{render.HOME}/"):
        return render.problem(request, problem)
    request_id = getattr(request.state, "request_id", None)
    if request.url.path.startswith(_OPENAI_SHAPED):
        ours = problem.kind.status >= HTTPStatus.INTERNAL_SERVER_ERROR
        late = problem.kind.status == HTTPStatus.TOO_MANY_REQUESTS
        error = OpenAIError(
            message=problem.detail,
            type="server_error" if ours else "rate_limit_error" if late else "invalid_request_error",
            param=problem.errors[0].field or None if problem.errors else None,
            code=problem.kind.code,
        )
        content = OpenAIErrorDocument(error=error).model_dump()
        return JSONResponse(content, status_code=problem.kind.status, headers=problem.headers)
    return JSONResponse(
        problem.document(request_id).model_dump(exclude_none=True),
        status_code=problem.kind.status,
        headers=problem.headers,
        media_type="application/problem+json",
    )


def answer_failed(request: Request) -> Response:
    """Answer a request in which something went wrong that nobody foresaw."""
    detail = f"The mistake is ours, and logged under the request's id, {request.state.request_id}."
    return answer(request, Problem(INTERNAL, detail))


def _methods(request: Request) -> set[str]:
    """Collect the methods of all routes with this path: the framework names those of the first one only."""
    methods: set[str] = set()
    for method in ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT"):
        scope = {**request.scope, "method": method}
        if any(route.matches(scope)[0] is Match.FULL for route in request.app.routes):
            methods.add(method)
    return methods


def install(app: FastAPI) -> None:
    """Answer what routes and the framework raise, and whoever cannot be reached, as problems."""

    @app.exception_handler(Problem)
    async def _problem(request: Request, problem: Problem) -> Response:
        return answer(request, problem)

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> Response:
        # The framework's locations begin with where the value stood: "body", "query", "header" or "path".
        errors = [{**each, "loc": tuple(each["loc"])[1:]} for each in error.errors()]
        return answer(request, invalid_request(errors))

    @app.exception_handler(HTTPException)
    async def _plain(request: Request, error: HTTPException) -> Response:
        kind = _PLAIN.get(HTTPStatus(error.status_code), INVALID_REQUEST)
        detail = f"{request.method} {request.url.path} is not served here; GET /docs lists what is."
        headers = dict(error.headers or {})
        if kind is METHOD_NOT_ALLOWED:
            headers["Allow"] = ", ".join(sorted(_methods(request)))
        return answer(request, Problem(kind, detail, headers=headers))

    _install_for_postgres(app)


def _install_for_postgres(app: FastAPI) -> None:
    """Answer where Postgres is away, or refuses."""

    async def _unavailable(request: Request, error: Exception) -> Response:
        log.warning("database_unreachable", error=type(error).__name__)
        detail = (
            "The database cannot be reached, or takes no writes. Send the request again, with the same Idempotency-Key."
        )
        return answer(request, Problem(UNAVAILABLE, detail, headers={"Retry-After": "1"}))

    async def _refused(request: Request, error: Exception) -> Response:
        # A key is known for some seconds after its tenant was purged, and Postgres takes nothing in for that any more.
        caller = getattr(request.state, "caller", None)
        if caller is not None:
            async with request.app.state.database.connect() as connection:
                if await connection.run_sync(keys.buried, tenant=caller.tenant):
                    return answer(request, no_good_key())
        raise error

    for refusal in (ProgrammingError, InsufficientPrivilege):
        app.add_exception_handler(refusal, _refused)

    for unreachable in UNREACHABLE:
        app.add_exception_handler(unreachable, _unavailable)
