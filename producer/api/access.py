"""Who asks: each route names the scope that it needs by the type of its parameter `caller`, and no key, no route."""

from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import Depends, Request, Response
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from infra.database import tenant
from producer.access import Caller
from schemas.keys import Scope
from schemas.problems import KEY_INVALID, KEY_MISSING, SCOPE_MISSING, Problem

_BEARER = HTTPBearer(
    scheme_name="key",
    bearerFormat="nck_<id>_<secret>",
    description="A key, which `nightcourt keys create` makes on a host of the service.",
    auto_error=False,
)


def no_good_key() -> Problem:
    """Say that a key is none that is good, and not why."""
    return Problem(
        KEY_INVALID,
        "The key is unknown, wrong, expired or revoked. Ask whoever runs the service; `nightcourt keys list` tells "
        "them which.",
        headers={"WWW-Authenticate": 'Bearer error="invalid_token"'},
    )


async def authenticate(request: Request) -> Caller:
    """Tell who asks, by the key in the header `Authorization`.

    Raises:
        Problem: there is no key, or none that is good, and why it is not is told to nobody; or too many wrong ones
            came from there.
    """
    scheme, _, sent = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not sent.strip():
        raise Problem(
            KEY_MISSING,
            "Send a key as `Authorization: Bearer nck_...`; for the command line and the Python client, set "
            "NIGHTCOURT_KEY. `nightcourt keys create` makes one, on a host of the service.",
            headers={"WWW-Authenticate": "Bearer"},
        )
    client = request.client.host if request.client else ""
    caller: Caller | None = await request.app.state.keyring.caller(sent.strip(), client=client)
    if caller is None:
        raise no_good_key()
    return caller


class Needs:
    """A dependency that gives the caller of a request, if their key has a scope."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope

    async def __call__(
        self, request: Request, _described: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]
    ) -> Caller:
        """Give the caller."""
        return await self.admit(request)

    async def admit(self, request: Request) -> Caller:
        """Tell who asks, whose tenant's rows are then all that the request sees, and whether they may.

        Raises:
            Problem: there is no good key, it sends too many requests, or it has not the scope.
        """
        caller: Caller | None = getattr(request.state, "caller", None)
        if caller is None:
            caller = request.state.caller = await authenticate(request)
            tenant.set(caller.tenant)
            request.app.state.limiter.request(caller, request.state)
        if not caller.may(self.scope):
            had = ", ".join(scope for scope in Scope if scope in caller.scopes)
            raise Problem(
                SCOPE_MISSING,
                f"This takes a key with the scope `{self.scope}`; yours has: {had}.",
                headers={"WWW-Authenticate": f'Bearer error="insufficient_scope", scope="{self.scope}"'},
            )
        return caller


class KeyedRoute(APIRoute):
    """A route that tells who asks before anything else, their body, is read or understood."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap the framework's handler.

        Raises:
            TypeError: the route has no parameter `caller`, so that anybody could use it.
        """
        handle = super().get_route_handler()
        needs = next((each.call for each in self.dependant.dependencies if isinstance(each.call, Needs)), None)
        if needs is None:
            raise TypeError(f"{self.path} names no scope: it takes a parameter that is a Reader, Submitter or Admin")

        async def handle_keyed(request: Request) -> Response:
            await needs.admit(request)
            return await handle(request)

        return handle_keyed


Reader = Annotated[Caller, Depends(Needs(Scope.READ))]
Submitter = Annotated[Caller, Depends(Needs(Scope.SUBMIT))]
Admin = Annotated[Caller, Depends(Needs(Scope.ADMIN))]
