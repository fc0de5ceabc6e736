"""Small video files, made where they are wanted, and what a plain decoder finds in them."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from typing import Any

import av
import numpy as np

_PIXELS = {"gif": "rgb8", "apng": "rgb24"}


class Pipe:
    """A file that its writer cannot go back in."""

    def __init__(self) -> None:
        self.content = bytearray()

    def write(self, data: bytes) -> int:
        self.content += bytes(data)
        return len(data)


def moving(count: int = 40, width: int = 64, height: int = 48, seed: int = 0) -> list[Any]:
    """Frames over which a bar grows from the left; no two are alike."""
    ground = np.random.default_rng(seed).integers(0, 120, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    frames = []
    for number in range(count):
        frame = np.kron(ground, np.ones((8, 8, 1), dtype=np.uint8))[:height, :width].copy()
        frame[:, : max(1, width * number // count)] = 200
        frame[:8, :8] = number * 6 % 256
        frames.append(frame)
    return frames


def file(
    frames: Sequence[Any],
    form: str = "mp4",
    codec: str = "libx264",
    *,
    gop: int = 12,
    rate: int = 25,
    piped: bool = False,
    options: dict[str, str] | None = None,
) -> bytes:
    """Return a video file of these frames, RGB `(height, width, 3)`, where one can begin to decode at every `gop`th.

    The writer of a `piped` file does not go back to put lengths in front.
    """
    made: Any = Pipe() if piped else io.BytesIO()
    with av.open(made, "w", format=form, options=options or {}) as container:
        stream: Any = container.add_stream(codec, rate=rate)
        stream.width, stream.height = frames[0].shape[1], frames[0].shape[0]
        stream.pix_fmt, stream.gop_size = _PIXELS.get(codec, "yuv420p"), gop
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame = frame.reformat(format=stream.pix_fmt)
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return bytes(made.content) if piped else made.getvalue()


def sound() -> bytes:
    """Return an MP4 file of a second of silence, without a picture."""
    made = io.BytesIO()
    with av.open(made, "w", format="mp4") as container:
        stream: Any = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return made.getvalue()


def without_frames() -> bytes:
    """Return an MP4 file with a header and nothing after it."""
    made = io.BytesIO()
    with av.open(made, "w", format="mp4", options={"movflags": "empty_moov+frag_keyframe"}) as container:
        stream: Any = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
    return made.getvalue()


def turned(data: bytes, matrix: Sequence[int] = (0, 1, -1, 0)) -> bytes:
    """Return an MP4 file whose header says how to turn or mirror its pixels, by default as a phone held upright does.

    The matrix (a, b, c, d) takes the point (x, y) to (ax + cy, bx + dy).
    """
    start = data.index(b"tkhd") + 4 + 4 + 20 + 8 + 8  # version and flags, times and duration, reserved, layer to volume
    a, b, c, d = (factor << 16 for factor in matrix)
    packed = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    return data[:start] + packed + data[start + len(packed) :]


def trimmed(data: bytes, from_s: float, length_s: float) -> bytes:
    """Return an MP4 file of which an edit list shows a part, as phones trim it without encoding it again."""
    edits = data.index(b"elst")
    begin = int.from_bytes(data[edits + 16 : edits + 20], "big")
    scale = int.from_bytes(data[data.index(b"mdhd") + 16 :][:4], "big")
    edit = struct.pack(">Ii", int(length_s * 1000), begin + int(from_s * scale))
    return data[: edits + 12] + edit + data[edits + 20 :]


def plain(data: bytes) -> list[Any]:
    """Return all frames of a file as RGB, decoded one after the other."""
    with av.open(io.BytesIO(data), "r") as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
