"""The vision model: MobileNetV2 from a Hugging Face folder; classification and embedding share a pass."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from producers.wire.catalogue import Task
from producers.wire.errors import ConfigurationError, InvalidInput
from workers.models.built_in.multitask.multitask_model import MultiTaskModel, MultiTaskOptions
from workers.models.interface.model import Arrays, Prepared
from workers.models.interface.options import Count
from workers.models.pictures import pixels

if TYPE_CHECKING:
    import torch

    from workers.models.built_in.multitask.multitask_model import Features


class VisionOptions(MultiTaskOptions, frozen=True):
    """Options of image models. Images over `max_image_pixels` are refused before they are decoded."""

    max_image_pixels: Count = pixels.MAX_PIXELS


class VisionModel(MultiTaskModel):
    """MobileNetV2 with ImageNet's labels and embedding vectors from the same pass."""

    options_class = VisionOptions
    options: VisionOptions

    default_cost = 16
    budgets = (4, 8, 16, 32)

    # --- in the parent process ---

    def prepare(self, content: str | bytes, params: Mapping[str, msgspec.Struct]) -> Prepared:
        """Decode an image to its 224 x 224 centre. The row is `pixels`, uint8 `(height, width, channel)`."""
        if isinstance(content, str):
            raise InvalidInput("input", "must be the bytes of an image file, not text")
        row = pixels.decode(content, max_pixels=self.options.max_image_pixels)
        return Prepared({"pixels": row}, 1, hashlib.blake2b(row.tobytes(), digest_size=16).digest())

    def labels(self, task: Task) -> Sequence[str]:
        return self._labels

    @cached_property
    def _labels(self) -> tuple[str, ...]:
        try:
            names = json.loads((self.spec.folder / "config.json").read_text("utf-8"))["id2label"]
        except (OSError, ValueError, KeyError) as error:
            raise ConfigurationError(f"models.{self.spec.name}: {error!r}; pull it: argosy models pull") from error
        return tuple(names[str(number)] for number in range(len(names)))

    # --- in the device process ---

    def _network(self) -> torch.nn.Module:
        from workers.models.built_in.vision.vision_network import VisionEncoder

        return VisionEncoder(self.spec.folder).eval()

    def _example(self) -> Arrays:
        return {"pixels": np.zeros((2, pixels.SIDE, pixels.SIDE, 3), dtype=np.uint8)}

    def _head(self, task: Task, features: Features, rows: torch.Tensor) -> torch.Tensor:
        if not task.kind.name.endswith("classification"):
            return features["pooled"].index_select(0, rows)
        return features["scores"].index_select(0, rows)
