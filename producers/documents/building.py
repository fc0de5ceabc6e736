"""Build an index with a fleet: its passages are items of an ordinary job, each with a vector."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import msgspec

from producers.client.handles import value
from producers.documents import index_file
from producers.documents.passages import Document, PassageText, passages
from producers.wire.errors import ConfigurationError, InvalidInput
from producers.wire.kinds.retrieval import PIECES
from results_store.records import JobStatus, Result

if TYPE_CHECKING:
    from producers.client.client import Client
    from producers.client.handles import Job

#: Seconds to keep the job of the vectors, so that the same call can resume it for a day.
KEPT_S = 24 * 3600.0

_DECODER = msgspec.json.Decoder(PassageText)


@dataclass(frozen=True, slots=True)
class Built:
    """A written index: its `file`, its number of documents and passages, and its `edition`."""

    file: Path
    documents: int
    passages: int
    edition: str


def write_index(
    client: Client,
    documents: Iterable[Document],
    out: str | Path,
    *,
    task: str = "embedding",
    pieces: int = PIECES,
    again: bool = False,
    timeout_s: float | None = None,
    on_progress: Callable[[JobStatus], object] | None = None,
) -> Built:
    """Cut documents into passages, let `task` compute their vectors, and write the index into the folder `out`.

    After an interruption the same call resumes, for a day; `again` starts over. Workers that serve the index load the
    new version with their next batch. Raises InvalidInput if the documents have no text, ItemFailed for a passage
    without a vector, and ConfigurationError if the model changed in the meantime.
    """
    _check_task(client, task)
    with TemporaryDirectory(prefix="argosy-index-") as folder:
        texts = _spool(documents, Path(folder) / "passages", pieces)
        key = None if again else f"index {hashlib.sha256(f'{task} {texts.digest}'.encode()).hexdigest()[:32]}"
        inputs = (passage.text for passage in texts.read())
        job = client.submit_many(task, inputs, name=f"index {Path(out).name}", idempotency_key=key, ttl_s=KEPT_S)
        job.wait(timeout_s, on_progress=on_progress)
        vectors = _vectors(job, texts, Path(folder) / "vectors")
        file = index_file.write(vectors, Path(out))
    return Built(file, texts.documents, len(texts.bounds) - 1, vectors.edition)


@dataclass(frozen=True, slots=True)
class _Texts:
    path: Path
    bounds: array[int]
    documents: int
    digest: str

    def read(self) -> Iterator[PassageText]:
        with self.path.open("rb") as file:
            for place in range(len(self.bounds) - 1):
                yield _DECODER.decode(file.read(self.bounds[place + 1] - self.bounds[place]))


def _check_task(client: Client, task: str) -> None:
    kind = client.catalogue.task(task).kind.name
    if kind != "feature-extraction":
        raise InvalidInput(
            "task", f"{task!r} is {kind}, which gives no vector", "name a task of kind feature-extraction"
        )


def _spool(documents: Iterable[Document], path: Path, pieces: int) -> _Texts:
    if pieces < 1:
        raise InvalidInput("pieces", f"must be 1 or more, not {pieces}")
    bounds, count, digest = array("q", [0]), 0, hashlib.sha256()
    with path.open("wb") as file:
        for document in documents:
            count += 1
            for passage in passages(document, pieces=pieces):
                encoded = msgspec.json.encode(passage)
                digest.update(encoded)
                bounds.append(bounds[-1] + file.write(encoded))
    if len(bounds) == 1:
        raise InvalidInput("documents", "contain no text", "name files with text")
    return _Texts(path, bounds, count, digest.hexdigest())


def _vectors(job: Job, texts: _Texts, path: Path) -> index_file.Contents:
    digest, encoders, count = hashlib.sha256(texts.digest.encode()), set[str](), 0
    with path.open("wb") as file:
        for row in job.results():
            vector = _vector(row, texts)
            encoders.add(str(row.model_revision))
            digest.update(vector)
            file.write(vector)
            count += 1
    if len(encoders) > 1:
        found = " and ".join(sorted(encoders))
        raise ConfigurationError(f"the vectors come from different models, {found}: make the index again")
    if count != len(texts.bounds) - 1:
        raise ConfigurationError(f"job {job.id} has {count} of {len(texts.bounds) - 1} vectors: make the index again")
    width = path.stat().st_size // count // 4
    return index_file.Contents(texts.path, texts.bounds, path, width, encoders.pop(), digest.hexdigest()[:12])


def _vector(row: Result, texts: _Texts) -> bytes:
    if row.vector is not None:
        return row.vector
    passage = next(passage for place, passage in enumerate(texts.read()) if place == row.seq)
    try:
        value(row)
    except Exception as error:
        error.add_note(f"{passage.document}, characters {passage.start} to {passage.end}; try fewer pieces per passage")
        raise
    raise ConfigurationError(f"{row.task} gives no vectors")
