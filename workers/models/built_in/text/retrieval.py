"""Retrieve passages of the operator's documents by similarity: an index is a head whose rows are the passages' vectors.

The search is exact: a matrix product compares each text with every passage. That suits up to some hundred thousand
passages; millions need an approximate index, which this is not. A replaced index file is read with the next batch, and
each answer names the edition of its index.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from producers.wire.errors import InputUnavailable
from producers.wire.kinds.retrieval import INDEX_FILE, INDEX_FORMAT, PassageRetrievalParams
from workers.models.built_in.described_file import read_described
from workers.models.interface import ragged
from workers.models.interface.model import SCORE_DIGITS, Array, Arrays

if TYPE_CHECKING:
    import torch

KIND = "passage-retrieval"

#: The number of passages for a row without the task.
_NONE = 0

Stamp = tuple[int, int, int]


@dataclass(frozen=True)
class IndexDescription:
    """The metadata of an index file."""

    encoder: str
    edition: str


class IndexFile:
    """The index in a folder, reread whenever its file is replaced. For both processes of the model; thread-safe."""

    def __init__(self, folder: Path, where: str) -> None:
        self.path = folder / INDEX_FILE
        self._where = where
        self._seen: tuple[Stamp, IndexDescription] | None = None
        self._held: tuple[Stamp, _Held] | None = None

    def described(self) -> IndexDescription:
        """Return the file's metadata. Raises InputUnavailable without a file, ConfigurationError if it is no index."""
        stamp, seen = self._stamp(), self._seen
        if seen is None or seen[0] != stamp:
            self._seen = seen = stamp, self._read_metadata()
        return seen[1]

    def check(self, revision: str) -> None:
        """Raise InputUnavailable unless the index exists and was made with this revision of the encoder."""
        described = self.described()
        if described.encoder != revision and not described.encoder.startswith(f"{revision}+"):
            problem = f"needs an index of the encoder {revision}, but the index was made with {described.encoder}"
            raise InputUnavailable("input", problem, "make the index again: argosy index … --again")

    def held(self, device: str) -> _Held:
        """Return the vectors on the device, with their passages. Call it in the device process only."""
        stamp, held = self._stamp(), self._held
        while held is None or held[0] != stamp:
            held = stamp, _Held.load(self.path, device)
            stamp = self._stamp()  # a file replaced during the read may be half old, half new
        self._held = held
        return held[1]

    def _stamp(self) -> Stamp:
        try:
            found = self.path.stat()
        except OSError as error:
            problem = f"has no index to search: {self._where}: {self.path} does not exist"
            raise InputUnavailable("input", problem, "make it: argosy index DOCUMENTS --out FOLDER") from error
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _read_metadata(self) -> IndexDescription:
        return read_described(
            self.path,
            INDEX_FORMAT,
            lambda metadata: IndexDescription(metadata["encoder"], metadata["edition"]),
            where=f"{self._where}: ",
            remedy="make it again: argosy index",
        )


@dataclass(frozen=True)
class _Held:
    """An index in the device process: the vectors are on the device, the passages stay in the file."""

    vectors: torch.Tensor
    bounds: Array
    passages: Array
    edition: str

    @classmethod
    def load(cls, path: Path, device: str) -> _Held:
        from safetensors import safe_open

        with safe_open(path, framework="pt", device=device) as file:
            vectors, bounds = file.get_tensor("vectors"), file.get_tensor("bounds").cpu().numpy()
            edition = file.metadata()["edition"]
        mapped = np.memmap(path, dtype=np.uint8, mode="r")  # the passages are last in the file and stay there
        return cls(vectors, bounds, mapped[len(mapped) - int(bounds[-1]) :], edition)

    def nearest(self, texts: torch.Tensor, counts: Sequence[int]) -> list[list[dict[str, Any]]]:
        """Return the nearest passages for each text `(rows, width)`, as many as `counts` says, nearest first."""
        import torch

        cosines = torch.nn.functional.normalize(texts.float(), dim=-1) @ self.vectors.T
        found = cosines.topk(min(max(counts), len(self.vectors)), dim=-1)
        scores, places = found.values.cpu().numpy(), found.indices.cpu().numpy()
        return [
            [self._passage(place, score) for place, score in zip(own[:count], near[:count], strict=True)]
            for own, near, count in zip(places, scores, counts, strict=True)
        ]

    def _passage(self, place: int, score: float) -> dict[str, Any]:
        stored = msgspec.json.decode(self.passages[self.bounds[place] : self.bounds[place + 1]].tobytes())
        return {"score": round(float(score), SCORE_DIGITS), **stored, "edition": self.edition}


# --- rows and batches -----------------------------------------------------------------------------


def asked(params: Mapping[str, msgspec.Struct]) -> Arrays:
    """Return the arrays that retrieval tasks add to a row: the number of passages for each task."""
    return {
        f"top/{task}": np.array(own.top_k, dtype=np.int32)
        for task, own in params.items()
        if isinstance(own, PassageRetrievalParams)
    }


def counts(rows: Sequence[Arrays], tasks: Sequence[str]) -> Arrays:
    """Return, for each of the tasks in a batch, the number of passages for each row `(rows,)`."""
    found = {}
    for name in (f"top/{task}" for task in tasks):
        if any(name in row for row in rows):
            found[name] = np.array([row.get(name, _NONE) for row in rows], dtype=np.int32)
    return found


def answer(output: Array, params: PassageRetrievalParams) -> list[dict[str, Any]]:
    """Return the passages with a score of at least `min_score`."""
    found: list[dict[str, Any]] = ragged.unpack(output)
    return [passage for passage in found if passage["score"] >= params.min_score]
