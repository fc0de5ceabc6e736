"""The network classes of heads. Imports torch, for the device process and for training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch
from torch import nn
from torch.nn import functional

from workers.models.huggingface.text.task_attention import QueryAttention

Features = Mapping[str, torch.Tensor]


class LayersLinear(nn.Module):
    """A linear layer over some `rows` of the backbone's `layers` (a few means, or the maximum): logistic regression."""

    reads = ("layers",)

    def __init__(self, rows: torch.Tensor, inputs: int, labels: int) -> None:
        super().__init__()
        self.rows: torch.Tensor
        self.register_buffer("rows", rows)
        self.out = nn.Linear(inputs, labels)

    @classmethod
    def of_shape(cls, tensors: Features) -> Self:
        labels, inputs = tensors["out.weight"].shape
        return cls(tensors["rows"], inputs, labels)

    def forward(self, features: Features) -> torch.Tensor:
        chosen = features["layers"].index_select(1, self.rows)
        scores: torch.Tensor = self.out(chosen.flatten(1))
        return scores


class TokenAttention(QueryAttention):
    """A `QueryAttention` over the upper half of the backbone's layers. About 2 % of the backbone's work."""

    layers = (3, 4, 5, 6)
    reads = ("mask", *(f"tokens.{number}" for number in layers))

    @classmethod
    def of_shape(cls, tensors: Features) -> Self:
        width, inputs = tensors["narrow.weight"].shape
        return cls(inputs, tensors["out.weight"].shape[0], width=width, queries=tensors["queries.weight"].shape[0])

    def forward(self, features: Features) -> torch.Tensor:
        return self.attend(torch.cat([features[name] for name in self.reads[1:]], -1), features["mask"])


class TokenLabels(nn.Module):
    """Scores of labels for each token, `(rows, tokens, labels)`.

    The inputs are the upper layers, the spelling of the token's word, and the two tokens on either side. The encoder
    reads lower case; `shapes`, `(rows, tokens)`, mark capitals and digits
    (`workers.models.built_in.text.token_labelling.shapes`).
    """

    layers = (3, 4, 5, 6)
    reads = ("mask", "shapes", *(f"tokens.{number}" for number in layers))
    shapes = 8

    def __init__(self, inputs: int, labels: int, *, width: int = 128, dropout: float = 0.2) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(inputs)
        self.narrow = nn.Linear(inputs, width)
        self.written = nn.Embedding(self.shapes, width)
        self.around = nn.Conv1d(width, width, 5, padding=2)
        self.out = nn.Linear(width, labels)
        self.drop = nn.Dropout(dropout)

    @classmethod
    def of_shape(cls, tensors: Features) -> Self:
        width, inputs = tensors["narrow.weight"].shape
        return cls(inputs, tensors["out.weight"].shape[0], width=width)

    def forward(self, features: Features) -> torch.Tensor:
        tokens = torch.cat([features[name] for name in self.reads[2:]], -1)
        narrow = functional.gelu(self.narrow(self.drop(self.norm(tokens))) + self.written(features["shapes"].long()))
        # padding must be zero, like the tokens beyond a row's end
        narrow = self.drop(narrow * features["mask"].unsqueeze(-1))
        around = functional.gelu(self.around(narrow.transpose(1, 2)).transpose(1, 2))
        scores: torch.Tensor = self.out(narrow + self.drop(around))
        return scores


MODULES: Mapping[str, type[LayersLinear | TokenAttention | TokenLabels]] = {
    "layers": LayersLinear,
    "attention": TokenAttention,
    "token-labels": TokenLabels,
}
