"""`/docs`: the operations on one page, made of the OpenAPI document, with no script and nothing from elsewhere."""

from typing import Any

from fastapi import APIRouter, Request, Response

from producer.dashboard import render

router = APIRouter(include_in_schema=False)

_POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)


@router.get("/docs")
async def docs(request: Request) -> Response:
    """List what is served, for people."""
    answer = render.page(request, "operations", sections=_sections(request.app.openapi()))
    answer.headers["Content-Security-Policy"] = _POLICY
    return answer


def _sections(document: dict[str, Any]) -> dict[str, list[dict[str, str]]]:
    """Sort the operations of an OpenAPI document by what they are about."""
    found: dict[str, list[dict[str, str]]] = {}
    for path, methods in document["paths"].items():
        for method, described in methods.items():
            told = {"method": method.upper(), "path": path, "says": described["description"]}
            found.setdefault(described["tags"][0], []).append(told)
    return found
