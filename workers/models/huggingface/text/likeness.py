"""Zero-shot classification by similarity: score labels by the cosine of a text's and a hypothesis' sentence embedding.

The batch of texts carries each distinct hypothesis once, and the device caches their vectors, so repeated labels cost
nothing. It needs no head and no training. Its quality depends on how well the labels describe their meaning.
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

#: The factor of a cosine before the softmax over labels, as in the training of sentence encoders.
SCALE = 20.0

_NONE = -1


def hypotheses(params: ZeroShotClassificationParams) -> list[str]:
    """Return the hypothesis of each label."""
    return [params.hypothesis_template.replace("{}", label) for label in params.candidate_labels]


def scores(cosines: Array, params: ZeroShotClassificationParams) -> Array:
    """Return a score for each label: the softmax of 20 * cosine, or with `multi_label` the cosine, at least 0."""
    if params.multi_label:
        return np.asarray(np.maximum(cosines, 0))
    exponents = np.exp(SCALE * (cosines - cosines.max()))
    return np.asarray(exponents / exponents.sum())


# --- rows and batches -----------------------------------------------------------------------------


def attached(sequences: Mapping[str, Sequence[Array]]) -> Arrays:
    """Return the arrays that a row carries for its tasks' hypotheses: their tokens, concatenated, and their lengths."""
    found: Arrays = {}
    for task, own in sequences.items():
        found[f"labels/{task}"] = np.concatenate(own)
        found[f"lengths/{task}"] = np.array([len(ids) for ids in own], dtype=np.int32)
    return found


def placed(rows: Sequence[Arrays], tasks: Sequence[str]) -> tuple[list[Array], Arrays]:
    """Return the distinct hypotheses of a batch, and for each task the indices of its labels among them.

    ``labels/TASK`` has the shape `(rows, most labels)`; rows without the task have -1.
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
    """A cache of the vectors of up to `most` hypotheses. The oldest are evicted first."""

    def __init__(self, encode: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], most: int = 4096) -> None:
        self._encode = encode
        self._most = most
        self._vectors: dict[bytes, torch.Tensor] = {}

    def vectors(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the vector of each sequence. `encode` computes all new sequences together."""
        import torch

        keys = [row[kept].tobytes() for row, kept in zip(ids.cpu().numpy(), mask.cpu().numpy(), strict=True)]
        new = [place for place, key in enumerate(keys) if key not in self._vectors]
        if new:
            made = self._encode(ids[new], mask[new])
            # clone: the backend's next call may overwrite its output
            self._vectors |= {keys[place]: vector.clone() for place, vector in zip(new, made, strict=True)}
        found = torch.stack([self._vectors[key] for key in keys])
        while len(self._vectors) > self._most:
            del self._vectors[next(iter(self._vectors))]
        return found


def cosines(pooled: torch.Tensor, vectors: torch.Tensor, rows: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Return each row's cosines with its labels, `(rows, most labels)`. Values beyond its labels are undefined."""
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
    """Return the parameters of the tasks that are of this kind."""
    return {task: own for task, own in params.items() if isinstance(own, ZeroShotClassificationParams)}
