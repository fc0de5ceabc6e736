"""The vision model: MobileNetV2 from a Hugging Face folder; classification and embedding from one pass."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec

from producers.catalogue import Task
from producers.errors import ConfigurationError, InvalidInput
from workers.models import pixels
from workers.models.model import ModelSpec, Prepared
from workers.models.multitask import MultiTaskModel

if TYPE_CHECKING:
    import torch

    from workers.models.multitask import Features

#: ImageNet's mean and standard deviation, per channel, of values 0 to 1: what these weights were trained with.
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


class VisionModel(MultiTaskModel):
    """Options: `max_image_pixels` (default 50 million), over which an image is refused before it is decoded."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self._network: Any = None

    # --- in the parent process ---

    def prepare(self, content: str | bytes, params: Mapping[str, msgspec.Struct]) -> Prepared:
        """Decode an image to its 224 x 224 centre. The row is `pixels`, uint8 `(height, width, channel)`."""
        if isinstance(content, str):
            raise InvalidInput("input", "must be the bytes of an image file, not text")
        limit = int(self.spec.options.get("max_image_pixels", pixels.MAX_PIXELS))
        row = pixels.decode(content, max_pixels=limit)
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

    def _load(self, device: str) -> None:
        from transformers import AutoModelForImageClassification
        from transformers.utils import logging

        logging.disable_progress_bar()  # a worker's log is no terminal
        network = AutoModelForImageClassification.from_pretrained(
            self.spec.folder, local_files_only=True, use_safetensors=True, trust_remote_code=False
        )
        self._network = network.eval().to(device)

    def encode(self, arrays: Mapping[str, torch.Tensor]) -> Features:
        import torch

        images = arrays["pixels"].permute(0, 3, 1, 2).float() / 255
        mean = torch.tensor(_MEAN, device=images.device).view(1, 3, 1, 1)
        std = torch.tensor(_STD, device=images.device).view(1, 3, 1, 1)
        return {"pooled": self._network.mobilenet_v2((images - mean) / std).pooler_output}

    def _head(self, task: Task, features: Features, rows: torch.Tensor) -> torch.Tensor:
        pooled = features["pooled"].index_select(0, rows)
        if not task.kind.name.endswith("classification"):
            return pooled
        scores: torch.Tensor = self._network.classifier(pooled)
        return scores.softmax(-1)
