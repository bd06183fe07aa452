"""The routes of the dashboard, all together: what the HTTP edge takes in."""

from fastapi import APIRouter, Response

from producer.dashboard import batches, callbacks, now, render, why

router = APIRouter(include_in_schema=False)
router.include_router(now.router)
router.include_router(batches.router)
router.include_router(callbacks.router)
router.include_router(why.router)


@router.get(f"{render.HOME}/static/{{name}}")
async def static(name: str) -> Response:
    """Give the style sheet, the script or the icon. Nobody needs a key for these."""
    return render.static(name)
