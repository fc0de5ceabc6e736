"""Decode an image file into the pixels that an ImageNet model reads. Every error is the input's fault."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from producers.wire.errors import InputTooLarge, InvalidInput
from workers.models.decoding import isolation

_Made = TypeVar("_Made")

#: Images with more pixels are refused before they are decoded; this many take 200 MB when decoded, and for a moment
#: twice as much if they are not RGB.
MAX_PIXELS = 50_000_000

# a PNG's texts and profiles play no part: workflows, XMP. Pillow's own limits, 1 and 64 MiB, take such files for broken
PngImagePlugin.MAX_TEXT_CHUNK = 64 * 2**20
PngImagePlugin.MAX_TEXT_MEMORY = 256 * 2**20

#: Adam7's passes over a PNG: the first column and row, and the distance of columns and rows.
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))

#: The channels of a PNG by its type of colour.
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}

#: The number of rows that are converted together.
STRIP_ROWS = 256

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
    return read(data, _centre, max_pixels=max_pixels, about=(2 * _SHORT_SIDE, 2 * _SHORT_SIDE))


def upright_size(data: bytes) -> tuple[int, int]:
    """Return the width and height of an image accepted by `rgb`, upright by its EXIF orientation."""
    width, height = isolation.decode(_upright_size, data)
    return width, height


def _upright_size(data: bytes) -> tuple[int, int]:
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

    If files are decoded in other processes, `then` gets the whole image in this process. `read` returns less.
    """
    if not isolation.is_apart():
        return _opened(data, then, max_pixels, about)
    image = Image.fromarray(read(data, _whole, max_pixels=max_pixels, about=about))
    with _faults_of_image(max_pixels):
        return then(image)


def read(
    data: bytes,
    then: Callable[[Image.Image], _Made],
    *,
    max_pixels: int = MAX_PIXELS,
    about: tuple[int, int] | None = None,
) -> _Made:
    """Return `then(image)` like `rgb`, called where the image is decoded.

    `then` must be importable, and return an array or plain values (`workers.models.decoding.isolation.decode`).
    """
    made: _Made = isolation.decode(_opened, data, then, max_pixels, about)
    return made


def _opened(data: bytes, then: Callable[[Image.Image], _Made], max_pixels: int, about: tuple[int, int] | None) -> _Made:
    if not data:
        raise InvalidInput("input", "is empty", "send the bytes of an image file")
    with _faults_of_image(max_pixels), Image.open(io.BytesIO(data), formats=FORMATS) as image:
        _check_size(image, max_pixels)
        isolation.check_memory(image.width * image.height)
        if about:
            image.draft("RGB", about)
        image.load()  # reports a truncated file here, which would otherwise pass for broken EXIF
        if image.format == "PNG":
            _check_rows(image, data)
        return then(_to_rgb(_upright(image)))


@contextmanager
def _faults_of_image(max_pixels: int) -> Iterator[None]:
    try:
        yield
    except InvalidInput:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputTooLarge("input", f"is an image over {max_pixels:,} pixels", "scale it down") from error
    except UnidentifiedImageError as error:
        raise InvalidInput("input", "is not a readable image", f"send one of {', '.join(FORMATS)}") from error
    except MemoryError:
        raise  # the limit's or the machine's fault
    except Exception as error:  # malformed bytes cause errors of every type in Pillow's decoders
        if "MAX_TEXT_" in str(error):
            problem = "holds more text than 64 MiB in one place or 256 MiB in all"
            raise InputTooLarge("input", problem, "save it without its metadata") from error
        raise InvalidInput("input", f"is a broken image: {error}", "save the complete file again") from error


