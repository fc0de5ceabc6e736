"""Token sequences in rows and batches: an item may need several (windows of a long text, a hypothesis for each label).

Each distinct sequence is stored once, concatenated in ``ids`` and ``types``, with ``lengths``. For each task,
``of/TASK`` has the indices of its sequences; in a batch, ``count/TASK`` has the number of these for each row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from workers.models.interface.model import Array, Arrays

if TYPE_CHECKING:
    from tokenizers import Encoding

_T = TypeVar("_T")

#: The most padding in a pass: this share of its tokens, or `_FEW_TOKENS` if that is more. Sequences that would need
#: more padding get another pass.
_MOST_PADDING = 0.25
_FEW_TOKENS = 256


class TokenSequence(NamedTuple):
    """The tokens of a sequence, and for each token the number of its text in a pair."""

    ids: Array
    types: Array

    @classmethod
    def of(cls, encoding: Encoding) -> TokenSequence:
        return cls(np.asarray(encoding.ids, dtype=np.int32), np.asarray(encoding.type_ids, dtype=np.uint8))


@dataclass(frozen=True, slots=True)
class Reading:
    """A task's reading of an item: sequences for the backbone, and the data that `finish` needs later."""

    sequences: tuple[TokenSequence, ...]
    aside: Any = None


def pack(needs: Mapping[str, Sequence[TokenSequence]]) -> Arrays:
    """Return a row's arrays: the sequences that the tasks of an item need."""
    pool = _Pool()
    of = {f"of/{task}": np.array([pool.place(one) for one in own], dtype=np.int32) for task, own in needs.items()}
    return pool.arrays() | of


def collate(rows: Sequence[Arrays], tasks: Sequence[str]) -> Arrays:
    """Return a batch's arrays: the rows' distinct sequences, each once."""
    pool = _Pool()
    places = [[pool.place(one) for one in _sequences(row)] for row in rows]
    batch = pool.arrays()
    for task in tasks:
        wanted = [row.get(f"of/{task}", np.zeros(0, np.int32)) for row in rows]
        batch[f"count/{task}"] = np.array([len(own) for own in wanted], dtype=np.int32)
        flat = [places[row][n] for row, own in enumerate(wanted) for n in own]
        batch[f"of/{task}"] = np.array(flat, dtype=np.int32)
    return batch


class _Pool:
    """Distinct sequences in order of appearance."""

    def __init__(self) -> None:
        self._places: dict[tuple[bytes, bytes], int] = {}
        self._sequences: list[TokenSequence] = []

    def place(self, sequence: TokenSequence) -> int:
        key = (sequence.ids.tobytes(), sequence.types.tobytes())
        place = self._places.setdefault(key, len(self._sequences))
        if place == len(self._sequences):
            self._sequences.append(sequence)
        return place

    def arrays(self) -> Arrays:
        return {
            "ids": np.concatenate([one.ids for one in self._sequences]),
            "types": np.concatenate([one.types for one in self._sequences]),
            "lengths": np.array([len(one.ids) for one in self._sequences], dtype=np.int32),
        }


def _sequences(arrays: Arrays) -> list[TokenSequence]:
    ends = np.cumsum(arrays["lengths"])
    spans = zip(ends - arrays["lengths"], ends, strict=True)
    return [TokenSequence(arrays["ids"][start:end], arrays["types"][start:end]) for start, end in spans]


class Row(NamedTuple):
    """A row of a pass: the index of its sequence, and the number of its adapter (0: none)."""

    place: int
    adapter: int


class Batch:
    """A batch's sequences in the device process: groups them into passes, and maps outputs to rows."""

    def __init__(self, arrays: Arrays, pad_id: int) -> None:
        self.sequences = _sequences(arrays)
        self._arrays = arrays
        self._pad_id = pad_id

    def of(self, task: str, rows: Array) -> list[Array]:
        """Return the indices of the sequences that each of these rows needs for the task."""
        ends = np.cumsum(self._arrays[f"count/{task}"])
        starts = ends - self._arrays[f"count/{task}"]
        return [self._arrays[f"of/{task}"][starts[row] : ends[row]] for row in rows]

    def passes(
        self,
        wanted: set[Row],
        *,
        equal_lengths: bool = False,
        counted: int | None = None,
        short: int | None = None,
        shares_adapters: bool = True,
    ) -> list[list[Row]]:
        """Group the wanted rows into passes, longest sequence first, so that no pass is mostly padding, or has any.

        All sequences of a pass have the token `counted` equally often, and all have at most `short` tokens, or more.
        Rows of different adapters share a pass if `shares_adapters`.
        """
        alike: dict[tuple[int, bool, int], list[tuple[Row, int]]] = {}
        for row in sorted(wanted):
            ids = self.sequences[row.place].ids
            count = 0 if counted is None else int((ids == counted).sum())
            adapter = 0 if shares_adapters else row.adapter
            alike.setdefault((count, short is not None and len(ids) > short, adapter), []).append((row, len(ids)))
        return [group for sizes in alike.values() for group in plan(sizes, equal_lengths=equal_lengths)]

    @property
    def longest(self) -> int:
        """The number of tokens of the longest sequence."""
        return max(len(one.ids) for one in self.sequences)

    def padded(self, group: Sequence[int], most: Sequence[int] | None = None) -> Arrays:
        """Return a group's ``ids``, ``types`` and ``mask``, each `(sequences, tokens)`. `most` cuts each sequence."""
        chosen = [self.sequences[place] for place in group]
        if most is not None:
            chosen = [TokenSequence(one.ids[:end], one.types[:end]) for one, end in zip(chosen, most, strict=True)]
        shape = (len(chosen), max(len(one.ids) for one in chosen))
        ids, types = np.full(shape, self._pad_id, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        mask = np.zeros(shape, dtype=np.int64)
        for row, one in enumerate(chosen):
            ids[row, : len(one.ids)], types[row, : len(one.ids)] = one.ids, one.types
            mask[row, : len(one.ids)] = 1
        return {"ids": ids, "types": types, "mask": mask}


def plan(sizes: Sequence[tuple[_T, int]], *, equal_lengths: bool = False) -> list[list[_T]]:
    """Group (key, length) pairs, longest first. A new group starts where the padding would grow too large.

    With `equal_lengths` no group has padding.
    """
    groups: list[list[_T]] = []
    longest = padding = 0
    for place, length in sorted(sizes, key=lambda pair: -pair[1]):
        more = padding + longest - length
        most = (
            0 if equal_lengths else max(_FEW_TOKENS, _MOST_PADDING * longest * (len(groups[-1]) + 1 if groups else 1))
        )
        if not groups or more > most:
            groups.append([])
            longest, more = length, 0
        groups[-1].append(place)
        padding = more
    return groups


def stacked(found: Callable[[int], Array], needs: Sequence[Array]) -> Array:
    """Return an array `(rows, most sequences, …)` of each row's outputs from `found`, padded with zeros."""
    outputs = [[found(int(place)) for place in own] for own in needs]
    shapes = [output.shape for own in outputs for output in own]
    largest = tuple(max(sizes) for sizes in zip(*shapes, strict=True))
    result = np.zeros((len(outputs), max(len(own) for own in outputs), *largest), dtype=np.float32)
    for row, own in enumerate(outputs):
        for n, output in enumerate(own):
            result[row, n][tuple(slice(size) for size in output.shape)] = output
    return result
