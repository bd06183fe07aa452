"""The routes of the dashboard, all together: what the HTTP edge takes in."""

from fastapi import APIRouter, Request, Response

from producer.dashboard import batches, callbacks, now, render, signing_in, why

files = APIRouter(prefix=render.HOME, include_in_schema=False)

ROUTERS = (now.router, batches.router, callbacks.router, why.router, signing_in.router, files)


@files.get("/static/{name}")
async def static(name: str, request: Request) -> Response:
    """Give the style sheet, the script or the icon. Nobody needs a key for these."""
    return render.static(name, request.url.query)
