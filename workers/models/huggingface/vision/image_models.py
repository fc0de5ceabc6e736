"""Any Hugging Face image model that answers in a single pass. Images scaled to the same size share it, without
padding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec
import numpy as np

from producers.wire.errors import ConfigurationError, InvalidInput
from workers.models.huggingface.checkpoint_model import HeadOptions
from workers.models.huggingface.onnx_source.onnx_file import OnnxFile
from workers.models.huggingface.vision import image_heads
from workers.models.huggingface.vision.image_heads import Image, ImageHead
from workers.models.huggingface.vision.image_processing import ImageReader
from workers.models.huggingface.vision.pixel_model import PixelModel
from workers.models.interface import ragged, sample_inputs
from workers.models.interface.model import Array, Arrays, Prepared, digest
from workers.models.interface.options import Count, Text
from workers.models.pictures import picture_rows, pixels

if TYPE_CHECKING:
    from workers.models.huggingface.exported import Inputs


class ImageOptions(HeadOptions, frozen=True):
    """`onnx` is the ONNX file, from the folder on, that the model is served from; sources set it (docs/models.md).

    An image with more than `max_image_pixels` is refused before it is decoded. `pooling` ("mean" or "cls") makes the
    vector of an image, by default as the network does.
    """

    onnx: Text | None = None
    max_image_pixels: Count = pixels.MAX_PIXELS
    pooling: Text | None = None


class ImageModel(PixelModel):
    """Images of any size, scaled as the checkpoint expects them."""

    options_class = ImageOptions
    options: ImageOptions
    HEADS: ClassVar[Mapping[str, type[ImageHead]]] = {
        "image-classification": image_heads.ImageClassification,
        "image-feature-extraction": image_heads.ImageFeatureExtraction,
        "object-detection": image_heads.ObjectDetection,
        "image-segmentation": image_heads.ImageSegmentation,
    }

    tunable = True
    backends = ("torch", "openvino", "onnxruntime")

    # --- in the parent process ---

    def prepare(self, content: Any, params: Mapping[str, msgspec.Struct]) -> Prepared:
        """Decode and scale an image. The row has `pixels`, uint8 `(height, width, 3)`, and the heads' inputs."""
        if not isinstance(content, bytes):
            raise InvalidInput("input", f"must be the bytes of an image file, not {type(content).__name__}")
        scaled, original = self.reader.read(content)
        arrays: Arrays = {"pixels": scaled}
        if any(self.heads[task].needs_size for task in params):
            arrays["size"] = np.array(original, dtype=np.int32)
        for task, chosen in params.items():
            if self.heads[task].needs_params:
                arrays[f"params/{task}"] = np.frombuffer(msgspec.msgpack.encode(chosen), dtype=np.uint8)
        return Prepared(arrays, picture_rows.squares(scaled), digest(arrays), aside=dict.fromkeys(params))

    def collate(self, rows: Sequence[Prepared]) -> Arrays:
        """Concatenate the rows' pixels, with their `shapes`, the original `sizes`, and the parameters by task."""
        nothing = np.zeros(0, dtype=np.uint8)
        sizes = np.array([row.arrays.get("size", (0, 0)) for row in rows], dtype=np.int64)
        batch = super().collate(rows) | {"sizes": sizes}
        for task, head in self.heads.items():
            if head.needs_params:
                name = f"params/{task}"
                batch[name] = ragged.pack([row.arrays.get(name, nothing).tobytes() for row in rows])
        return batch

    @cached_property
    def budgets(self) -> tuple[int, ...]:  # type: ignore[override]
        """Multiples, 1 to 32, of the size of a usual image."""
        [image] = sample_inputs.images(1)
        squares = picture_rows.squares(self.reader.read(image)[0])
        return tuple(squares * images for images in (1, 2, 4, 8, 16, 32))

    @cached_property
    def reader(self) -> ImageReader:
        return ImageReader(self.checkpoint, self.options.max_image_pixels)

    def _check_file(self, file: OnnxFile) -> None:
        super()._check_file(file)
        for name, head in self.heads.items():
            if isinstance(head, image_heads.ImageFeatureExtraction):
                file.check_pooling(name, self.options.pooling)

    # --- in the device process ---

    def _examples(self) -> tuple[Inputs, Inputs]:
        shape = self.reader.only_shape
        if shape is None:
            problem = "images are scaled to different shapes, but a trace supports only one"
            raise ConfigurationError(f"{self.where}.backend: {problem}; use 'torch'")
        pixels_of = np.random.default_rng(0).integers(0, 255, (3, *shape, 3), dtype=np.uint8)
        few, many = (self._inputs(pixels_of[:rows]) for rows in (2, 3))
        return few, many

    def _inputs(self, batch: Array) -> Inputs:
        import torch

        values = self.reader.normalized(torch.from_numpy(batch).to(self._device))
        return {"pixel_values": values.to(self.networks.dtype)}

    def _known(self, arrays: Arrays, task: str, rows: Sequence[int]) -> Sequence[Image]:
        own = arrays.get(f"params/{task}")
        params = [b"" if own is None else ragged.unpack(own[row]) for row in rows]
        return [Image(tuple(arrays["sizes"][row].tolist()), given) for row, given in zip(rows, params, strict=True)]
