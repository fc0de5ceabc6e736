"""Passages of one's own documents by likeness: an index is a head whose rows are the passages' vectors.

Exact: each text is compared with every passage, in one matrix product. That is right for up to some hundred thousand passages; whoever has
millions needs an approximate index, which this is not. A new file is taken with the next batch; what was found says which edition it is of.
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

#: What a row without the task asks for.
_NONE = 0

Stamp = tuple[int, int, int]


@dataclass(frozen=True)
class Described:
    """What an index file says of itself."""

    encoder: str
    edition: str


class IndexFile:
    """One index by its folder, as it is now: read again when another file lies there. For both sides of the model; from many threads."""

    def __init__(self, folder: Path, where: str) -> None:
        self.path = folder / INDEX_FILE
        self._where = where
        self._seen: tuple[Stamp, Described] | None = None
        self._held: tuple[Stamp, _Held] | None = None

    def described(self) -> Described:
        """Return what the file says of itself. Raises InputUnavailable if there is none, ConfigurationError if it is no index."""
        stamp, seen = self._stamp(), self._seen
        if seen is None or seen[0] != stamp:
            self._seen = seen = stamp, self._read_metadata()
        return seen[1]

    def check(self, revision: str) -> None:
        """Raise InputUnavailable unless the index is there and was made with this revision of the encoder."""
        described = self.described()
        if described.encoder != revision and not described.encoder.startswith(f"{revision}+"):
            problem = f"is to be looked up in an index that was made with {described.encoder}, and this is {revision}"
            raise InputUnavailable("input", problem, "make the index again: argosy index … --again")

    def held(self, device: str) -> _Held:
        """Return the vectors on the device, with their passages. In the device process only."""
        stamp, held = self._stamp(), self._held
        while held is None or held[0] != stamp:
            held = stamp, _Held.load(self.path, device)
            stamp = self._stamp()  # one that was replaced meanwhile may be half of each
        self._held = held
        return held[1]

    def _stamp(self) -> Stamp:
        try:
            found = self.path.stat()
        except OSError as error:
            problem = f"cannot be looked up: {self._where}: no {self.path}"
            raise InputUnavailable("input", problem, "make it: argosy index DOCUMENTS --out FOLDER") from error
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _read_metadata(self) -> Described:
        return read_described(
            self.path,
            INDEX_FORMAT,
            lambda metadata: Described(metadata["encoder"], metadata["edition"]),
            where=f"{self._where}: ",
            remedy="make it again: argosy index",
        )


@dataclass(frozen=True)
class _Held:
    """An index in the device process: vectors on the device, passages in the file."""

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
        mapped = np.memmap(path, dtype=np.uint8, mode="r")  # the passages are last in the file; they stay there
        return cls(vectors, bounds, mapped[len(mapped) - int(bounds[-1]) :], edition)

    def nearest(self, texts: torch.Tensor, counts: Sequence[int]) -> list[list[dict[str, Any]]]:
        """Return for each text `(rows, width)` so many passages, nearest first."""
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
    """Return what a row carries of these tasks: how many passages each wants."""
    return {
        f"top/{task}": np.array(own.top_k, dtype=np.int32)
        for task, own in params.items()
        if isinstance(own, PassageRetrievalParams)
    }


def counts(rows: Sequence[Arrays], tasks: Sequence[str]) -> Arrays:
    """Return for each task that a batch has how many passages its rows want `(rows,)`."""
    found = {}
    for name in (f"top/{task}" for task in tasks):
        if any(name in row for row in rows):
            found[name] = np.array([row.get(name, _NONE) for row in rows], dtype=np.int32)
    return found


def answer(output: Array, params: PassageRetrievalParams) -> list[dict[str, Any]]:
    """Return the passages that are near enough."""
    found: list[dict[str, Any]] = ragged.unpack(output)
    return [passage for passage in found if passage["score"] >= params.min_score]
