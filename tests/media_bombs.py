"""Files that cost far more to decode than to send."""

from __future__ import annotations

import io
import struct
from fractions import Fraction
from typing import Any

import numpy as np
from PIL import Image


def scans(count: int = 2000, side: int = 7000) -> bytes:
    """Return a progressive JPEG whose scans of 75 bytes each pass over the whole picture."""
    blocks, bits = ((side + 7) // 8) ** 2, ""
    while blocks >= 16384:
        run = min(blocks, 32767)
        bits += f"0{run - 16384:014b}"
        blocks -= run
    bits += "1" * (-len(bits) % 8)
    scan = bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)).replace(b"\xff", b"\xff\0")
    head = (
        _segment(0xDB, b"\0" + b"\x01" * 64),
        _segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + b"\x01\x11\x00"),
        _segment(0xC4, b"\x10\x01" + bytes(15) + b"\xe0"),
    )
    every = _segment(0xDA, b"\x01\x01\x00\x01\x3f\x00") + scan
    return b"\xff\xd8" + b"".join(head) + every * count + b"\xff\xd9"


def _segment(marker: int, content: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(content) + 2) + content


def frames(form: str, count: int, side: int = 2000) -> bytes:
    """Return an animation of plain frames. A GIF has the same frame again and again."""
    made = io.BytesIO()
    picture = Image.new("L", (side, side), 9)
    if form != "GIF":
        others = [Image.new("L", (side, side), turn % 256) for turn in range(1, count)]
        picture.save(made, form, save_all=True, append_images=others)
        return made.getvalue()
    picture.save(made, "GIF")
    data = made.getvalue()
    colours = 13 + 3 * 2 ** ((data[10] & 7) + 1)
    return data[:colours] + data[colours:-1] * count + b";"


def film(count: int, width: int = 4096, height: int = 2160) -> bytes:
    """Return an MP4 in which one packet comes again and again."""
    import av

    made = io.BytesIO()
    with av.open(made, "w", format="mp4") as container:
        stream: Any = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        grey = np.full((height, width, 3), 99, dtype=np.uint8)
        frame = av.VideoFrame.from_ndarray(grey, format="rgb24").reformat(format="yuv420p")
        [packet, *_] = [*stream.encode(frame), *stream.encode(None)]
        data = bytes(packet)
        for number in range(count):
            again = av.Packet(data)
            again.stream, again.pts, again.dts, again.time_base = stream, number, number, Fraction(1, 25)
            again.is_keyframe = number == 0
            container.mux(again)
    return made.getvalue()


def silence(length_s: int = 200, rate: int = 600_000) -> bytes:
    """Return a FLAC file of silence at a high rate."""
    import soundfile

    made = io.BytesIO()
    with soundfile.SoundFile(made, "w", rate, 1, "PCM_16", format="FLAC") as file:
        second = np.zeros(rate, dtype=np.int16)
        for _ in range(length_s):
            file.write(second)
    return made.getvalue()


def deep(side: int = 7070) -> bytes:
    """Return a PNG with 16 bits for each of four channels, which takes 400 MB when it is decoded."""
    import zlib

    header = struct.pack(">IIBBBBB", side, side, 16, 6, 0, 0, 0)
    packer = zlib.compressobj(1)
    rows = b"".join(packer.compress(bytes(1 + 8 * side)) for _ in range(side)) + packer.flush()
    chunks = (
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
