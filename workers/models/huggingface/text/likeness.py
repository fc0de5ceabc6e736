"""Zero-shot classification by likeness: the labels whose hypotheses are nearest to a text, as sentence encoders place them.

The hypotheses travel with the texts' batch, each once, and the device remembers their vectors: labels that are asked for again and again cost
nothing. No head and no training; how well it does depends on how well labels say what they mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from producers.wire.kinds.text import ZeroShotClassificationParams
from workers.models.interface.model import Array, Arrays

if TYPE_CHECKING:
    import torch

KIND = "zero-shot-classification"

#: What a cosine is multiplied with before the softmax over labels, as in the training of sentence encoders.
SCALE = 20.0

_NONE = -1


def hypotheses(params: ZeroShotClassificationParams) -> list[str]:
    """Return the sentence that each label stands for."""
    return [params.hypothesis_template.replace("{}", label) for label in params.candidate_labels]


def scores(cosines: Array, params: ZeroShotClassificationParams) -> Array:
    """Return a score for each label: a softmax over 20 times the cosine; with `multi_label` the cosine, where it is over 0."""
    if params.multi_label:
        return np.asarray(np.maximum(cosines, 0))
    exponents = np.exp(SCALE * (cosines - cosines.max()))
    return np.asarray(exponents / exponents.sum())


# --- rows and batches -----------------------------------------------------------------------------


def attached(sequences: Mapping[str, Sequence[Array]]) -> Arrays:
    """Return what a row carries of its tasks' hypotheses: their tokens flat, and their lengths."""
    found: Arrays = {}
    for task, own in sequences.items():
        found[f"labels/{task}"] = np.concatenate(own)
        found[f"lengths/{task}"] = np.array([len(ids) for ids in own], dtype=np.int32)
    return found


def placed(rows: Sequence[Arrays], tasks: Sequence[str]) -> tuple[list[Array], Arrays]:
    """Return the distinct hypotheses of a batch, and for each task where among them its labels are.

    ``labels/TASK`` is `(rows, most labels)`; rows without the task have none.
    """
    further: dict[bytes, int] = {}
    sequences: list[Array] = []
    places: Arrays = {}
    for task in tasks:
        own = [_split(row, task) for row in rows]
        table = np.full((len(rows), max(map(len, own))), _NONE, dtype=np.int64)
        for row, labels in enumerate(own):
            for n, ids in enumerate(labels):
                place = further.setdefault(ids.tobytes(), len(sequences))
                if place == len(sequences):
                    sequences.append(ids)
                table[row, n] = place
        if table.size:
            places[f"labels/{task}"] = table
    return sequences, places


def _split(row: Arrays, task: str) -> list[Array]:
    if f"labels/{task}" not in row:
        return []
    return np.split(row[f"labels/{task}"], np.cumsum(row[f"lengths/{task}"])[:-1])


# --- on the device --------------------------------------------------------------------------------


class Remembered:
    """The vectors of hypotheses that were asked for before, as many as are worth remembering; the oldest go first."""

    def __init__(self, encode: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], most: int = 4096) -> None:
        self._encode = encode
        self._most = most
        self._vectors: dict[bytes, torch.Tensor] = {}

    def vectors(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the vector of each sequence; `encode` is asked for those that are new, together."""
        import torch

        keys = [row[kept].tobytes() for row, kept in zip(ids.cpu().numpy(), mask.cpu().numpy(), strict=True)]
        new = [place for place, key in enumerate(keys) if key not in self._vectors]
        if new:
            made = self._encode(ids[new], mask[new])
            # copies: what a backend returns may be overwritten by its next call
            self._vectors |= {keys[place]: vector.clone() for place, vector in zip(new, made, strict=True)}
        found = torch.stack([self._vectors[key] for key in keys])
        while len(self._vectors) > self._most:
            del self._vectors[next(iter(self._vectors))]
        return found


def cosines(pooled: torch.Tensor, vectors: torch.Tensor, rows: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Return the cosine of each row with each of its labels `(rows, most labels)`; what is no label's is without meaning."""
    import torch

    texts, hypotheses_ = (torch.nn.functional.normalize(own, dim=-1) for own in (pooled, vectors))
    labels = hypotheses_[places.index_select(0, rows).clamp(min=0)]
    return torch.einsum("rw,rlw->rl", texts.index_select(0, rows), labels)


def answer(cosines_: Array, params: ZeroShotClassificationParams) -> list[tuple[str, float]]:
    """Return the labels with their scores, best first."""
    labels = params.candidate_labels
    own = scores(cosines_[: len(labels)], params)
    return [(labels[n], float(own[n])) for n in np.argsort(-own, kind="stable")]


def wanted(params: Mapping[str, Any]) -> dict[str, ZeroShotClassificationParams]:
    """Return the tasks of this kind, with their parameters."""
    return {task: own for task, own in params.items() if isinstance(own, ZeroShotClassificationParams)}
