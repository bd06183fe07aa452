"""How long a body may take to come: whoever stops in the middle holds a place that others need."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from schemas.problems import BODY_TOO_SLOW, Problem


@asynccontextmanager
async def in_time(seconds: float, what: str) -> AsyncIterator[None]:
    """Wait for what a client sends.

    Raises:
        Problem: it has not come in time.
    """
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        detail = f"{what} did not come within {seconds:g} s. Send the request again, whole."
        raise Problem(BODY_TOO_SLOW, detail, headers={"Connection": "close"}) from None
