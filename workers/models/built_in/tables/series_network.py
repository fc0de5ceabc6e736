"""The series model's network. Imports torch, for the device process and for training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class SeriesReader(nn.Module):
    """A gated recurrent network that reads a series in both directions and averages its states over all steps."""

    def __init__(self, channels: int, *, width: int = 64, dropout: float = 0.3) -> None:
        super().__init__()
        self.reader = nn.GRU(channels, width, batch_first=True, bidirectional=True)
        self.drop = nn.Dropout(dropout)
        self.width = 2 * width

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> Self:
        """Return the network of a file's tensors."""
        own = {name: tensor for name, tensor in tensors.items() if name.startswith("reader.")}
        network = cls(own["reader.weight_ih_l0"].shape[1], width=own["reader.weight_hh_l0"].shape[1])
        network.load_state_dict(own)
        return network

    def forward(self, series: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Map `(rows, steps, channels)` to features `(rows, width)`; `lengths` exclude each row's padding."""
        # packed, so that the backward direction begins at each row's own end and not in the padding
        packed = pack_padded_sequence(series, lengths.cpu(), batch_first=True, enforce_sorted=False)
        read, _ = pad_packed_sequence(self.reader(packed)[0], batch_first=True)
        mean = read.sum(1) / lengths.to(read.device).unsqueeze(1)  # padding came back as zeros
        features: torch.Tensor = self.drop(mean)
        return features


class SeriesNetwork(SeriesReader):
    """A reader with one head."""

    def __init__(self, channels: int, labels: int, *, width: int = 64, dropout: float = 0.3) -> None:
        super().__init__(channels, width=width, dropout=dropout)
        self.out = nn.Linear(self.width, labels)

    @classmethod
    def of_shape(cls, tensors: Mapping[str, torch.Tensor]) -> Self:
        """Return an untrained network of the tensors' shapes."""
        width = tensors["reader.weight_hh_l0"].shape[1]
        return cls(tensors["reader.weight_ih_l0"].shape[1], tensors["out.weight"].shape[0], width=width)

    def forward(self, series: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Map `(rows, steps, channels)` to scores `(rows, labels)`."""
        scores: torch.Tensor = self.out(super().forward(series, lengths))
        return scores
