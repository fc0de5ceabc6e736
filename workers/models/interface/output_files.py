"""Files in a model's output. The worker stores them (`producers.wire.result_files`); the output keeps references."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from producers.wire.kinds.pictures import PictureFormat

#: The compression level of PNG. The usual level, 6, takes five times as long for a file that is a twentieth smaller.
_PNG_LEVEL = 2

_SAVED: Mapping[PictureFormat, tuple[str, dict[str, Any]]] = {
    "png": ("image/png", {"format": "PNG", "compress_level": _PNG_LEVEL}),
    "jpeg": ("image/jpeg", {"format": "JPEG", "quality": 92}),
    "webp": ("image/webp", {"format": "WEBP", "quality": 92}),
}


@dataclass(frozen=True, slots=True)
class MadeFile:
    """The bytes and media type of a file, and further fields of its reference (a picture's `width` and `height`)."""

    data: bytes
    media_type: str
    about: Mapping[str, Any] = field(default_factory=dict)


def picture(pixels: NDArray[np.uint8], format_: PictureFormat) -> MadeFile:
    """Encode pixels `(height, width, 3)` or `(height, width)` as a file."""
    image = Image.fromarray(pixels)
    media_type, how = _SAVED[format_]
    buffer = io.BytesIO()
    image.save(buffer, **how)
    return MadeFile(buffer.getvalue(), media_type, {"width": image.width, "height": image.height})


def put_away(output: Any, put: Callable[[bytes, str], Mapping[str, Any]]) -> Any:
    """Return an output with each file replaced by `put(bytes, media type)` and the file's further fields."""
    match output:
        case MadeFile():
            return {**put(output.data, output.media_type), **output.about}
        case dict():
            return {name: put_away(value, put) for name, value in output.items()}
        case list() | tuple():
            return [put_away(value, put) for value in output]
    return output
