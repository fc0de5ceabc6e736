"""Large inputs by reference: the claim check. Producers put them under one URL, workers read them there, sweeps remove them.

On the wire there is a `BlobInput`, which names a job and a blob, never a place: a worker looks only below the URL of its own
settings, so that no message can make it read anything else.

A blob belongs to a job, ``URL/JOB/BLOB``, and both names tell when they were made. It goes once its job is gone, or is finished
and its inputs were dropped; so a blob that was written for a submission that then failed goes too. Young ones stay, since
their envelope may be about to be committed.
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

#: Blobs are written so many at a time.
WRITERS = 8

#: A blob younger than this is left alone, whatever becomes of its job.
YOUNG_S = 3600.0

#: Jobs that are asked about together.
_JOBS = 500


class BlobSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where large inputs lie: `url` as fsspec has them, the same for producers and workers; none: all travel inline.

    An input of more than `inline_bytes` travels by reference.
    """

    url: str = ""
    inline_bytes: int = 1024 * 1024

    def __post_init__(self) -> None:
        if self.inline_bytes < 0:
            raise ValueError("`inline_bytes` must be 0 or more")


@dataclass(slots=True)
class Blobs:
    """The inputs that lie under one URL. Thread-safe; connects when first used."""

    settings: BlobSettings
    clock: Callable[[], float] = time.time
    _opened: tuple[AbstractFileSystem, str] | None = None

    def __bool__(self) -> bool:
        return bool(self.settings.url)

    def check_in(self, items: Sequence[Item], job: str) -> Sequence[Item]:
        """Return items with their large inputs put away. Raises BlobsUnavailable."""
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
        """Write a text or bytes; return what stands for it. Raises BlobsUnavailable."""
        is_text = isinstance(value, str)
        reference = BlobInput(job, new_id(), is_text)
        fs, _ = self._fs()
        with reached():
            path = self._path(reference)
            fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            fs.pipe_file(path, value.encode() if isinstance(value, str) else _bytes(value))
        return reference

    def get(self, reference: BlobInput, limit_bytes: int) -> str | InlineBytes:
        """Return what was put away. Raises InvalidInput, InputTooLarge, or InputUnavailable if it cannot be read."""
        if not self:
            remedy = "name the producers' [blobs] url in the worker's fleet.toml, or ARGOSY_BLOB_URL"
            raise InvalidInput("input", "travels by reference, and this worker knows no place for that", remedy)
        if not (is_id(reference.job) and is_id(reference.blob)):
            raise InvalidInput("input", "is a reference with names that are none of ours")
        fs, _ = self._fs()
        try:
            with fs.open(self._path(reference), "rb") as file:
                content = file.read(limit_bytes + 1)
        except FileNotFoundError as error:
            raise InputUnavailable(
                "input", "is kept no more where it was put by reference", "submit it again"
            ) from error
        except Exception as error:  # each file system has errors of its own
            raise InputUnavailable("input", f"cannot be read by reference: {error}", "replay it later") from error
        if len(content) > limit_bytes:
            raise InputTooLarge("input", f"has over {limit_bytes:,} bytes", "send a smaller one")
        return content.decode("utf-8", "replace") if reference.text else InlineBytes(content)

    def sweep(self, wanted: Callable[[Collection[str]], Collection[str]]) -> int:
        """Remove the blobs of jobs that are not among the `wanted` of them; return how many. Raises BlobsUnavailable."""
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
                fs.rmdir(f"{root}/{job}")  # object stores have no folders; elsewhere they would pile up
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
    """Return a URL's file system, and where in it that is. Raises ConfigurationError."""
    try:
        from fsspec.core import url_to_fs

        fs, root = url_to_fs(url)
    except (ImportError, ValueError) as error:
        remedy = "pip install 'argosy[fsspec]' and the package for that store, and check [blobs] url"
        raise ConfigurationError(f"blobs: {error}; {remedy}") from error
    return fs, str(root).rstrip("/")


@contextmanager
def reached() -> Iterator[None]:
    """Turn what a file system raises into BlobsUnavailable."""
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
    assert isinstance(value, InlineBytes), "only texts and bytes are put away"
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
    """Yield those of `jobs` that are not among the `wanted` of them, which are asked for many at once."""
    waiting = iter(jobs)
    while portion := list(islice(waiting, _JOBS)):
        yield from set(portion) - set(wanted(portion))
