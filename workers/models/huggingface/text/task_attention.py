"""The network of a task's own pooling: attention over the tokens. Imports torch, for the device and training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import nn
from torch.nn import functional


class QueryAttention(nn.Module):
    """Attention queries over the tokens, for tasks whose evidence a mean over all tokens would blur.

    Each token's vector is narrowed to `width`; each query takes a weighted mean of the tokens; a linear layer over
    these means gives the scores.
    """

    def __init__(self, inputs: int, labels: int, *, width: int = 128, queries: int = 4, dropout: float = 0.3) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(inputs)
        self.narrow = nn.Linear(inputs, width)
        self.queries = nn.Linear(width, queries)
        self.out = nn.Linear(width * queries, labels)
        self.drop = nn.Dropout(dropout)

    def attend(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return scores `(rows, labels)` of tokens `(rows, tokens, inputs)` with a mask of bool `(rows, tokens)`."""
        narrow = self.drop(functional.gelu(self.narrow(self.drop(self.norm(tokens)))))
        weights = self.queries(narrow).masked_fill(~mask.unsqueeze(-1), float("-inf")).softmax(1)
        scores: torch.Tensor = self.out(self.drop((weights.transpose(1, 2) @ narrow).flatten(1)))
        return scores


class TaskAttention(QueryAttention):
    """A task's pooling of the last layer. With fusion, it also sees the scores of other tasks' poolings.

    `seen` is the number of all labels of these tasks. `scale` and `shift` turn the scores into a regression's units.
    """

    def __init__(
        self, inputs: int, labels: int, *, width: int = 128, queries: int = 4, dropout: float = 0.3, seen: int = 0
    ) -> None:
        super().__init__(inputs, labels, width=width, queries=queries, dropout=dropout)
        self.fuse = nn.Linear(seen, labels, bias=False) if seen else None
        self.scale: torch.Tensor
        self.shift: torch.Tensor
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("shift", torch.zeros(()))

    @classmethod
    def of_shape(cls, tensors: Mapping[str, torch.Tensor]) -> Self:
        """Return a module for the tensors of a head's file."""
        width, inputs = tensors["narrow.weight"].shape
        labels, queries = tensors["out.weight"].shape[0], tensors["queries.weight"].shape[0]
        seen = tensors["fuse.weight"].shape[1] if "fuse.weight" in tensors else 0
        return cls(inputs, labels, width=width, queries=queries, seen=seen)

    def forward(self, own: torch.Tensor, others: Sequence[torch.Tensor] = ()) -> torch.Tensor:
        """Return the task's scores from its own `attend`, and from those of the other tasks that it sees."""
        if self.fuse is not None:
            own = own + self.fuse(torch.cat([*others], -1))
        return own * self.scale + self.shift
