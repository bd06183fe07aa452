"""Pages that keep up: the parts of a page that have changed, as server-sent events, by the page's own template."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import structlog
from fastapi import Request

from infra.database import UNREACHABLE
from producer.dashboard import access, render
from producer.streams import EventStream, rest

log = structlog.get_logger()

_LOOKS = 5
"""After so many looks the session is looked up again: it may have ended, or its key."""
_SILENCE_SECONDS = 15.0
"""After this long without news a comment is sent, so that nothing between us and the reader gives up."""

Look = Callable[[], Awaitable[dict[str, Any]]]


def stream(
    request: Request,
    template: str,
    look: Look,
    *,
    every: float,
    ended: Callable[[dict[str, Any]], bool] = lambda _: False,
) -> EventStream:
    """Follow a page until its reader leaves, it has ended, or the server ends.

    Args:
        request: what is answered.
        template: the page's; its blocks called `live_...` are what is sent.
        look: gathers what the page shows.
        every: seconds from one look to the next.
        ended: whether nothing will change any more.
    """
    events = _follow(request, template, look, every, ended)
    return EventStream(request, request.state.caller, events, render.HEADERS)


async def _follow(
    request: Request, template: str, look: Look, every: float, ended: Callable[[dict[str, Any]], bool]
) -> AsyncIterator[str]:
    told: dict[str, str] = {}
    silent = 0.0
    looks = 0
    while not request.app.state.ending.is_set():
        looks += 1
        shown: dict[str, Any] | None = None
        try:
            if looks % _LOOKS == 0 and await access.visitor(request) is None:
                return
            shown = await look()
        except UNREACHABLE as error:  # for now: a stream that broke off would be refused until Postgres is back
            log.warning("database_unreachable", error=type(error).__name__)
        parts = told if shown is None else render.live_parts(request, template, **shown)
        news = {name: part for name, part in parts.items() if told.get(name) != part}
        if news:
            told, silent = parts, 0.0
            yield f"event: parts\ndata: {json.dumps(news)}\n\n"
        elif silent >= _SILENCE_SECONDS:
            silent = 0.0
            yield ": still here\n\n"
        if shown is not None and ended(shown):
            yield "event: ended\ndata: {}\n\n"
            return
        await rest(request, every)
        silent += every
