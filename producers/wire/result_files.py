"""Results that are files: workers write them under a URL, the row holds a reference, clients read them.

They lie beside the blobs of large inputs (``[blobs]``, ``ARGOSY_BLOB_URL``), under ``made``; without a blob URL, in a
folder beside the SQLite store. A file belongs to a job and is named by its content, ``JOB/SHA256.png``, so writing it
twice gives the same file. The file is written before its row is committed, and deleted after its job is deleted.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from producers.wire.blobs import YOUNG_S, BlobSettings, jobs_under, open_place, reached, unwanted
from producers.wire.errors import ConfigurationError, FileUnavailable, InvalidInput
from producers.wire.messages import is_id, made_at, new_id

if TYPE_CHECKING:
    from fsspec.spec import AbstractFileSystem

#: The permitted file types, with the suffixes of their names.
MEDIA_TYPES = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp"}

_NAME = re.compile(rf"([0-9a-f]{{64}})\.({'|'.join(MEDIA_TYPES.values())})")


def place_of_files(blobs: BlobSettings, store_url: str) -> str:
    """Return the URL of a fleet's result files. Raises ConfigurationError if the fleet has no place for them."""
    if blobs.url:
        return f"{blobs.url.rstrip('/')}/made"
    from sqlalchemy import make_url

    url = make_url(store_url)
    if url.get_backend_name() != "sqlite" or not url.database or url.database == ":memory:":
        remedy = "set a folder or bucket that workers and clients share: [blobs] url in fleet.toml, or ARGOSY_BLOB_URL"
        raise ConfigurationError(f"blobs: this fleet has no place for results that are files; {remedy}")
    return f"file://{Path(url.database).resolve()}.files"


def media_type_of(name: str) -> str:
    """Return the media type of a file name. Raises InvalidInput."""
    ending = name.rpartition(".")[2]
    found = next((media_type for media_type, known in MEDIA_TYPES.items() if known == ending), None)
    if found is None:
        raise InvalidInput("name", f"{name!r} is not the name of a result's file")
    return found


@dataclass(slots=True)
class ResultFiles:
    """The files under a URL. Thread-safe; connects on first use."""

    url: str
    clock: Callable[[], float] = time.time
    _opened: tuple[AbstractFileSystem, str] | None = None

    def put(self, job: str, data: bytes, media_type: str) -> dict[str, Any]:
        """Write a file unless it exists, and return the reference to it. Raises BlobsUnavailable."""
        fs, root = self._fs()
        sha256 = hashlib.sha256(data).hexdigest()
        path = f"{root}/{job}/{sha256}.{MEDIA_TYPES[media_type]}"
        with reached():
            if not self._whole(path, len(data)):
                fs.makedirs(f"{root}/{job}", exist_ok=True)
                _write(fs, path, data)
        uri = str(fs.unstrip_protocol(path))
        return {"uri": uri, "media_type": media_type, "bytes": len(data), "sha256": sha256}

    def read(self, reference: Mapping[str, Any]) -> bytes:
        """Return the file of a reference, by the last two parts of its URI: no file outside `url` can be read.

        Raises InvalidInput for a malformed reference, FileUnavailable if the file is missing or differs from the
        written one, and BlobsUnavailable if the place cannot be reached.
        """
        uri = reference.get("uri")
        job, _, name = str(uri).rpartition("/")
        return self.get(job.rpartition("/")[2], name)

    def get(self, job: str, name: str) -> bytes:
        """Return a job's file by its name. Raises the same errors as `read`."""
        named = _NAME.fullmatch(name)
        if not is_id(job) or named is None:
            raise InvalidInput(
                "uri", f"{job}/{name} is not the place of a result's file", "pass the reference in the row"
            )
        fs, root = self._fs()
        data = None
        with reached(), suppress(FileNotFoundError):
            data = fs.cat_file(f"{root}/{job}/{name}")
        if data is None:
            raise FileUnavailable(f"{job}/{name} is missing: its job was purged, or [blobs] url names another place")
        if hashlib.sha256(data).hexdigest() != named[1]:
            raise FileUnavailable(f"{job}/{name} is damaged: its sha256 differs from its name")
        return bytes(data)

    def sweep(self, there: Callable[[Collection[str]], Collection[str]]) -> int:
        """Delete the files of jobs that `there` does not return; return their number. Raises BlobsUnavailable.

        The files of young jobs stay: the job row of an item that is not durable may come only with its result.
        """
        if self.url.startswith("file://") and not Path(self.url.removeprefix("file://")).is_dir():
            return 0  # no file was ever written here, so fsspec is not needed
        with reached():
            old = (job for job in jobs_under(*self._fs()) if self.clock() - made_at(job) >= YOUNG_S)
            return sum(map(self._remove, unwanted(old, there)))

    def _remove(self, job: str) -> int:
        fs, root = self._fs()
        files = fs.find(f"{root}/{job}")
        for path in files:
            with suppress(FileNotFoundError):  # another node was faster
                fs.rm_file(path)
        with suppress(OSError, NotImplementedError):  # object stores have no folders
            fs.rmdir(f"{root}/{job}")
        return len(files)

    def _whole(self, path: str, size: int) -> bool:
        fs, _ = self._fs()
        return bool(fs.exists(path)) and fs.size(path) == size

    def _fs(self) -> tuple[AbstractFileSystem, str]:
        if self._opened is None:
            self._opened = open_place(self.url)
        return self._opened


def _write(fs: AbstractFileSystem, path: str, data: bytes) -> None:
    """Write a file whole or not at all, as object stores do by themselves.

    Two workers may write the same file; if one dies midway, the other's row must not refer to half a file.
    """
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    if "file" not in protocols:
        fs.pipe_file(path, data)
        return
    part = f"{path}.{new_id()}"
    fs.pipe_file(part, data)
    fs.mv(part, path)
