"""A chunk as a row of `result_chunks`, and the results in it.

`entries` is JSON: an array for each item with its key (0 without a key), its tokens, the place of its batch in
`batches`, and for labels an array of pairs, the place in `labels` and the score. `places` is null if the items follow
each other; otherwise it has the distance of each item from the `first`. The view `item_results` reads the same columns.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice, pairwise, repeat
from typing import Any, Final, NamedTuple

import msgspec

from results_store.errors import InvalidRow
from results_store.records import Result, ResultChunk, ResultState
from results_store.sql.columns import text

#: The most items of the store between the first and the last item of a chunk: readers look so far back for chunks.
SPAN: Final = 4096

#: The most bytes of a chunk's vectors: readers hold some chunks in memory.
VECTOR_BYTES: Final = 2**20

_encoded = msgspec.json.Encoder().encode
_decoded = msgspec.json.Decoder().decode


class ChunkRow(NamedTuple):
    """A row of `result_chunks`. `last` is the number of the last item, `size` the number of items."""

    job: str
    envelope: str
    task: str
    first: int
    last: int
    size: int
    places: str | None
    entries: str
    labels: str | None
    batches: str
    dimension: int | None
    vectors: bytes | None
    model: str | None
    model_revision: str | None
    precision: str | None
    queued_at: float | None
    stored_at: float | None

    @property
    def key(self) -> tuple[str, str, str]:
        return self.job, self.envelope, self.task


def numbers(first: int, size: int, places: str | None) -> Sequence[int]:
    """Return the numbers of a chunk's items, ascending."""
    return range(first, first + size) if places is None else [first + place for place in _decoded(places)]


def row_of(chunk: ResultChunk, at: float | None) -> ChunkRow:
    """Return a chunk as a row, stored `at` this time unless it has its own. Raises InvalidRow."""
    seqs = chunk.seqs
    _check(chunk)
    first, last = seqs[0], seqs[-1]
    follow = last - first + 1 == len(seqs)
    return ChunkRow(
        job=chunk.job,
        envelope=chunk.envelope,
        task=text(chunk.task) or "",
        first=first,
        last=last,
        size=len(seqs),
        places=None if follow else _encoded([seq - first for seq in seqs]).decode(),
        entries=_encoded(_entries(chunk)).decode(),
        labels=_encoded([text(label) for label in chunk.labels]).decode() if chunk.vectors is None else None,
        batches=_encoded(chunk.batches).decode(),
        dimension=chunk.dimension,
        vectors=chunk.vectors,
        model=chunk.model,
        model_revision=chunk.model_revision,
        precision=chunk.precision,
        queued_at=chunk.queued_at,
        stored_at=at if chunk.stored_at is None else chunk.stored_at,
    )


def _check(chunk: ResultChunk) -> None:
    where, seqs, size = f"chunks[{chunk.envelope}, {chunk.task}]", chunk.seqs, len(chunk.seqs)
    if not size or not (isinstance(seqs, range) or all(first < second for first, second in pairwise(seqs))):
        raise InvalidRow(f"{where}.seqs: give at least one item, in ascending order")
    for name in ("tokens", "batch_of", "keys"):
        if (values := getattr(chunk, name)) is not None and len(values) != size:
            raise InvalidRow(f"{where}.{name}: give a value for each of the {size} items")
    if chunk.vectors is not None:
        if len(chunk.vectors) != 4 * size * (chunk.dimension or 0):
            raise InvalidRow(f"{where}.vectors: give `dimension` float32 numbers for each of the {size} items")
        return
    widths = chunk.widths
    labels = size * widths if isinstance(widths, int) else sum(widths) if len(widths) == size else -1
    if not len(chunk.codes) == len(chunk.scores) == labels:
        raise InvalidRow(f"{where}.scores: give as many codes and scores as `widths` says for the {size} items")
    # a sum is fast; it may be infinite though each number is finite
    if not (math.isfinite(sum(chunk.scores)) or all(map(math.isfinite, chunk.scores))):
        raise InvalidRow(f"{where}.scores: not a JSON value: a number is not finite")


def _entries(chunk: ResultChunk) -> list[Any]:
    keys = repeat(0) if chunk.keys is None else (0 if key is None else text(key) for key in chunk.keys)
    pairs = () if chunk.vectors is not None else (_pairs(chunk),)
    return [*zip(keys, chunk.tokens, chunk.batch_of, *pairs)]  # noqa: B905 - `repeat` has no end


def _pairs(chunk: ResultChunk) -> Iterable[Sequence[tuple[int, float]]]:
    """Return the pairs of code and score of each item."""
    pairs = zip(chunk.codes, chunk.scores, strict=True)
    widths = chunk.widths
    if not isinstance(widths, int):
        return (tuple(islice(pairs, width)) for width in widths)
    return zip(*[pairs] * widths, strict=True) if widths else repeat((), len(chunk.seqs))


class ChunkResults:
    """The results in a row of `result_chunks`, each made when it is asked for."""

    def __init__(self, row: ChunkRow) -> None:
        self.row = row
        self.seqs = numbers(row.first, row.size, row.places)

    def __iter__(self) -> Iterator[Result]:
        return map(self.result, range(len(self.seqs)))

    def among(self, wanted: Sequence[int]) -> Iterator[Result]:
        """Yield the results of these items, in ascending order, of those that are here."""
        for seq in wanted[bisect_left(wanted, self.row.first) : bisect_right(wanted, self.row.last)]:
            place = self.place_of(seq)
            if place < len(self.seqs) and self.seqs[place] == seq:
                yield self.result(place)

    def place_of(self, seq: int) -> int:
        """Return the place of an item, or the place before which it would be."""
        return bisect_left(self.seqs, seq)

    def result(self, place: int) -> Result:
        row = self.row
        key, tokens, batch, *pairs = self._entries[place]
        batch_id, batched_at, computed_at = self._batches[batch]
        return Result(
            job=row.job,
            seq=self.seqs[place],
            task=row.task,
            envelope=row.envelope,
            state=ResultState.SUCCEEDED,
            key=None if key == 0 else key,
            output=[{"label": self._labels[code], "score": score} for code, score in pairs[0]] if pairs else None,
            vector=self._vector(place),
            model=row.model,
            model_revision=row.model_revision,
            precision=row.precision,
            tokens=tokens,
            batch=batch_id,
            queued_at=row.queued_at,
            batched_at=batched_at,
            computed_at=computed_at,
            stored_at=row.stored_at,
        )

    def _vector(self, place: int) -> bytes | None:
        if self.row.vectors is None or self.row.dimension is None:
            return None
        width = 4 * self.row.dimension
        return self.row.vectors[place * width : (place + 1) * width]

    @cached_property
    def _entries(self) -> list[Any]:
        return list(_decoded(self.row.entries))

    @cached_property
    def _batches(self) -> list[Any]:
        return list(_decoded(self.row.batches))

    @cached_property
    def _labels(self) -> list[str]:
        return [] if self.row.labels is None else list(_decoded(self.row.labels))
