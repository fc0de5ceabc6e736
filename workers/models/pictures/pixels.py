"""Decode an image file into the pixels that an ImageNet model reads. Every error is the input's fault."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from producers.wire.errors import InputTooLarge, InvalidInput

_Made = TypeVar("_Made")

#: Images with more pixels are refused before they are decoded; this many take 150 MB when decoded.
MAX_PIXELS = 50_000_000

#: The formats that are read. Not EPS, PDF and the like: Pillow would start other programs for them.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")

#: Height and width of the result of `decode`.
SIDE = 224
_SHORT_SIDE = 256

#: The EXIF tag of the orientation, and its values for an image that lies on its side.
_ORIENTATION = 0x0112
_ON_ITS_SIDE = (5, 6, 7, 8)


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Return the centre of an image as `(224, 224, 3)`, as if its short side had been scaled to 256 first.

    Decodes like `rgb`, with the same errors.
    """
    # a large JPEG is decoded at a fraction of its size
    return rgb(data, _centre, max_pixels=max_pixels, about=(2 * _SHORT_SIDE, 2 * _SHORT_SIDE))


def upright_size(data: bytes) -> tuple[int, int]:
    """Return the width and height of an image accepted by `rgb`, upright by its EXIF orientation."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        turned = image.getexif().get(_ORIENTATION, 1) in _ON_ITS_SIDE
        return (image.height, image.width) if turned else (image.width, image.height)


def centre_side(width: int, height: int) -> float:
    """Return the side of the central square that `decode` reads from an image."""
    return min(width, height) * SIDE / _SHORT_SIDE


def rgb(
    data: bytes,
    then: Callable[[Image.Image], _Made],
    *,
    max_pixels: int = MAX_PIXELS,
    about: tuple[int, int] | None = None,
) -> _Made:
    """Decode an image and return `then(image)`: the first frame, upright by EXIF, transparent parts on white.

    With `about`, a JPEG may be decoded at a fraction of its size, but not smaller than `about`. Raises InputTooLarge
    over `max_pixels`, InvalidInput if it is not a complete image of a known format.
    """
    if not data:
        raise InvalidInput("input", "is empty", "send the bytes of an image file")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image, max_pixels)
            if about:
                image.draft("RGB", about)
            return then(_to_rgb(_upright(image)))
    except InvalidInput:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputTooLarge("input", f"is an image over {max_pixels:,} pixels", "scale it down") from error
    except UnidentifiedImageError as error:
        raise InvalidInput("input", "is not a readable image", f"send one of {', '.join(FORMATS)}") from error
    except MemoryError:
        raise  # the machine's fault, not the image's
    except Exception as error:  # malformed bytes cause errors of every type in Pillow's decoders
        raise InvalidInput("input", f"is a broken image: {error}", "save the complete file again") from error


def _check_size(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        problem = f"is an image of {width} x {height} pixels, over {max_pixels:,} in all"
        raise InputTooLarge("input", problem, "scale it down")


def _upright(image: Image.Image) -> Image.Image:
    image.load()  # reports a truncated file here, which would otherwise pass for broken EXIF
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # noqa: BLE001 (broken EXIF says nothing about the picture)
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_eight_bits(image)
    if image.has_transparency_data:
        over = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)
    return image.convert("RGB")


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Convert to 8 bits; Pillow would clip the values to 255.

    16 bits lose their lower half. Wider values have no fixed white, and are stretched to the full range.
    """
    values = np.nan_to_num(np.asarray(image).astype(np.float32), posinf=0, neginf=0)
    if image.mode.startswith("I;16"):
        return Image.fromarray((values / 257).round().astype(np.uint8))
    low, high = float(values.min()), float(values.max())
    return Image.fromarray(((values - low) * (255 / max(high - low, 1e-12))).round().astype(np.uint8))


def _centre(image: Image.Image) -> NDArray[np.uint8]:
    # a single resize of the square: first scaling an image of 1 x 100,000 pixels would itself be a decompression bomb
    width, height = image.size
    side = centre_side(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    square = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    return np.asarray(square, dtype=np.uint8)
