"""The vision model's network: normalisation, backbone and classifier. Imports torch, for the device process."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import nn

#: ImageNet's mean and standard deviation per channel, for values of 0 to 1, as in the training of these weights.
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


class VisionEncoder(nn.Module):
    """MobileNetV2 with its classifier (a thousandth of the work); returns the features named in `keep`."""

    def __init__(self, folder: Path, keep: Collection[str] = ("pooled", "scores")) -> None:
        super().__init__()
        self._keep = keep
        from transformers import AutoModelForImageClassification
        from transformers.utils import logging

        logging.disable_progress_bar()  # a worker's log is no terminal
        self.network: Any = AutoModelForImageClassification.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, trust_remote_code=False
        )
        self.mean: torch.Tensor
        self.std: torch.Tensor
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(1, 3, 1, 1), persistent=False)

    def normalized(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the backbone's input, `(rows, channel, height, width)`; 0 is the mean colour of the training."""
        images = pixels.permute(0, 3, 1, 2).to(self.mean.dtype) / 255
        return (images - self.mean) / self.std

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Map uint8 `(rows, height, width, channel)` to features.

        `pooled` is `(rows, width)`, `scores` `(rows, labels)` from 0 to 1, and `places` `(rows, 49, width)`, the last
        layer, row by row from the top; `pooled` is its mean.
        """
        output = self.network.mobilenet_v2(self.normalized(pixels))
        scores = self.network.classifier(output.pooler_output).float().softmax(-1)
        places = output.last_hidden_state.flatten(2).transpose(1, 2)
        features = {"pooled": output.pooler_output, "scores": scores, "places": places}
        return {name: tensor for name, tensor in features.items() if name in self._keep}
