"""Hugging Face checkpoints that turn a picture into a picture: super-resolution and restoration by Swin2SR."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec
import numpy as np

from producers.wire.catalogue import Task
from producers.wire.errors import ConfigurationError
from producers.wire.kinds.pictures import ImageToImageParams
from workers.models.huggingface.checkpoint import Checkpoint
from workers.models.huggingface.checkpoint_model import FolderModel, FolderOptions
from workers.models.huggingface.vision import image_processing
from workers.models.interface import output_files
from workers.models.interface.model import Array, Arrays, Prepared, digest
from workers.models.interface.options import Count
from workers.models.pictures import picture_rows

_ARCHITECTURE = "Swin2SRForImageSuperResolution"


class RestorationOptions(FolderOptions, frozen=True):
    """Pictures over `max_image_pixels` are refused. At fourfold scale, the default gives four million pixels."""

    max_image_pixels: Count = 512 * 512


@dataclass(frozen=True)
class Restoration:
    """A task of the kind `image-to-image`."""

    checkpoint: Checkpoint
    auto: str = "AutoModelForImageToImage"

    def check(self) -> None:
        names = self.checkpoint.config.get("architectures") or [""]
        if names[0] != _ARCHITECTURE:
            raise ConfigurationError(
                f"{self.checkpoint.where}: {names[0] or 'the model'} is not supported; {_ARCHITECTURE} is"
            )
        image_processing.image_settings(self.checkpoint)

    def finish(self, output: Array, params: ImageToImageParams, aside: Any) -> Any:
        return {"image": output_files.picture(picture_rows.unpacked(output), params.format)}


class RestorationModel(FolderModel[Restoration]):
    """Pictures of the same size share a pass."""

    options_class = RestorationOptions
    options: RestorationOptions
    READERS = ("AutoImageProcessor",)

    # --- in the parent process ---

    def prepare(self, content: Any, params: Mapping[str, msgspec.Struct]) -> Prepared:
        """Decode a picture. The row is `pixels`, uint8 `(height, width, 3)`. Raises InvalidInput, InputTooLarge."""
        most = self.options.max_image_pixels
        arrays: Arrays = {"pixels": picture_rows.read(content, most_pixels=most)}
        return Prepared(arrays, picture_rows.squares(arrays["pixels"]), digest(arrays), aside=dict.fromkeys(params))

    def collate(self, rows: Sequence[Prepared]) -> Arrays:
        return picture_rows.collate(rows)

    def _head(self, task: Task, checkpoint: Checkpoint) -> Restoration:
        return Restoration(checkpoint)

    # --- in the device process ---

    @cached_property
    def _processor(self) -> Any:
        return image_processing.processor(self.spec.folder, self.where)

    def forward(self, arrays: Arrays, wanted: Mapping[str, Array]) -> Arrays:
        import torch

        found: dict[int, Array] = {}
        with torch.inference_mode():
            for rows, pictures in picture_rows.by_shape(arrays):
                found.update(zip(rows, self._restored(pictures), strict=True))
        return {task: picture_rows.packed([found[int(row)] for row in rows]) for task, rows in wanted.items()}

    def _restored(self, pictures: Array) -> Array:
        """Return the restored pictures, of the same size, without the padding that the processor added."""
        import torch

        given = self._processor(images=list(pictures), return_tensors="pt")["pixel_values"]
        network = self.networks.only
        output = network(pixel_values=given.to(self._device, self.networks.dtype)).reconstruction
        scale = int(network.config.upscale) if network.config.upsampler else 1
        height, width = (side * scale for side in pictures.shape[1:3])
        shares = torch.as_tensor(output)[..., :height, :width].clamp(0, 1).float().cpu().permute(0, 2, 3, 1).numpy()
        return np.asarray((shares * 255).round().astype(np.uint8))
