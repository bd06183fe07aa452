"""`/dashboard/login`, `/dashboard/enter` and `/dashboard/logout`: how a session begins and ends."""

from uuid import UUID

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from sqlalchemy.ext.asyncio import AsyncConnection

from producer import sessions
from producer.access import Caller
from producer.dashboard import render
from producer.dashboard.access import COOKIE, Form, Reader, fields, let_in
from schemas.keys import Scope
from schemas.problems import KEY_INVALID, SCOPE_MISSING, Problem

_DOORS = {f"{render.HOME}/login", f"{render.HOME}/enter"}
"""What leads in and nowhere else: whoever has signed in goes on to another page."""

router = APIRouter(prefix=render.HOME, include_in_schema=False)


@router.get("/login")
async def ask(request: Request) -> Response:
    """Ask for a key."""
    return render.sign_in(request)


@router.post("/login")
async def sign_in(request: Request) -> Response:
    """Begin a session with a key, and go where the browser was going."""
    with request.app.state.limiter.stranger():
        given = await fields(request)
    to = given.get("to", "")
    try:
        caller = await _owner(request, given.get("key", "").strip())
    except Problem as problem:
        return render.sign_in(request, to=to, wrong=problem)
    async with request.app.state.database.begin() as connection:
        token = await connection.run_sync(sessions.begin, UUID(caller.key_id.removeprefix("nck_")))
        await _end_former(connection, request)
    return _let_in(request, token, to)


async def _owner(request: Request, sent: str) -> Caller:
    """Tell whose key was sent.

    Raises:
        Problem: it is no good key, sends too many requests, has not the scope to read, or too many wrong ones came from
            there.
    """
    client = request.client.host if request.client else ""
    caller: Caller | None = await request.app.state.keyring.caller(sent, client=client)
    if caller is None:
        raise Problem(KEY_INVALID, "This key is unknown, wrong, expired or revoked.")
    request.app.state.limiter.request(caller, request.state)
    if not caller.may(Scope.READ):
        raise Problem(SCOPE_MISSING, "Looking takes a key with the scope `read`, which this one has not.")
    return caller


@router.get("/enter")
async def enter(request: Request, invitation: str = "") -> Response:
    """Begin the session that an address from the command line invites to, once."""
    async with request.app.state.database.begin() as connection:
        token = await connection.run_sync(sessions.accept, invitation)
        if token is not None:
            await _end_former(connection, request)
    if token is None:
        used = Problem(KEY_INVALID, "This address was used before, or is older than ten minutes. Sign in with a key.")
        return render.sign_in(request, wrong=used)
    return _let_in(request, token, "")


@router.post("/logout")
async def sign_out(_caller: Reader, _form: Form, request: Request) -> Response:
    """End the session."""
    async with request.app.state.database.begin() as connection:
        await connection.run_sync(sessions.end, request.cookies[COOKIE])
    answer = render.go("/login")
    answer.delete_cookie(COOKIE, path=render.HOME)
    return answer


async def _end_former(connection: AsyncConnection, request: Request) -> None:
    """End the session that the browser had: it is about to forget that token, and so nobody could sign out of it."""
    if COOKIE in request.cookies:
        await connection.run_sync(sessions.end, request.cookies[COOKIE])


def _let_in(request: Request, token: str, to: str) -> RedirectResponse:
    inside = to.startswith(f"{render.HOME}/") and to.partition("?")[0] not in _DOORS
    answer = render.go(to.removeprefix(render.HOME) if inside else "/")
    let_in(request, answer, token)
    return answer
