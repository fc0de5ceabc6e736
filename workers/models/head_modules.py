"""The networks that a head may be. Imports torch: for the device process and for training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch
from torch import nn


class Linear(nn.Module):
    """One layer over the mean of the text's tokens."""

    def __init__(self, width: int, labels: int) -> None:
        super().__init__()
        self.out = nn.Linear(width, labels)

    @classmethod
    def of_shape(cls, tensors: Mapping[str, torch.Tensor]) -> Self:
        labels, width = tensors["out.weight"].shape
        return cls(width, labels)

    def forward(self, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        scores: torch.Tensor = self.out(features["pooled"])
        return scores


MODULES = {"linear": Linear}
