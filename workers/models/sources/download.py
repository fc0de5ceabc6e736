"""Download a file over HTTP: resumed after a broken connection, and verified before it gets its final name."""

from __future__ import annotations

import hashlib
import shutil
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TypeAlias

import httpx2
import truststore

from producers.wire.errors import ArgosyError

#: Called with a file's name, the bytes received, and the total bytes (None: unknown).
Progress: TypeAlias = Callable[[str, int, int | None], None]

_ATTEMPTS = 5


class PullFailed(ArgosyError):
    """A file could not be downloaded, or its sha256 is wrong. A partial download is kept for the next attempt."""


@dataclass(frozen=True, slots=True)
class Offered:
    """A file in a registry: its name, its URL (``https:``, ``http:`` or ``file:``) and connection settings."""

    name: str
    url: str
    cert: str | None = None
    proxy: str | None = None
    timeout_s: float = 60.0

    @contextmanager
    def client(self) -> Iterator[httpx2.Client]:
        """Yield an HTTP client that trusts pip's certificate setting, or else the system's certificates."""
        trust: ssl.SSLContext = truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if self.cert:
            trust = ssl.create_default_context(cafile=self.cert)
        with httpx2.Client(verify=trust, proxy=self.proxy, timeout=self.timeout_s, follow_redirects=True) as client:
            yield client


def silent(name: str, done_bytes: int, total_bytes: int | None) -> None:
    """Show no progress."""


def fetch(offered: Offered, target: Path, *, sha256: str, progress: Progress = silent, pause_s: float = 1.0) -> None:
    """Download a file to `target` and check its sha256. Resumes from ``target.partial``.

    A broken connection is retried, after a pause that grows by `pause_s` each time. Raises PullFailed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.partial")
    if offered.url.startswith("file:"):
        shutil.copyfile(httpx2.URL(offered.url).path, partial)
    else:
        _fetch_http(offered, partial, progress, pause_s)
    with partial.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        partial.unlink()  # the next attempt must not build on wrong content
        problem = f"its sha256 is {found}, not {sha256}; the source differs from the pinned file"
        raise PullFailed(f"{offered.name}: {problem}")
    partial.replace(target)


def _fetch_http(offered: Offered, partial: Path, progress: Progress, pause_s: float) -> None:
    with offered.client() as client:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                _fetch_rest(client, offered, partial, progress)
                break
            except httpx2.HTTPStatusError as error:
                status = error.response.status_code
                if status < 500 or attempt == _ATTEMPTS:
                    raise PullFailed(f"{offered.name}: the server answers {status}") from error
            except httpx2.TransportError as error:
                if attempt == _ATTEMPTS:
                    reason = str(error) or type(error).__name__
                    raise PullFailed(f"{offered.name}: {reason}; run the command again to resume") from error
            time.sleep(attempt * pause_s)


def _fetch_rest(client: httpx2.Client, offered: Offered, partial: Path, progress: Progress) -> None:
    """Append the missing bytes. A server that ignores the range sends the whole file, which then starts anew."""
    have = partial.stat().st_size if partial.exists() else 0
    # identity: a range counts the file's own bytes, not compressed ones
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with client.stream("GET", offered.url, headers=headers) as response:
        if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # nothing is missing; the sha256 decides whether the file is right
        response.raise_for_status()
        resumed = response.status_code == HTTPStatus.PARTIAL_CONTENT
        done = have if resumed else 0
        length = response.headers.get("Content-Length")
        total = done + int(length) if length else None
        with partial.open("ab" if resumed else "wb") as file:
            for chunk in response.iter_raw():
                file.write(chunk)
                done += len(chunk)
                progress(offered.name, done, total)
