"""/v1/files: uploads for batches, and the batches' output files. Uploads are stored in parts, a row each."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Form, Query, UploadFile
from pydantic import BaseModel, ConfigDict
from starlette.responses import Response, StreamingResponse

from producers.gateway.answers import Json
from producers.gateway.gateway import Gateway, Here, Member, Viewer
from producers.gateway.keys import Caller
from producers.gateway.openai import batch_answers
from producers.gateway.openai.openai_answers import FileDeleted, FileList, FileView
from producers.gateway.openai.request_bodies import FORM_LIMITS, check_form
from producers.gateway.openapi.schema_of import answer_of
from producers.gateway.problems import Problem
from producers.gateway.schemas import Word
from producers.wire.errors import InputTooLarge
from producers.wire.messages import ID, new_id
from results_store.gateway.gateway_files import StoredFile

router = APIRouter(prefix="/v1/files", tags=["openai"], form_limits=FORM_LIMITS)

_ID = re.compile(rf"file-{ID}(-output|-error)?")

#: The bytes that one transaction writes and one statement reads.
PART_BYTES = 512 * 1024

_CONTENT: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
}

Limit = Annotated[int, Query(ge=1, le=10_000)]
After = Annotated[Word | None, Query()]


class UploadForm(BaseModel):
    """A file to store until it is deleted."""

    model_config = ConfigDict(extra="forbid")

    file: UploadFile
    purpose: Literal["batch"]


@router.post("", dependencies=[Depends(check_form)], responses=answer_of(FileView))
async def upload(
    gateway: Here, caller: Member, form: Annotated[UploadForm, Form(media_type="multipart/form-data")]
) -> Response:
    """Store a file of requests for /v1/batches, with a JSON object on each line."""
    file = form.file
    if file.size is not None and file.size > gateway.settings.max_file_bytes:
        raise Problem(413, "FileTooLarge", f"the file is longer than {gateway.settings.max_file_bytes:,} bytes")
    new = StoredFile(
        id=f"file-{new_id()}",
        tenant=caller.tenant,
        name=(file.filename or "upload")[:500],
        purpose=form.purpose,
        created_at=time.time(),
    )
    await _store(gateway, new, file)
    return Json(view(await find(gateway, caller, new.id)))


@router.get("", responses=answer_of(FileList))
async def files(
    gateway: Here,
    caller: Viewer,
    purpose: Annotated[Word | None, Query()] = None,
    limit: Limit = 1000,
    after: After = None,
    order: Literal["asc", "desc"] = "desc",
) -> Response:
    """List files."""
    found = await gateway.client.ask(
        lambda store: store.files.page(
            tenant=caller.scope, purpose=purpose, after=after, limit=limit + 1, newest_first=order == "desc"
        )
    )
    return Json(page([view(file) for file in found], limit))


@router.get("/{file}", responses=answer_of(FileView))
async def file(file: str, gateway: Here, caller: Viewer) -> Response:
    """Return a file's metadata."""
    return Json(view(await find(gateway, caller, file)))


@router.get("/{file}/content", response_class=Response, responses=_CONTENT)
async def content(file: str, gateway: Here, caller: Viewer) -> Response:
    """Return a file's content: the upload, or a batch's responses, made from its job's results."""
    found = await find(gateway, caller, file)
    if found.bytes and await gateway.client.ask(lambda store: store.files.part(found.id, 0)) is None:
        return StreamingResponse(await batch_answers.content(gateway, found), media_type="application/octet-stream")
    headers = {"Content-Length": str(found.bytes)}
    return StreamingResponse(parts(gateway, found.id), media_type="application/octet-stream", headers=headers)


@router.delete("/{file}", responses=answer_of(FileDeleted))
async def remove(file: str, gateway: Here, caller: Member) -> Response:
    """Remove a file. A batch that still needs it fails."""
    found = await find(gateway, caller, file)
    await gateway.client.ask(lambda store: store.files.remove(found.id))
    return Json({"id": found.id, "object": "file", "deleted": True})


async def _store(gateway: Gateway, new: StoredFile, file: UploadFile) -> None:
    """Store an upload part by part. It is visible once it is complete, and removed if the upload is interrupted."""
    ask, size, number = gateway.client.ask, 0, 0
    await ask(lambda store: store.files.begin(new))
    try:
        while data := await file.read(PART_BYTES):
            await ask(lambda store: store.files.append(new.id, number, data))  # noqa: B023 - run at once
            size, number = size + len(data), number + 1
    except BaseException:
        await ask(lambda store: store.files.remove(new.id))
        raise
    await ask(lambda store: store.files.finish(new.id, size=size, at=time.time()))


async def find(gateway: Gateway, caller: Caller, id_: str, field: str = "id") -> StoredFile:
    """Return a file of the caller's. Raises Problem, which names the field."""
    known = _ID.fullmatch(id_)
    found = await gateway.client.ask(lambda store: store.files.find(id_, tenant=caller.scope)) if known else None
    if found is None:
        raise Problem(404, "file_not_found", f"no file {id_!r}", field=field, remedy="GET /v1/files lists yours")
    return found


async def parts(gateway: Gateway, id_: str) -> AsyncIterator[bytes]:
    """Yield a file's content."""
    number = 0
    while (
        data := await gateway.client.ask(lambda store: store.files.part(id_, number))  # noqa: B023 - run at once
    ) is not None:
        yield data
        number += 1


async def lines(gateway: Gateway, id_: str) -> AsyncIterator[bytes]:
    """Yield a file's lines without their line ends, including empty lines, so that they can be counted.

    Raises InputTooLarge for a line that is longer than a request's body may be.
    """
    rest, limit = b"", gateway.settings.max_body_bytes
    async for part in parts(gateway, id_):
        *whole, rest = (rest + part).split(b"\n")
        for line in whole:
            yield line
        if len(rest) > limit:
            raise InputTooLarge("input_file_id", f"has a line over {limit:,} bytes", "split the request")
    if rest:
        yield rest


def view(file: StoredFile) -> FileView:
    """Return a file in the format of OpenAI's API."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": int(file.created_at),
        "filename": file.name,
        "purpose": file.purpose,
        "status": "processed",
    }


def page(views: Sequence[Mapping[str, Any]], limit: int) -> dict[str, Any]:
    """Return a page in the format of OpenAI's API. `views` has one more view than `limit` if there is a next page."""
    shown = views[:limit]
    ends = {"first_id": shown[0]["id"], "last_id": shown[-1]["id"]} if shown else {"first_id": None, "last_id": None}
    return {"object": "list", "data": shown, **ends, "has_more": len(views) > limit}
