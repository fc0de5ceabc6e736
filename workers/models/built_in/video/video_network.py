"""The video model's networks: the image backbone over all frames, and the head that reads them. Imports torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Self

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from producers.wire.errors import ConfigurationError
from workers.models.built_in.multitask import head_file
from workers.models.built_in.vision.vision_network import VisionEncoder

Features = Mapping[str, torch.Tensor]

#: The `kind` in the metadata of a head for videos.
KIND = "motion"

#: The backbone's block whose output is the `map`: 32 channels, an eighth of the frame's resolution.
_MAP_BLOCK = 4

#: The largest displacement to either side, in cells of the map.
_REACH = 3

#: Correlations are averaged over this many places down and across.
_PLACES = 5


class VideoEncoder(VisionEncoder):
    """MobileNetV2 over frames, with a `map` from an early layer and `pooled` at the end. Computes only `keep`."""

    def __init__(self, folder: Path, keep: Collection[str]) -> None:
        super().__init__(folder)
        self.keep = frozenset(keep)

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Map uint8 frames `(n, height, width, 3)` to `map` `(n, 32, height/8, width/8)` and `pooled` `(n, 1280)`."""
        images = pixels.permute(0, 3, 1, 2).to(self.mean.dtype) / 255
        backbone = self.network.mobilenet_v2
        hidden = backbone.conv_stem((images - self.mean) / self.std)
        found: dict[str, torch.Tensor] = {}
        for number, block in enumerate(backbone.layer):
            hidden = block(hidden)
            if number == _MAP_BLOCK and "map" in self.keep:
                found["map"] = hidden
                if self.keep == {"map"}:
                    return found
        found["pooled"] = backbone.conv_1x1(hidden).mean((2, 3))
        return found


class MotionHead(nn.Module):
    """A recurrent network, in both directions, over the motion between successive frames.

    Its input is the correlation of two frames' maps, as in optical flow networks (Dosovitskiy et al., 2015, FlowNetC):
    the similarity of a place in the first map to the places around it in the second, near and, on maps of half the
    resolution, far. With `appearance`, the content of the frames counts as well.
    """

    def __init__(self, labels: int, *, width: int = 64, appearance: int = 0, dropout: float = 0.3) -> None:
        super().__init__()
        tried = 2 * (2 * _REACH + 1) ** 2
        self.moved = nn.Sequential(
            nn.Conv2d(tried, width // 2, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(width // 2 * _PLACES**2, width),
            nn.ReLU(),
        )
        self.shown = nn.Linear(appearance, width) if appearance else None
        self.reader = nn.GRU(width * (2 if appearance else 1), width, batch_first=True, bidirectional=True)
        self.out = nn.Linear(4 * width, labels)
        self.drop = nn.Dropout(dropout)

    @property
    def reads(self) -> tuple[str, ...]:
        return ("map",) if self.shown is None else ("map", "pooled")

    @classmethod
    def of_shape(cls, tensors: Features) -> Self:
        """Return an untrained head of the tensors' shapes."""
        appearance = tensors["shown.weight"].shape[1] if "shown.weight" in tensors else 0
        labels, inputs = tensors["out.weight"].shape
        return cls(labels, width=inputs // 4, appearance=appearance)

    def forward(self, features: Features) -> torch.Tensor:
        """Map frames' features to scores `(videos, labels)`; `lengths` are the frames of each video, in order."""
        lengths = features["lengths"]
        first, second = pairs(lengths)
        correlated = correlations(features["map"], first, second)
        shown = features["pooled"][first] if self.shown is not None else None
        return self.read(correlated, shown, lengths - 1)

    def read(self, correlated: torch.Tensor, shown: torch.Tensor | None, steps: torch.Tensor) -> torch.Tensor:
        """Map the `correlations` of each step to scores; `steps` are the frame pairs of each video, in order."""
        moved = self.moved(self.drop(correlated.float()))
        if self.shown is not None and shown is not None:
            moved = torch.cat([moved, functional.relu(self.shown(self.drop(shown)))], -1)
        counts = steps.tolist()
        padded = nn.utils.rnn.pad_sequence(list(moved.split(counts)), batch_first=True)
        packed = pack_padded_sequence(padded, steps.cpu(), batch_first=True, enforce_sorted=False)
        read, _ = pad_packed_sequence(self.reader(packed)[0], batch_first=True)
        mean = read.sum(1) / steps.to(read).unsqueeze(1)  # padding came back as zeros
        mask = torch.arange(read.shape[1], device=read.device) < steps.to(read.device).unsqueeze(1)
        most = read.masked_fill(~mask.unsqueeze(-1), float("-inf")).amax(1)
        scores: torch.Tensor = self.out(self.drop(torch.cat([mean, most], -1)))
        return scores


def load_head(path: Path) -> MotionHead:
    """Return a head from its file. Raises ConfigurationError if it is no head for videos."""
    from safetensors.torch import load_file

    if (kind := head_file.read_metadata(path)["kind"]) != KIND:
        raise ConfigurationError(f"{path}: is a head of kind {kind!r}, but videos need {KIND!r}")
    tensors = load_file(path)
    module = MotionHead.of_shape(tensors)
    module.load_state_dict(tensors)
    return module


def pairs(lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the indices of each video's frames but the last, and of the frames after them."""
    ends = lengths.cumsum(0)
    last = torch.zeros(int(ends[-1]), dtype=torch.bool, device=lengths.device)
    last[ends - 1] = True
    first = (~last).nonzero().flatten()
    return first, first + 1


def correlations(maps: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the similarity of every place to its neighbourhood in the next frame: `(pairs, displacements, 5, 5)`."""
    near = _alike(maps, first, second, stride=2)
    far = _alike(functional.avg_pool2d(maps, 2), first, second, stride=1)
    return functional.adaptive_avg_pool2d(torch.cat([near, far], 1), _PLACES)


def _alike(maps: torch.Tensor, first: torch.Tensor, second: torch.Tensor, *, stride: int) -> torch.Tensor:
    centred = maps - maps.mean((2, 3), keepdim=True)  # features present everywhere say nothing about motion
    unit = functional.normalize(centred, dim=1)
    height, width = unit.shape[2:]
    around = functional.pad(unit, (_REACH,) * 4)[second]
    here = unit[first][:, :, ::stride, ::stride]
    found = [
        (here * around[:, :, down : down + height : stride, across : across + width : stride]).sum(1)
        for down in range(2 * _REACH + 1)
        for across in range(2 * _REACH + 1)
    ]
    return torch.stack(found, 1)
