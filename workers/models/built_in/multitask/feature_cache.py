"""A cache of features by content, so that a later head on the same content costs only the head.

It lives in the device process. Its keys are digests of the backbone's input (`Prepared.content`), and its size is
bounded in bytes; the least recently used row is evicted first. Rows are stored without padding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from cachetools import LRUCache

if TYPE_CHECKING:
    import torch

    Row = dict[str, torch.Tensor]
    Features = dict[str, torch.Tensor]

#: Features with this prefix are padded along their second axis, like the batch's rows.
PADDED = "tokens."


class FeatureCache:
    """Features by content, up to `most_bytes`. Not thread-safe: the device process runs one batch at a time."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._rows: LRUCache[bytes, Row] = LRUCache(most_bytes, getsizeof=_size_bytes)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def size_bytes(self) -> int:
        return int(self._rows.currsize)

    def get(self, content: bytes) -> Row | None:
        """Return the features of a content, or None."""
        return self._rows.get(content)

    def put(self, content: bytes, row: Row) -> None:
        """Store a content's features; the caller must not use them afterwards."""
        if content not in self._rows and _size_bytes(row) <= self.most_bytes:
            self._rows[content] = row


def features(
    cache: FeatureCache,
    contents: Sequence[bytes],
    lengths: Sequence[int],
    encode: Callable[[Sequence[int]], Features],
) -> tuple[Features, int]:
    """Return the features of a batch's rows, and the number of rows found in the cache.

    `lengths` are the rows' lengths without padding. `encode` runs the backbone on the rows at the given places.
    """
    known = [cache.get(content) for content in contents]
    places = [place for place, row in enumerate(known) if row is None]
    if places:
        computed = encode(places)
        for at, place in enumerate(places):
            known[place] = _row(computed, at, lengths[place])
            cache.put(contents[place], known[place] or {})
        if len(places) == len(contents):
            return computed, 0
    return _stacked([row for row in known if row is not None], max(lengths)), len(contents) - len(places)


def _row(computed: Mapping[str, torch.Tensor], at: int, length: int) -> Row:
    """Return copies of a row's features: the backbone's next run may overwrite its result."""
    return {
        name: (tensor[at, :length] if name.startswith(PADDED) else tensor[at]).clone()
        for name, tensor in computed.items()
    }


def _stacked(rows: Sequence[Row], length: int) -> Features:
    import torch

    stacked: Features = {}
    for name, first in rows[0].items():
        if not name.startswith(PADDED):
            stacked[name] = torch.stack([row[name] for row in rows])
            continue
        stacked[name] = first.new_zeros((len(rows), length, *first.shape[1:]))
        for place, row in enumerate(rows):
            stacked[name][place, : len(row[name])] = row[name]
    return stacked


def _size_bytes(row: Row) -> int:
    return sum(tensor.nbytes for tensor in row.values())
