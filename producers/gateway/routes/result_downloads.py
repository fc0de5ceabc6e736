"""Results that are files, for callers who may see their job."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from starlette.responses import Response

from producers.gateway.gateway import Here, Viewer
from producers.gateway.routes.browsing import IMAGE_HEADERS
from producers.wire.result_files import media_type_of

router = APIRouter(prefix="/api", tags=["jobs"])

_HEADERS = IMAGE_HEADERS | {"Content-Disposition": 'inline; filename="result"'}

Name = Annotated[str, Path(pattern=r"^[0-9a-f]{64}\.[a-z]{3,4}$", description="The last part of the file's `uri`.")]


@router.get(
    "/jobs/{job}/files/{name}",
    response_class=Response,
    responses={200: {"content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}}},
)
async def file(job: str, name: Name, gateway: Here, caller: Viewer) -> Response:
    """Return a file that a result of the job refers to, for example by `output.image`.

    `{job}` and `{name}` are the last two parts of its `uri`.
    """
    await gateway.job(job, caller)
    data = await gateway.client.read_file({"uri": f"{job}/{name}"})
    return Response(data, media_type=media_type_of(name), headers=_HEADERS)
