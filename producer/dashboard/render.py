"""Pages put together: the templates, what every page is sent with, and problems as pages.

Text of others enters a page in one way alone: escaped by Jinja. The policy that goes with each page lets the one script
and the one style sheet of this package run, and nothing else be fetched.
"""

import hashlib
from datetime import UTC, datetime
from functools import cache
from http import HTTPStatus
from importlib import resources
from typing import Any

import jinja2
from fastapi import Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from producer.dashboard import words
from schemas.problems import KEY_MISSING, NOT_FOUND, Problem

HOME = "/dashboard"
"""Where the dashboard stands."""

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

_STATIC = {"dashboard.css": "text/css", "dashboard.js": "text/javascript", "icon.svg": "image/svg+xml"}


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("producer.dashboard"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        each.__name__: each
        for each in (
            words.ago,
            words.clock,
            words.count,
            words.counted_to,
            words.duration,
            words.moment,
            words.odds,
            words.probability,
            words.rate,
            words.share,
            words.short,
            words.spell,
        )
    }
    environment.globals["home"] = HOME
    environment.globals["asset"] = _asset
    # A part of a page is rendered by itself, too: what it is made of must not hang on the page's own imports.
    environment.globals["parts"] = environment.get_template("parts.html.j2").module
    return environment


def page(request: Request, template: str, /, *, http_status: int = 200, **context: Any) -> Response:
    """Render a page.

    Args:
        request: what it answers.
        template: the template's name, without `.html.j2`.
        http_status: the answer's.
        context: what the template shows.
    """
    text = _environment().get_template(f"{template}.html.j2").render(_shown(request, context))
    return HTMLResponse(text.encode("utf-8", "replace"), status_code=http_status, headers=HEADERS)


def live_parts(request: Request, template: str, /, **context: Any) -> dict[str, str]:
    """Render the parts of a page that change by themselves: the blocks of its template called `live_...`, by name."""
    found = _environment().get_template(f"{template}.html.j2")
    shown = found.new_context(_shown(request, context))
    return {name: "".join(block(shown)) for name, block in found.blocks.items() if name.startswith("live_")}


def _shown(request: Request, context: dict[str, Any]) -> dict[str, Any]:
    """Add what every page shows."""
    known = {name: getattr(request.state, name, None) for name in ("caller", "form_token")}
    return {"now": datetime.now(UTC), "events": None, **known, **context}


def go(path: str) -> RedirectResponse:
    """Send a browser on to a path of the dashboard."""
    return RedirectResponse(f"{HOME}{path}", status_code=303, headers=HEADERS)


def sign_in(request: Request, *, to: str = f"{HOME}/", wrong: Problem | None = None) -> Response:
    """Ask for a key.

    Args:
        request: what it answers.
        to: where to go once signed in.
        wrong: what was wrong with the key that was sent, where one was.
    """
    status = HTTPStatus.OK if wrong is None else wrong.kind.status
    answer = page(request, "login", http_status=status, to=to, wrong=wrong)
    if wrong is not None:
        answer.headers.update(wrong.headers)
    return answer


def problem(request: Request, found: Problem) -> Response:
    """Show a problem as a page. Where nobody has signed in, that is the page that asks for a key."""
    if found.kind is KEY_MISSING:
        reading = request.method == "GET"
        here = f"{request.url.path}?{request.url.query}" if request.url.query else request.url.path
        if reading and request.headers.get("sec-fetch-site") == "cross-site":
            return page(request, "again", to=here)
        answer = sign_in(request, to=here) if reading else sign_in(request)
        answer.status_code = found.kind.status
        return answer
    request_id = getattr(request.state, "request_id", None)
    answer = page(request, "problem", http_status=found.kind.status, problem=found, request_id=request_id)
    answer.headers.update(found.headers)
    return answer


@cache
def _content(name: str) -> bytes:
    return resources.files("producer.dashboard").joinpath("static", name).read_bytes()


@cache
def _version(name: str) -> str:
    return hashlib.sha256(_content(name)).hexdigest()[:8]


def _asset(name: str) -> str:
    """Give a file's address, which is another once its content is."""
    return f"{HOME}/static/{name}?{_version(name)}"


def static(name: str, version: str) -> Response:
    """Give the style sheet, the script or the icon.

    Args:
        name: the file's.
        version: which one a page named. Where that is another, as while a newer service takes this one's place, the
            file must not be kept under that address.

    Raises:
        Problem: there is no such file.
    """
    if name not in _STATIC:
        raise Problem(NOT_FOUND, "There is no such file here.")
    headers = {**HEADERS, "Cache-Control": "public, max-age=86400"} if version == _version(name) else HEADERS
    return Response(_content(name), media_type=_STATIC[name], headers=headers)
