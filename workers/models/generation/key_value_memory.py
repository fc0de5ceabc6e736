"""The keys and values of the tokens read so far, in rows that grow, move and leave, and attention over them.

A block holds the rows of a pass side by side, each from column 0 on, so that a row that joins or leaves moves no other
row. transformers' own caches need rows of equal length; `Block` replaces them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

#: Keys and values of a row: (layers, 2, heads, tokens, width).
Kept: TypeAlias = torch.Tensor

#: The name of `attend` in transformers' registry.
ATTENTION = "argosy"

#: Columns are allocated in multiples of this, so that a row can grow by a token without a new allocation.
_COLUMNS = 128


@dataclass(frozen=True, slots=True)
class CacheShape:
    """The shape of a network's keys and values of a token."""

    layers: int
    heads: int
    width: int
    dtype: torch.dtype
    device: str

    def empty(self) -> Kept:
        return torch.zeros((self.layers, 2, self.heads, 0, self.width), dtype=self.dtype, device=self.device)


class Block:
    """A tensor with the keys and values of several rows; `lengths` has each row's number of tokens."""

    def __init__(self, shape: CacheShape) -> None:
        self._shape = shape
        self._tensor = self._nothing()
        self.lengths: list[int] = []
        self._rows = torch.zeros(0, dtype=torch.long)
        self._columns = torch.zeros(0, dtype=torch.long)
        self._width = 0

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def bytes(self) -> int:
        """The size of the tensor."""
        return self._tensor.nbytes

    def add(self, kept: Kept) -> int:
        """Append a row and return its number."""
        row, tokens = len(self.lengths), kept.shape[3]
        self._reserve(row + 1, tokens)
        self._tensor[:, :, row, :, :tokens] = kept
        self.lengths.append(tokens)
        return row

    def kept(self, row: int, tokens: int | None = None) -> Kept:
        """Return a copy of a row's first `tokens` tokens, by default of all."""
        length = self.lengths[row] if tokens is None else tokens
        return self._tensor[:, :, row, :, :length].clone()

    def drop(self, row: int) -> int | None:
        """Remove a row; the last row moves to its number. Return the moved row's old number, or None if none moved."""
        last = len(self.lengths) - 1
        if row != last:
            length = self.lengths[last]
            self._tensor[:, :, row, :, :length] = self._tensor[:, :, last, :, :length]
            self.lengths[row] = length
        self.lengths.pop()
        if not self.lengths:
            self._tensor = self._nothing()
        return last if row != last else None

    def begin(self, tokens: int) -> None:
        """Reserve space for `tokens` tokens in every row, including padding, and set their columns."""
        self._width = max(self.lengths) + tokens
        self._reserve(len(self.lengths), self._width)
        starts = torch.tensor(self.lengths, device=self._shape.device)
        self._rows = torch.arange(len(self.lengths), device=self._shape.device)[:, None]
        self._columns = starts[:, None] + torch.arange(tokens, device=self._shape.device)

    @property
    def columns(self) -> torch.Tensor:
        """The columns of this pass's tokens, (rows, tokens)."""
        return self._columns

    @property
    def width(self) -> int:
        """The number of columns that the pass attends to."""
        return self._width

    def _reserve(self, rows: int, tokens: int) -> None:
        had_rows, had_tokens = self._tensor.shape[2], self._tensor.shape[4]
        if rows <= had_rows and tokens <= had_tokens:
            return
        # sized for the present rows only, whatever rows were here before
        shape, used, longest = self._shape, len(self.lengths), max(self.lengths, default=0)
        columns = -(-max(tokens, longest) // _COLUMNS) * _COLUMNS
        # zeros, because attention multiplies masked values by 0, which would keep a NaN
        wider = torch.zeros(
            (shape.layers, 2, max(rows, used), shape.heads, columns, shape.width),
            dtype=shape.dtype,
            device=shape.device,
        )
        wider[:, :, :used, :, :longest] = self._tensor[:, :, :used, :, :longest]
        self._tensor = wider

    def _nothing(self) -> torch.Tensor:
        return self._shape.empty()[:, :, None][:, :, :0]

    # --- the interface of transformers' caches ---

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store a layer's new keys and values, (rows, heads, tokens, width). Return those of all tokens so far."""
        own = self._tensor[layer_idx]
        own[0][self._rows, :, self._columns] = keys.transpose(1, 2)
        own[1][self._rows, :, self._columns] = values.transpose(1, 2)
        rows = len(self.lengths)
        return own[0, :rows, :, : self._width], own[1, :rows, :, : self._width]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0  # positions and masks are given; nothing is derived from this


def visible(block: Block, inner: torch.Tensor | None, tokens: int) -> torch.Tensor:
    """Return the attention mask, (rows, 1, tokens, columns): a row's earlier tokens, and its new ones by `inner`.

    `inner` is (rows, tokens, tokens), or None for a causal mask.
    """
    columns = torch.arange(block.width, device=block.columns.device)
    if inner is None:
        return (columns <= block.columns[:, :, None])[:, None]
    starts = block.columns[:, :1, None]
    before = (columns < starts).expand(-1, tokens, -1).clone()
    rows = torch.arange(len(block), device=columns.device)[:, None, None]
    queries = torch.arange(tokens, device=columns.device)[None, :, None]
    before[rows, queries, block.columns[:, None, :].expand(-1, tokens, -1)] = inner
    return before[:, None]


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Compute grouped-query attention (Ainslie et al., 2023) without copying keys and values.

    The queries of a group are stacked as if they were more tokens: (rows, key heads, group · tokens, width).
    """
    rows, heads, tokens, width = query.shape
    groups = heads // key.shape[1]
    stacked = query.reshape(rows, key.shape[1], groups * tokens, width)
    mask = attention_mask
    if mask is not None and groups > 1:
        columns = mask.shape[-1]
        mask = mask[:, :, None].expand(-1, -1, groups, -1, -1).reshape(rows, 1, groups * tokens, columns)
    out = torch.nn.functional.scaled_dot_product_attention(stacked, key, value, attn_mask=mask, scale=scaling)
    return out.reshape(rows, heads, tokens, width).transpose(1, 2), None


def lengths_after(block: Block, fed: Sequence[int]) -> None:
    """Set each row's length after a pass, without the padding."""
    block.lengths = [length + count for length, count in zip(block.lengths, fed, strict=True)]
