"""The tokens of many texts as two arrays: the ids one after another, and the place at which each row begins."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from workers.models.interface.text_block import ALONE, TextBlock

if TYPE_CHECKING:
    from workers.models.huggingface.tokenizing import Tokenizing
    from workers.models.interface.model import Array, Arrays


class TokenRows(NamedTuple):
    """The ids of all rows, int32 `(tokens,)`; where each begins, int64 `(rows + 1,)`: the last is the end of all."""

    ids: Array
    begins: Array


def tokenised(tokenizing: Tokenizing, texts: Sequence[str], max_tokens: int, *, cut: bool) -> TextBlock:
    """Return the block of texts; equal texts share a row. Raises like the tokenizer if a text is at fault.

    A text without a token of its own is left alone, and so is a text over `max_tokens`, unless it is to be `cut`.
    """
    row_by_text: dict[str, int] = {}
    rows = [row_by_text.setdefault(text, len(row_by_text)) for text in texts]
    unique = list(row_by_text)
    found = tokenizing.ids_of_many(unique)
    sizes = np.fromiter(map(len, found), dtype=np.int64, count=len(found))
    for row in np.flatnonzero(sizes > max_tokens).tolist() if cut else ():
        found[row] = tokenizing.cut(unique[row], None, max_tokens).ids
        sizes[row] = len(found[row])
    ids = np.fromiter(chain.from_iterable(found), dtype=np.int32, count=int(sizes.sum()))
    begins = np.concatenate([[0], np.cumsum(sizes)])
    special = np.concatenate([[0], np.cumsum(np.isin(ids, [*tokenizing.special_ids]))])
    kept = (np.diff(special[begins]) < sizes) & (sizes <= max_tokens)
    return _of(TokenRows(ids, begins), sizes, np.asarray(rows, dtype=np.int64), kept)


def _of(rows: TokenRows, sizes: Array, row_of: Array, kept: Array) -> TextBlock:
    if kept.all():
        return TextBlock(sizes, row_of, rows)
    places = np.where(kept, np.cumsum(kept) - 1, ALONE)
    own = np.repeat(kept, sizes)
    left = sizes[kept]
    return TextBlock(left, places[row_of], TokenRows(rows.ids[own], np.concatenate([[0], np.cumsum(left)])))


def sequences(parts: Sequence[tuple[TokenRows, Array]], tasks: Sequence[str]) -> Arrays:
    """Return the arrays of `token_sequences.collate` for some rows of each part, which need their own tokens alone."""
    lengths = np.concatenate([np.diff(data.begins)[rows] for data, rows in parts]).astype(np.int32)
    ids = [data.ids[data.begins[row] : data.begins[row + 1]] for data, rows in parts for row in rows.tolist()]
    every, one_each = np.arange(len(lengths), dtype=np.int32), np.ones(len(lengths), dtype=np.int32)
    together = np.concatenate(ids)
    batch = {"ids": together, "types": np.zeros(len(together), dtype=np.uint8), "lengths": lengths}
    for task in tasks:
        batch |= {f"count/{task}": one_each, f"of/{task}": every}
    return batch


def padded(parts: Sequence[tuple[TokenRows, Array]], pad_id: int) -> tuple[Array, Array]:
    """Return ids and mask of some rows of each part, both `(rows, tokens)`, padded to the longest."""
    sizes = [np.diff(data.begins)[rows] for data, rows in parts]
    columns = np.arange(max(int(own.max()) for own in sizes))
    mask = columns < np.concatenate(sizes)[:, None]
    ids = np.full(mask.shape, pad_id, dtype=np.int32)
    begin = 0
    for (data, rows), own in zip(parts, sizes, strict=True):
        places = data.begins[rows][:, None] + columns
        inside = mask[begin : begin + len(rows)]
        ids[begin : begin + len(rows)][inside] = data.ids[places[inside]]
        begin += len(own)
    return ids, mask
