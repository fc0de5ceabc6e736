"""The style network: redraws a picture in a style, in one pass. Imports torch, for the device process.

Johnson, Alahi and Fei-Fei (2016) with a scale and a shift for each style in its instance normalisation (Dumoulin,
Shlens and Kudlur, 2017), at half width. Sizes are multiples of 4.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

WIDTHS = (16, 32, 64)
_BLOCKS = 4


class StyledNorm(nn.Module):
    """Instance normalisation with a scale and a shift for each style; every row has its own style."""

    def __init__(self, width: int, styles: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(styles, width))
        self.shift = nn.Parameter(torch.zeros(styles, width))

    def forward(self, rows: torch.Tensor, styles: torch.Tensor) -> torch.Tensor:
        scale, shift = self.scale[styles][:, :, None, None], self.shift[styles][:, :, None, None]
        return functional.instance_norm(rows) * scale + shift


class Layer(nn.Module):
    """A convolution over mirrored edges, with normalisation; `up` doubles the size first."""

    def __init__(
        self, inside: int, outside: int, kernel: int, styles: int, *, stride: int = 1, up: bool = False
    ) -> None:
        super().__init__()
        self.up, self.edge = up, kernel // 2
        self.conv = nn.Conv2d(inside, outside, kernel, stride)
        self.norm = StyledNorm(outside, styles)

    def forward(self, rows: torch.Tensor, styles: torch.Tensor) -> torch.Tensor:
        if self.up:
            rows = functional.interpolate(rows, scale_factor=2.0, mode="nearest")
        rows = functional.pad(rows, (self.edge,) * 4, mode="reflect")
        return torch.as_tensor(self.norm(self.conv(rows), styles))


class StyleNetwork(nn.Module):
    """Maps pictures `(rows, 3, height, width)` of 0 to 1, and each row's style number, to styled pictures."""

    def __init__(self, styles: int) -> None:
        super().__init__()
        first, second, third = WIDTHS
        self.down = nn.ModuleList(
            [
                Layer(3, first, 9, styles),
                Layer(first, second, 3, styles, stride=2),
                Layer(second, third, 3, styles, stride=2),
            ]
        )
        self.blocks = nn.ModuleList([Layer(third, third, 3, styles) for _ in range(2 * _BLOCKS)])
        self.up = nn.ModuleList([Layer(third, second, 3, styles, up=True), Layer(second, first, 3, styles, up=True)])
        self.last = Layer(first, 3, 9, styles)

    def forward(self, rows: torch.Tensor, styles: torch.Tensor) -> torch.Tensor:
        for layer in self.down:
            rows = layer(rows, styles).relu()
        for first, second in zip(self.blocks[::2], self.blocks[1::2], strict=True):
            rows = rows + second(first(rows, styles).relu(), styles)
        for layer in self.up:
            rows = layer(rows, styles).relu()
        return torch.as_tensor(self.last(rows, styles)).sigmoid()
