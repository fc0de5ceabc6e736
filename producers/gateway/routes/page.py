"""The page: an HTML file, its style and its scripts, served from `static/`. It gets all its data from the API.

Its content security policy allows only these files to run or load, so that a name or text that ever got into the page
as markup would have no effect.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import Response

from producers.gateway.problems import Problem

router = APIRouter(include_in_schema=False)

FOLDER = Path(__file__).parents[1] / "static"

#: Media types of the served files. A path in a request is never joined to the folder.
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

HEADERS = {
    "Cache-Control": "no-cache",  # revalidated each time, cheaply by ETag, so that files of two versions never mix
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self' blob:",  # images are fetched with the key
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


@router.get("/")
async def page(request: Request) -> Response:
    """Return the page."""
    return _file(request, "index.html")


@router.get("/static/{name}")
async def static(request: Request, name: str) -> Response:
    """Return a file of the page."""
    if name not in names():
        raise Problem(404, "NotFound", "there is no such file")
    return _file(request, name)


@cache
def names() -> frozenset[str]:
    """Return the names of the served files."""
    return frozenset(path.name for path in FOLDER.iterdir() if path.suffix in TYPES)


@cache
def _content(name: str) -> tuple[bytes, str]:
    data = (FOLDER / name).read_bytes()
    return data, f'"{hashlib.sha256(data).hexdigest()[:32]}"'


def _file(request: Request, name: str) -> Response:
    data, tag = _content(name)
    headers = {**HEADERS, "ETag": tag}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(data, media_type=TYPES[Path(name).suffix], headers=headers)