def _check_size(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        problem = f"is an image of {width} x {height} pixels, over {max_pixels:,} in all"
        raise InputTooLarge("input", problem, "scale it down")


def _check_rows(image: Image.Image, data: bytes) -> None:
    """Raise InvalidInput if the rows of a PNG end early: Pillow leaves the others zero without an error.

    The rows are counted only if the last one is zero, or the last but one, which comes last if the PNG is interlaced.
    """
    width, height = image.size
    last = (image.crop((0, row, width, row + 1)) for row in range(max(0, height - 2), height))
    if all(row.getbbox(alpha_only=False) for row in last):
        return
    bits, colour, _, _, interlaced = struct.unpack_from("5B", data, 24)
    missing = 0
    for left, top, across, down in _PASSES if interlaced else ((0, 0, 1, 1),):
        columns, rows = -((left - width) // across), -((top - height) // down)
        missing += rows * (1 + (columns * bits * _CHANNELS[colour] + 7) // 8) if columns > 0 else 0
    inflater = zlib.decompressobj()
    with Image.open(io.BytesIO(data), formats=("PNG",)) as again:
        png: Any = again
        png.load_prepare()
        while packed := png.load_read(2**16):
            while packed:
                missing -= len(inflater.decompress(packed, 2**20))
                packed = inflater.unconsumed_tail
    if missing > len(inflater.flush()):
        raise InvalidInput("input", "is an image whose rows end early", "save the complete file again")


def _upright(image: Image.Image) -> Image.Image:
    with suppress(Exception):  # broken EXIF says nothing about the picture
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert in strips: Pillow holds four bytes a pixel of any of these modes, and needs several copies on the way."""
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    eight_bits = _to_eight_bits(image) if image.mode.startswith("I") or image.mode == "F" else lambda strip: strip
    made = Image.new("RGB", image.size)
    for number, strip in enumerate(map(eight_bits, _strips(image))):
        if strip.has_transparency_data:
            over = strip.convert("RGBA")
            strip = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)  # noqa: PLW2901
        made.paste(strip.convert("RGB"), (0, number * STRIP_ROWS))
    return made


def _to_eight_bits(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """Return a conversion of parts of an image to 8 bits; Pillow would clip the values to 255.

    16 bits lose their lower half. Wider values have no fixed white, and are stretched to the image's full range.
    """
    low, scale = 0.0, 1 / 257
    if not image.mode.startswith("I;16"):
        spans = [(float(values.min()), float(values.max())) for values in map(_values, _strips(image))]
        low, high = min(span[0] for span in spans), max(span[1] for span in spans)
        scale = 255 / max(high - low, 1e-12)

    def converted(part: Image.Image) -> Image.Image:
        return Image.fromarray(((_values(part) - low) * scale).round().astype(np.uint8))

    return converted


def _values(part: Image.Image) -> NDArray[np.float32]:
    return np.nan_to_num(np.asarray(part).astype(np.float32), posinf=0, neginf=0)


def _strips(image: Image.Image) -> Iterator[Image.Image]:
    for top in range(0, image.height, STRIP_ROWS):
        yield image.crop((0, top, image.width, min(top + STRIP_ROWS, image.height)))


def _whole(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image, dtype=np.uint8)


def scaled_down(image: Image.Image, *, most_pixels: int, longest_side: int | None) -> NDArray[np.uint8]:
    """Return an image scaled down to `longest_side`, if set. Else raise InputTooLarge over `most_pixels`."""
    longest = max(image.size)
    if longest_side and longest > longest_side:
        width, height = (max(1, round(side * longest_side / longest)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    elif not longest_side and image.width * image.height > most_pixels:
        problem = f"is an image of {image.width} x {image.height} pixels, over {most_pixels:,} in all"
        raise InputTooLarge("input", problem, "scale it down, or raise the option `max_image_pixels`")
    return np.asarray(image, dtype=np.uint8)


def squeezed(image: Image.Image, side: int) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Return the whole image resized to a square, and its original width and height."""
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR), dtype=np.uint8), image.size


def _centre(image: Image.Image) -> NDArray[np.uint8]:
    # a single resize of the square: first scaling an image of 1 x 100,000 pixels would itself be a decompression bomb
    width, height = image.size
    side = centre_side(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    square = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    return np.asarray(square, dtype=np.uint8)
