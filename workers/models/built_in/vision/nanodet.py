"""NanoDet-g's network (RangiLyu, 2021): a small CSPNet, and a feature pyramid without weights. Imports torch."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from producers.wire.errors import ConfigurationError

CLASSES = 80
#: The distance of a side is a distribution over this many cells of the grid.
DISTANCES = 11
_WIDTH = 128


def _convolved(given: int, made: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(given, made, 3, stride, padding=1), nn.LeakyReLU(0.1))


class _Block(nn.Module):
    """Two convolutions of half the width, concatenated."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _convolved(width, width // 2)
        self.second = _convolved(width // 2, width // 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        first = self.first(images)
        return torch.cat([self.second(first), first], 1)


class _Stage(nn.Module):
    """Doubles the channels: the output of the blocks, concatenated with their input."""

    def __init__(self, width: int, stride: int, blocks: int) -> None:
        super().__init__()
        self.enter = _convolved(width, width, stride)
        self.blocks = nn.Sequential(*(_Block(width) for _ in range(blocks)), _convolved(width, width))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        entered = self.enter(images)
        return torch.cat([self.blocks(entered), entered], 1)


class NanoDet(nn.Module):
    """Maps normalised images `(rows, 3, side, side)` to three grids of logits.

    A grid is `(rows, places, 80 + 4 * 11)`: class logits, then distances.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_convolved(3, 32, 2), nn.MaxPool2d(3, 2, padding=1), _Stage(32, 1, 1))
        self.stages = nn.ModuleList([_Stage(64, 2, 2), _Stage(128, 2, 2), _Stage(256, 2, 3)])
        self.laterals = nn.ModuleList(nn.Conv2d(width, _WIDTH, 1) for width in (128, 256, 512))
        outputs = CLASSES + 4 * DISTANCES
        self.heads = nn.ModuleList(
            nn.Sequential(_convolved(_WIDTH, _WIDTH), nn.Conv2d(_WIDTH, outputs, 1)) for _ in self.laterals
        )

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        images, levels = self.stem(images), []
        for stage, lateral in zip(self.stages, self.laterals, strict=True):
            images = stage(images)
            levels.append(lateral(images))
        fine, middle, coarse = levels
        middle = middle + _resized(coarse, 2.0)
        fine = fine + _resized(middle, 2.0)
        middle = middle + _resized(fine, 0.5)
        coarse = coarse + _resized(middle, 0.5)
        grids = zip(self.heads, (fine, middle, coarse), strict=True)
        return [head(grid).flatten(2).transpose(1, 2) for head, grid in grids]


def _resized(images: torch.Tensor, scale: float) -> torch.Tensor:
    return functional.interpolate(images, scale_factor=scale, mode="bilinear")


def load(folder: Path) -> NanoDet:
    """Return the network with the weights of a folder. Raises ConfigurationError if they belong to another network.

    The folder has the layout of the TensorFlow.js package: filters as (height, width, in, out); filters and biases are
    numbered in order.
    """
    found = load_file(folder / "model.safetensors")
    names = sorted(found, key=lambda name: int((re.findall(r"\d+$", name) or ["0"])[0]))
    filters = [found[name].permute(3, 2, 0, 1) for name in names if found[name].dim() == 4]
    biases = [found[name] for name in names if found[name].dim() == 1]
    network = NanoDet()
    ours = network.state_dict()
    in_order = [*list(ours)[::2], *list(ours)[1::2]]  # each layer has a weight and a bias
    if [weight.shape for weight in (*filters, *biases)] != [ours[name].shape for name in in_order]:
        raise ConfigurationError(f"{folder}: holds no weights of NanoDet-g; correct the model's source")
    network.load_state_dict(dict(zip(in_order, (*filters, *biases), strict=True)))
    return network
