"""Who looks at the dashboard: each page names the scope that it needs by the type of its parameter `caller`.

A browser signs in with a key and sends a session's token from then on, in a cookie that no script can read and no other
site can have sent. What changes something comes as a form with a token that only this session's pages carry.
"""

import hmac
from typing import Annotated
from urllib.parse import parse_qsl

from fastapi import Depends, Request, Response

from infra.database import tenant
from producer import sessions
from producer.access import Caller
from producer.dashboard.render import HOME
from producer.deadlines import in_time
from schemas.keys import Scope
from schemas.problems import BODY_TOO_LARGE, FORM_REFUSED, KEY_MISSING, SCOPE_MISSING, Problem

COOKIE = "nightcourt_session"
_FORM_BYTES = 8192
_FORM_FIELDS = 20
_FORM_SECONDS = 10.0
"""How long a form may take to come: anybody may send the one that signs in, before it is known who they are."""


async def visitor(request: Request) -> Caller | None:
    """Tell whose session a request is of; None where it is of none, or of one that has ended."""
    token = request.cookies.get(COOKIE)
    if token is None:
        return None
    async with request.app.state.database.connect() as connection:
        caller: Caller | None = await connection.run_sync(sessions.find, token)
    return caller


class Needs:
    """A dependency that gives the caller of a page, if their key has a scope."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope

    async def __call__(self, request: Request) -> Caller:
        """Give the caller, whose tenant's rows are all that the page's transactions see.

        Raises:
            Problem: nobody has signed in, their key sends too many requests, or it has not the scope.
        """
        caller = await visitor(request)
        if caller is None:
            raise Problem(KEY_MISSING, "Sign in with a key.")
        request.state.caller = caller
        request.state.form_token = sessions.form_token(request.cookies[COOKIE])
        tenant.set(caller.tenant)
        request.app.state.limiter.request(caller, request.state)
        if not caller.may(self.scope):
            had = ", ".join(scope for scope in Scope if scope in caller.scopes)
            raise Problem(SCOPE_MISSING, f"This takes a key with the scope `{self.scope}`; yours has: {had}.")
        return caller


async def fields(request: Request) -> dict[str, str]:
    """Read the fields of a form.

    Raises:
        Problem: it is larger than any form here, does not come in time, or another site had it sent.
    """
    _sent_from_here(request)
    body = bytearray()
    async with in_time(_FORM_SECONDS, "The form"):
        async for chunk in request.stream():
            body += chunk
            if len(body) > _FORM_BYTES:
                raise Problem(BODY_TOO_LARGE, "No form here is as large as this.", headers={"Connection": "close"})
    try:
        return dict(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=_FORM_FIELDS))
    except ValueError:
        raise Problem(BODY_TOO_LARGE, f"No form here has more than {_FORM_FIELDS} fields.") from None


def _sent_from_here(request: Request) -> None:
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        if site not in {"same-origin", "none"}:
            raise _refused()
        return
    # Old browsers, and all of them over plain HTTP to another machine, say no more than where the form stood.
    origin = request.headers.get("origin")
    if origin is not None and origin.partition("://")[2] != request.headers.get("host"):
        raise Problem(
            FORM_REFUSED,
            "Another site sent this form. If none did, what stands in front of the service has to pass `Host` on.",
        )


async def _form(request: Request) -> dict[str, str]:
    given = await fields(request)
    expected = getattr(request.state, "form_token", "")
    if not expected or not hmac.compare_digest(given.get("form", "").encode(), expected.encode()):
        raise _refused()
    return given


def _refused() -> Problem:
    return Problem(
        FORM_REFUSED, "The form was not sent by a page of this session. Load the page anew and send it again."
    )


def let_in(request: Request, response: Response, token: str) -> None:
    """Hand a browser the token of its session."""
    response.set_cookie(
        COOKIE,
        token,
        max_age=int(sessions.SECONDS),
        path=HOME,
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )


Reader = Annotated[Caller, Depends(Needs(Scope.READ))]
Submitter = Annotated[Caller, Depends(Needs(Scope.SUBMIT))]
Admin = Annotated[Caller, Depends(Needs(Scope.ADMIN))]
Form = Annotated[dict[str, str], Depends(_form)]
"""The fields of a form that a page of the caller's session sent. Stands after the caller."""
