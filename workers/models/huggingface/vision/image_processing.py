"""Convert image files to a checkpoint's input pixels, following its ``preprocessor_config.json``, without torch.

The parent process scales and crops bytes; the device rescales and normalises them. When the model is loaded, `check`
compares the result with transformers' own image processor and rejects a checkpoint whose processor differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from producers.wire.errors import ConfigurationError, InputTooLarge
from workers.models.huggingface.checkpoint import Checkpoint, loading
from workers.models.pictures import pixels

if TYPE_CHECKING:
    import torch

_Pixels = NDArray[np.uint8]

#: The most pixels of a scaled image. Only very narrow images exceed it, if their short side is scaled to 800.
MOST_SCALED_PIXELS = 16_777_216

#: Below this target size, ConvNeXt's processor scales and crops; from this size on, it scales without keeping the
#: ratio.
_CONVNEXT_CROPS_BELOW = 384

#: YOLOS reduces each side to a multiple of its patch size.
_MULTIPLES = {"YolosImageProcessor": 16, "YolosFeatureExtractor": 16}


@dataclass(frozen=True)
class ImageReader:
    """The image preparation of a checkpoint."""

    checkpoint: Checkpoint
    max_pixels: int = pixels.MAX_PIXELS

    PREPARED: ClassVar[str] = "images"

    def read(self, data: bytes) -> tuple[_Pixels, tuple[int, int]]:
        """Return an image's pixels `(height, width, 3)` and its original height and width. Raises InvalidInput,
        InputTooLarge.
        """
        scaled, (height, width) = pixels.read(data, self._scaled_with_size, max_pixels=self.max_pixels)
        return scaled, (height, width)

    def _scaled_with_size(self, image: Image.Image) -> tuple[_Pixels, tuple[int, int]]:
        return self.scaled(image), (image.height, image.width)

    def __reduce__(self) -> tuple[Any, ...]:
        """Take only the image settings along to a decoding process, not the checkpoint's labels."""
        return _reader, (type(self), self.checkpoint.folder, self.checkpoint.where, self._config)

    def scaled(self, image: Image.Image) -> _Pixels:
        """Return an RGB image scaled and cropped."""
        if self._config.get("do_resize", True):
            image = self._resized(image)
        if self._config.get("do_center_crop"):
            image = _cropped(image, *_sides(self._config["crop_size"]))
        return np.asarray(image, dtype=np.uint8)

    @cached_property
    def only_shape(self) -> tuple[int, int] | None:
        """The height and width that all images get, or None if they depend on the image."""
        shapes = {self.scaled(_gradient(size)).shape[:2] for size in ((61, 43), (40, 97), (300, 200))}
        height, width = shapes.pop()
        return None if shapes else (height, width)

    @property
    def centres(self) -> bool:
        """Whether an input of zeros is the mean colour of the training data instead of black."""
        return bool(self._config.get("do_normalize", True))

    def seen(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Return the part of an image of this size that the network sees: left, top, width and height in its pixels.

        A crop larger than the image gives a part larger than the image.
        """
        if not self._config.get("do_resize", True):
            tall, wide = height, width
        else:
            (tall, wide), crop = self._scaled_size(width, height)
            if crop:
                return _middle((height, width), (tall, wide), (crop, crop))
        if self._config.get("do_center_crop"):
            return _middle((height, width), (tall, wide), _sides(self._config["crop_size"]))
        return 0.0, 0.0, float(width), float(height)

    def _resized(self, image: Image.Image) -> Image.Image:
        (height, width), crop = self._scaled_size(image.width, image.height)
        if height * width > MOST_SCALED_PIXELS:
            problem = f"would be {width} x {height} pixels after scaling, over {MOST_SCALED_PIXELS:,} in all"
            raise InputTooLarge("input", problem, "send a less narrow image")
        resized = image.resize((width, height), Image.Resampling(self._config.get("resample", 2)))
        return _cropped(resized, crop, crop) if crop else resized

    def _scaled_size(self, width: int, height: int) -> tuple[tuple[int, int], int | None]:
        """Return the height and width to scale to, and the side of the square centre crop that follows, or None."""
        crop = None
        size = self._config.get("size", {"height": 224, "width": 224})
        if self._type.startswith("ConvNext"):
            edge = int(size["shortest_edge"])
            if edge < _CONVNEXT_CROPS_BELOW:
                crop, size = edge, {"shortest_edge": int(edge / self._config.get("crop_pct", 224 / 256))}
            else:
                size = {"height": edge, "width": edge}
        return target_size((height, width), size, _MULTIPLES.get(self._type, 1)), crop

    @cached_property
    def _config(self) -> Mapping[str, Any]:
        return image_settings(self.checkpoint)

    @property
    def _type(self) -> str:
        named = self._config.get("image_processor_type") or self._config.get("feature_extractor_type") or ""
        return str(named).removesuffix("Fast")

    def check_settings(self) -> None:
        """Raise ConfigurationError if the folder has no image settings."""
        _ = self._config

    # --- in the device process ---

    def normalized(self, batch: torch.Tensor) -> torch.Tensor:
        """Turn pixels `(rows, height, width, 3)` of 0 to 255 into the network's input `(rows, 3, height, width)`."""
        import torch

        values = batch.permute(0, 3, 1, 2).float()
        if self._config.get("do_rescale", True):
            values = values * float(self._config.get("rescale_factor", 1 / 255))
        if self._config.get("do_normalize", True):
            mean, std = (torch.tensor(self._config[name], device=values.device) for name in ("image_mean", "image_std"))
            values = (values - mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1)
        return values

    def check(self, processor: Any) -> None:
        """Compare with transformers' own processor on two images. Raises ConfigurationError if an image differs."""
        for size in ((61, 43), (40, 97)):
            try:
                same = self._agrees(processor, _gradient(size))
            except Exception:  # noqa: BLE001 - processors of other kinds want other inputs, and lack our settings
                same = False
            if not same:
                problem = f"{self.PREPARED} are not prepared as by {type(processor).__name__}"
                remedy = "write a class for it (docs/models.md)"
                if isinstance(self._config.get("size"), int):  # of its classes, some mean the short side, some both
                    remedy = (
                        "its size is a number, so save its image processor again with transformers (save_pretrained)"
                    )
                raise ConfigurationError(f"{self.checkpoint.where}: {problem}; {remedy}")

    def _agrees(self, processor: Any, image: Image.Image) -> bool:
        import torch

        theirs = self._theirs(processor, image)
        ours = self.normalized(torch.from_numpy(self.scaled(image).copy())[None])
        return ours.shape == theirs.shape and torch.allclose(ours, theirs, atol=1e-4)

    def _theirs(self, processor: Any, image: Image.Image) -> torch.Tensor:
        found: torch.Tensor = processor(images=[image], return_tensors="pt")["pixel_values"]
        return found


def image_settings(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """Return the settings of a folder's image processor: its own file, or its part of the processor's file."""
    _ = checkpoint.config  # a folder of another form has other files
    found: Mapping[str, Any] = checkpoint.read_if_there("processor_config.json").get("image_processor") or {}
    return found or checkpoint.read("preprocessor_config.json")


def _reader(class_: type[ImageReader], folder: Path, where: str, config: Mapping[str, Any]) -> ImageReader:
    reader = class_(Checkpoint(folder, where))
    reader.__dict__["_config"] = config  # read already
    return reader


def processor(folder: Path, where: str) -> Any:
    """Return transformers' own image processor for a folder, its PIL version. Runs in the device process.

    Raises ConfigurationError if it cannot be loaded.
    """
    from transformers import AutoImageProcessor

    with loading(folder, where):
        return AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False, backend="pil")


def target_size(original: tuple[int, int], size: Any, multiple: int = 1) -> tuple[int, int]:
    """Return the height and width to scale to by a processor's `size`: fixed sides, or edges that keep the ratio.

    The scaled sides are reduced to multiples of `multiple`.
    """
    if not isinstance(size, Mapping):
        return _sides(size)
    if "height" in size and "width" in size:
        return int(size["height"]), int(size["width"])
    if "max_height" in size and "max_width" in size:
        scale = min(size["max_height"] / original[0], size["max_width"] / original[1])
        return int(original[0] * scale), int(original[1] * scale)
    short, long = _edges(min(original), max(original), int(size["shortest_edge"]), size.get("longest_edge"))
    height, width = (short, long) if original[0] <= original[1] else (long, short)
    return height - height % multiple, width - width % multiple


def _edges(short: int, long: int, wanted: int, longest: int | None) -> tuple[int, int]:
    """Return the scaled short and long edge: the short edge is `wanted`, or less if the long edge exceeds `longest`."""
    exact: float = wanted
    if longest and long / short * wanted > longest:
        exact = longest * short / long
    edge = round(exact)
    return (short, long) if short == edge else (edge, int(exact * long / short))


def _sides(size: Any) -> tuple[int, int]:
    if isinstance(size, Mapping):
        return int(size["height"]), int(size["width"])
    return int(size), int(size)


def _cropped(image: Image.Image, height: int, width: int) -> Image.Image:
    """Return the centre of an image, padded with black if the image is too small."""
    top, left = (image.height - height) // 2, (image.width - width) // 2
    return image.crop((left, top, left + width, top + height))


def _middle(
    original: tuple[int, int], scaled: tuple[int, int], crop: tuple[int, int]
) -> tuple[float, float, float, float]:
    """Return the centre crop of `_cropped` in pixels of the original image: left, top, width, height."""
    tops = [(whole - part) // 2 for whole, part in zip(scaled, crop, strict=True)]
    down, across = (before / after for before, after in zip(original, scaled, strict=True))
    return tops[1] * across, tops[0] * down, crop[1] * across, crop[0] * down


def _gradient(size: tuple[int, int]) -> Image.Image:
    across, down = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(255, 0, size[1]))
    noise = np.random.default_rng(0).integers(0, 255, across.shape)
    return Image.fromarray(np.stack([across, down, noise], axis=-1).astype(np.uint8))
