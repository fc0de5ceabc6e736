"""Read an image's format and size from its first bytes: PNG, JPEG, GIF and WebP, which every browser draws.

From the PNG specification (third edition, 5.2 and 11.2.1), ITU-T T.81 (annex B), GIF89a (17 and 18) and RFC 9649.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ImageSize:
    """An image's media type and its size in pixels."""

    media_type: str
    width: int
    height: int

    @property
    def pixels(self) -> int:
        return self.width * self.height

    def view(self) -> dict[str, Any]:
        return {"media_type": self.media_type, "width": self.width, "height": self.height}


def image_size(data: bytes) -> ImageSize | None:
    """Return the format and size in the header; None for anything but the beginning of an image with pixels."""
    try:
        found = _png(data) or _jpeg(data) or _gif(data) or _webp(data)
    except (struct.error, IndexError):  # cut off
        return None
    return found if found is not None and found.width and found.height else None


def _png(data: bytes) -> ImageSize | None:
    if not data.startswith(b"\x89PNG\r\n\x1a\n") or data[12:16] != b"IHDR":
        return None
    return ImageSize("image/png", *struct.unpack(">II", data[16:24]))


def _gif(data: bytes) -> ImageSize | None:
    if not data.startswith((b"GIF87a", b"GIF89a")):
        return None
    return ImageSize("image/gif", *struct.unpack("<HH", data[6:10]))


def _jpeg(data: bytes) -> ImageSize | None:
    if not data.startswith(b"\xff\xd8\xff"):
        return None
    place = 2
    while data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:  # fill bytes
            place += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a frame header
            height, width = struct.unpack(">HH", data[place + 5 : place + 9])
            return ImageSize("image/jpeg", width, height)
        place += 2 + struct.unpack(">H", data[place + 2 : place + 4])[0]
    return None


def _webp(data: bytes) -> ImageSize | None:
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return None
    match data[12:16]:
        case b"VP8 ":
            width, height = struct.unpack("<HH", data[26:30])
            return ImageSize("image/webp", width & 0x3FFF, height & 0x3FFF)
        case b"VP8L":
            bits = struct.unpack("<I", data[21:25])[0]
            return ImageSize("image/webp", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
        case b"VP8X":
            width, height = (int.from_bytes(data[place : place + 3], "little") + 1 for place in (24, 27))
            return ImageSize("image/webp", width, height)
    return None
