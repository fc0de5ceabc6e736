"""NanoDet's network and the decoding of its output into boxes. Imports torch, for the device process.

Each place of three grids has a score for each class, and for each side of a box a distribution over eleven distances
(Li et al., 2020, "Generalized Focal Loss"); RangiLyu's NanoDet, 2020.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from workers.models.built_in.vision import nanodet
from workers.models.built_in.vision.nanodet import CLASSES, DISTANCES

#: Pixels from a place of a grid to the next.
_STRIDES = (8, 16, 32)

#: Mean and standard deviation of the channels blue, green, red, of values 0 to 255, as in the training.
_MEAN = (103.53, 116.28, 123.675)
_STD = (57.375, 57.12, 58.395)

#: The number of boxes of an image that are returned, the likeliest.
MOST_BOXES = 200


class DetectorNetwork(nn.Module):
    """Maps uint8 `pixels` `(rows, side, side, 3)` to `found` `(rows, 200, 6)`, best first.

    A box has score, class, and the corners xmin, ymin, xmax, ymax as shares of the image. An object may have several
    boxes.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.network = nanodet.load(folder)
        self.mean: torch.Tensor
        self.std: torch.Tensor
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        side = pixels.shape[1]
        grids = self.network((pixels.permute(0, 3, 1, 2).flip(1).to(self.mean.dtype) - self.mean) / self.std)
        scores = [grid[..., :CLASSES].sigmoid() for grid in grids]
        boxes = [
            _boxes(grid[..., CLASSES:], side // stride) * (stride / side)
            for grid, stride in zip(grids, _STRIDES, strict=True)
        ]
        best, classes = torch.cat(scores, 1).max(-1)
        chosen, order = best.topk(MOST_BOXES, dim=1)
        corners = torch.cat(boxes, 1).gather(1, order[..., None].expand(-1, -1, 4))
        labels = classes.gather(1, order)
        return {"found": torch.cat([chosen[..., None], labels[..., None].to(chosen.dtype), corners], -1)}


def _boxes(distances: torch.Tensor, side: int) -> torch.Tensor:
    """Return the corners of the boxes around a grid's places, `(rows, places, 4)`, in cells of the grid."""
    steps = torch.arange(DISTANCES, dtype=distances.dtype, device=distances.device)
    mean = (distances.reshape(*distances.shape[:-1], 4, DISTANCES).softmax(-1) * steps).sum(-1)
    centres = torch.arange(side, dtype=distances.dtype, device=distances.device) + 0.5
    down, right = torch.meshgrid(centres, centres, indexing="ij")
    middle = torch.stack([right.flatten(), down.flatten()], -1)
    return torch.cat([middle - mean[..., :2], middle + mean[..., 2:]], -1)
