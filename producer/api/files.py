"""`/v1/files`: OpenAI's files, taken in and given back as streams."""

from collections.abc import AsyncIterator
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse

from infra import metrics
from producer import files, outputs, uploads
from producer.access import Caller
from producer.api.access import KeyedRoute, Reader, Submitter
from producer.api.batches import read_batch
from producer.api.multipart import Upload
from producer.api.problems import DOCUMENTED_AS_OPENAI
from schemas import ids
from schemas.batch import Batch, File, FilePage
from schemas.problems import INVALID_REQUEST, NOT_FOUND, Problem, invalid_field

router = APIRouter(prefix="/v1/files", tags=["files"], route_class=KeyedRoute, responses=DOCUMENTED_AS_OPENAI)

_JSON_LINES = "application/jsonl"
_PURPOSE = "batch"

_UPLOAD_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["purpose", "file"],
                    "properties": {
                        "purpose": {"const": _PURPOSE},
                        "file": {"type": "string", "format": "binary", "description": "JSON lines; gzip and zstd too"},
                    },
                }
            }
        },
    }
}


def _no_such_file() -> Problem:
    return Problem(NOT_FOUND, "There is no file of this id.")


async def _file(request: Request, caller: Caller, file_id: str) -> Any:
    key = ids.parse_prefixed(file_id, "file-")
    if key is None:
        raise _no_such_file()
    async with request.app.state.database.connect() as connection:
        row = await files.read(connection, tenant=caller.tenant, file_id=key)
    if row is None:
        raise _no_such_file()
    return row


async def _view(request: Request, caller: Caller, file_id: str) -> tuple[Batch, UUID, ids.View] | None:
    """Find the batch whose output or error file an id names."""
    view = ids.parse_view_id(file_id)
    return None if view is None else (await read_batch(request, caller, view[0]), *view)


@router.post("", openapi_extra=_UPLOAD_BODY)
async def upload(caller: Submitter, request: Request) -> File:
    """Upload a file of comparisons, one JSON object a line. Lines that are none are counted, not refused."""
    settings = request.app.state.settings
    form = Upload(request)

    def about() -> tuple[str, str]:
        if form.fields.get("purpose") != _PURPOSE:
            raise invalid_field("purpose", "is `batch`; files have no other use here")
        if any(name.startswith("expires_after") for name in form.fields):  # a form spells it `expires_after[seconds]`
            raise invalid_field("expires_after", "is not taken; how long files are kept is the service's to say")
        return form.filename or "upload.jsonl", _PURPOSE

    stored = await uploads.store(
        request.app.state.database,
        form.chunks(),
        tenant=caller.tenant,
        about=about,
        limits=uploads.Limits(
            file_bytes=settings.max_file_bytes, line_bytes=request.app.state.limiter.of(caller).max_body_bytes
        ),
    )
    request.app.state.meters.add(metrics.UPLOADED_BYTES, stored.bytes)
    return stored


@router.get("")
async def page(
    caller: Reader,
    request: Request,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10000)] = 100,
    order: Annotated[files.ListOrder, Query(description="Newest first, or oldest first")] = "desc",
    purpose: Annotated[str | None, Query(description="Only files of this one; all of them have `batch`")] = None,
) -> FilePage:
    """List uploaded files. Output and error files are not among them: each batch names its own."""
    key = None if after is None else ids.parse_prefixed(after, "file-")
    if after is not None and key is None:
        raise _no_such_file()
    if purpose not in {None, _PURPOSE}:
        return FilePage.of([], limit)
    return await files.page(request.app.state.database, tenant=caller.tenant, after=key, limit=limit, order=order)


@router.get("/{file_id}")
async def read(caller: Reader, file_id: str, request: Request) -> File:
    """Read about a file. Output and error files are views of a batch; their size is not known before they are read."""
    view = await _view(request, caller, file_id)
    if view is not None:
        made = view[0].created_at
        return File(id=file_id, bytes=0, created_at=made, filename=f"{file_id}.jsonl", purpose="batch_output")
    return files.as_file(await _file(request, caller, file_id))


@router.get("/{file_id}/content", response_class=StreamingResponse)
async def content(caller: Reader, file_id: str, request: Request) -> StreamingResponse:
    """Give back a file's lines; of an output or error file, those that there are so far."""
    view = await _view(request, caller, file_id)
    lines: AsyncIterator[bytes]
    if view is not None:
        lines = outputs.stream(request.app.state.database, *view[1:])
    else:
        row = await _file(request, caller, file_id)
        lines = files.content(request.app.state.database, row.id)
    return StreamingResponse(lines, media_type=_JSON_LINES)


@router.delete("/{file_id}")
async def delete(caller: Submitter, file_id: str, request: Request) -> dict[str, Any]:
    """Delete a file that no batch was made of."""
    view = await _view(request, caller, file_id)
    if view is not None:
        raise Problem(INVALID_REQUEST, f"This file is a view of {view[0].id}, and goes when that batch is deleted.")
    row = await _file(request, caller, file_id)
    await files.delete(request.app.state.database, row.id)
    return {"id": file_id, "object": "file", "deleted": True}
