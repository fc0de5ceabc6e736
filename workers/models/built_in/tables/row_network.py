"""The layers of a model of table rows. Imports torch, for the device process and for training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Self

import torch
from torch import nn

_LAYERS = "layers."


class RowNetwork(nn.Module):
    """Dense layers with rectifiers, which the heads of all tasks share. Without a layer, the heads read the row."""

    def __init__(self, columns: int, hidden: Sequence[int]) -> None:
        super().__init__()
        widths = (columns, *hidden)
        self.width = widths[-1]
        self.layers = nn.ModuleList(nn.Linear(one, other) for one, other in pairwise(widths))

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, torch.Tensor], columns: int) -> Self:
        """Return the network of a file's tensors."""
        own = {name: tensor for name, tensor in tensors.items() if name.startswith(_LAYERS)}
        hidden = [own[f"{_LAYERS}{number}.bias"].shape[0] for number in range(len(own) // 2)]
        network = cls(columns, hidden)
        network.load_state_dict(own)
        return network

    def forward(self, row: torch.Tensor) -> torch.Tensor:
        """Map standardised rows `(rows, columns)` to features `(rows, width)`."""
        for layer in self.layers:
            row = layer(row).relu()
        return row
