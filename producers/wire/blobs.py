"""Large inputs by reference (claim check): producers write them under a URL, workers read them, sweeps delete them.

The wire carries a `BlobInput`, which names a job and a blob but no place. A worker reads only below the URL of its own
settings, so no message can make it read any other file.

A blob lies at ``URL/JOB/BLOB``; both names contain their time of creation. A sweep deletes a blob if its job is
deleted, or is finished and has dropped its inputs. This includes the blobs of a submission that failed. A sweep keeps
young blobs, because their envelope may not be committed yet.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import msgspec

from producers.wire.errors import BlobsUnavailable, ConfigurationError, InputTooLarge, InputUnavailable, InvalidInput
from producers.wire.messages import BlobInput, InlineBytes, Input, Item, is_id, made_at, new_id
from producers.wire.packing import weight

if TYPE_CHECKING:
    from fsspec.spec import AbstractFileSystem

#: Threads that write blobs at the same time.
WRITERS = 8

#: A sweep never deletes a blob younger than this. The age is by the producer's and the sweeper's clocks: of the three
#: hours, one is for the submission, and each clock may be wrong by another.
YOUNG_S = 3 * 3600.0

#: Jobs per query to the store.
_JOBS = 500


class BlobSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The place of large inputs: an fsspec `url` for producers and workers. Without it all inputs travel inline.

    An input of more than `inline_bytes` travels by reference.
    """

    url: str = ""
    inline_bytes: int = 1024 * 1024

    def __post_init__(self) -> None:
        if self.inline_bytes < 0:
            raise ValueError("`inline_bytes` must be 0 or more")


@dataclass(slots=True)
class Blobs:
    """The large inputs under a URL. Thread-safe; connects on first use."""

    settings: BlobSettings
    clock: Callable[[], float] = time.time
    _opened: tuple[AbstractFileSystem, str] | None = None

    def __bool__(self) -> bool:
        return bool(self.settings.url)

    def check_in(self, items: Sequence[Item], job: str) -> Sequence[Item]:
        """Return the items, with a reference in place of each large input. Raises BlobsUnavailable."""
        if not self:
            return items
        limit = self.settings.inline_bytes
        large = [n for n, item in enumerate(items) if _portable(item.input) and weight(item.input) > limit]
        if not large:
            return items
        with ThreadPoolExecutor(min(WRITERS, len(large)), thread_name_prefix="argosy blobs") as pool:
            put = list(pool.map(lambda place: self.put(items[place].input, job), large))
        checked = list(items)
        for place, reference in zip(large, put, strict=True):
            checked[place] = msgspec.structs.replace(items[place], input=reference)
        return checked

    def put(self, value: Input, job: str) -> BlobInput:
        """Write a text or bytes and return the reference. Raises BlobsUnavailable."""
        is_text = isinstance(value, str)
        reference = BlobInput(job, new_id(), is_text)
        fs, _ = self._fs()
        with reached():
            path = self._path(reference)
            fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            fs.pipe_file(path, value.encode() if isinstance(value, str) else _bytes(value))
        return reference

    def get(self, reference: BlobInput, limit_bytes: int) -> str | InlineBytes:
        """Return the input of a reference. Raises InvalidInput, InputTooLarge, or InputUnavailable if unreadable."""
        if not self:
            remedy = "set the producers' [blobs] url in the worker's fleet.toml, or ARGOSY_BLOB_URL"
            raise InvalidInput("input", "is stored in blob storage, but this worker has no [blobs] url", remedy)
        if not (is_id(reference.job) and is_id(reference.blob)):
            raise InvalidInput("input", "is a blob reference with invalid names")
        fs, _ = self._fs()
        try:
            with fs.open(self._path(reference), "rb") as file:
                content = file.read(limit_bytes + 1)
        except FileNotFoundError as error:
            raise InputUnavailable("input", "is no longer in blob storage", "submit it again") from error
        except Exception as error:  # each file system has errors of its own
            problem, away = f"cannot be read from blob storage: {error}", not isinstance(error, PermissionError)
            raise InputUnavailable("input", problem, "replay it later", momentary=away, whole_place=away) from error
        if len(content) > limit_bytes:
            raise InputTooLarge("input", f"has over {limit_bytes:,} bytes", "send a smaller input")
        return content.decode("utf-8", "replace") if reference.text else InlineBytes(content)

    def sweep(self, wanted: Callable[[Collection[str]], Collection[str]]) -> int:
        """Delete the old blobs of jobs that `wanted` does not return; return their number. Raises BlobsUnavailable."""
        if not self:
            return 0
        with reached():
            return sum(map(self._remove, unwanted(jobs_under(*self._fs()), wanted)))

    def _remove(self, job: str) -> int:
        fs, root = self._fs()
        old = [path for path in fs.find(f"{root}/{job}") if self._is_old(str(path).rpartition("/")[2])]
        for path in old:
            try:
                fs.rm_file(path)
            except FileNotFoundError:  # another node was faster
                continue
        if not fs.find(f"{root}/{job}") and fs.exists(f"{root}/{job}"):
            with suppress(OSError, NotImplementedError):
                fs.rmdir(f"{root}/{job}")  # object stores have no folders; elsewhere empty ones would accumulate
        return len(old)

    def _is_old(self, blob: str) -> bool:
        return is_id(blob) and self.clock() - made_at(blob) >= YOUNG_S

    def _path(self, reference: BlobInput) -> str:
        return f"{self._fs()[1]}/{reference.job}/{reference.blob}"

    def _fs(self) -> tuple[AbstractFileSystem, str]:
        if self._opened is None:
            self._opened = open_place(self.settings.url)
        return self._opened


def open_place(url: str) -> tuple[AbstractFileSystem, str]:
    """Return a URL's file system and the path in it. Raises ConfigurationError."""
    try:
        from fsspec.core import url_to_fs

        fs, root = url_to_fs(url)
    except (ImportError, ValueError) as error:
        remedy = "pip install 'argosy[fsspec]' and the package for that store, and check [blobs] url"
        raise ConfigurationError(f"blobs: {error}; {remedy}") from error
    return fs, str(root).rstrip("/")


@contextmanager
def reached() -> Iterator[None]:
    """Turn a file system's errors into BlobsUnavailable."""
    try:
        yield
    except ConfigurationError:
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise BlobsUnavailable(f"blobs: {what}; check that [blobs] url can be reached and written") from error


def _portable(value: Input) -> bool:
    return isinstance(value, str | InlineBytes)


def _bytes(value: Any) -> bytes:
    assert isinstance(value, InlineBytes), "only texts and bytes are stored as blobs"
    return value.data


def jobs_under(fs: AbstractFileSystem, root: str) -> Iterator[str]:
    """Yield the jobs that have a folder under `root`."""
    if not fs.exists(root):
        return
    fs.invalidate_cache(root)
    for path in fs.ls(root, detail=False):
        job = str(path).rstrip("/").rpartition("/")[2]
        if is_id(job):
            yield job


def unwanted(jobs: Iterable[str], wanted: Callable[[Collection[str]], Collection[str]]) -> Iterator[str]:
    """Yield the `jobs` that `wanted` does not return, asking for many at once."""
    waiting = iter(jobs)
    while portion := list(islice(waiting, _JOBS)):
        yield from set(portion) - set(wanted(portion))
