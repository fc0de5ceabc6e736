"""Functions that decoding processes run in tests."""

from __future__ import annotations

import io
import os
import sys
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps

from producers.wire.errors import InputTooLarge

if TYPE_CHECKING:
    from av import VideoFrame


def length(data: bytes) -> int:
    return len(data)


def spins(data: bytes) -> None:
    """Use the processor for good, in native code."""
    while True:
        sum(range(10**8))


def sleeps(data: bytes) -> None:
    time.sleep(600)


def dies(data: bytes, code: int) -> None:
    os.kill(os.getpid(), code)


def dies_at_first(data: bytes, folder: str) -> int:
    """Die in the first process, and return the second one's id."""
    try:
        (Path(folder) / "died").touch(exist_ok=False)
    except FileExistsError:
        return os.getpid()
    os.kill(os.getpid(), 9)
    return 0


def meets(data: bytes, folder: str, count: int) -> int:
    """Return this process's id once this function runs in so many processes."""
    (Path(folder) / str(os.getpid())).touch()
    while len([*Path(folder).iterdir()]) < count:
        time.sleep(0.001)
    return os.getpid()


def fills(data: bytes, size: int) -> int:
    return len(np.ones(size, np.uint8))


def surroundings(data: bytes) -> Any:
    return dict(os.environ), [name for name in sys.modules if "." not in name], os.nice(0)


def values(data: bytes) -> Any:
    return [np.frombuffer(data, np.uint8), (np.zeros((0, 3), np.float32), "text", 1.5, None)]


def refuses(data: bytes) -> None:
    raise InputTooLarge("input", "is refused", "do not send it")


def fails(data: bytes) -> None:
    raise KeyError("no such thing")


def heard(data: bytes, formats: str) -> tuple[int, Any]:
    """Return the rate and the mono samples that FFmpeg plays, which goes on behind packets that it cannot decode.

    A rate that changes within a sound gives no samples.
    """
    import av

    from workers.models.speech import waveform

    rates, blocks = [], [np.zeros(0, np.float32)]
    options = {"format_whitelist": formats}
    try:
        with av.open(io.BytesIO(data), options=options, metadata_errors="replace") as container:
            for packet in container.demux(container.streams.audio[0]):
                try:
                    for frame in packet.decode():
                        rates.append(frame.sample_rate)
                        blocks.append(waveform._samples(frame).mean(axis=1, dtype=np.float32))
                except av.FFmpegError:
                    continue
    except (av.FFmpegError, IndexError, AttributeError):
        pass
    return (rates or [0])[0], np.concatenate(blocks if len(set(rates)) == 1 else blocks[:1])


def seen(data: bytes, formats: str) -> list[int]:
    """Return checksums of the frames that FFmpeg shows; none if it cannot decode them all.

    It conceals damage within a frame by other frames: by which, depends on the place where decoding began.
    """
    import av

    try:
        with av.open(io.BytesIO(data), options={"format_whitelist": formats}, metadata_errors="replace") as container:
            container.streams.video[0].codec_context.thread_count = 1  # as our reader
            shown = [(checksum(frame), frame.is_corrupt) for frame in container.decode(video=0)]
            return [] if any(corrupt for _, corrupt in shown) else [number for number, _ in shown]
    except (av.FFmpegError, IndexError, ValueError, AttributeError):
        return []


def checksum(frame: VideoFrame) -> int:
    return zlib.crc32(frame.to_ndarray(format="rgb24").tobytes())


def opened(data: bytes, formats: tuple[str, ...]) -> int:
    """Return the checksum of an opaque picture of at most 8 bits as Pillow reads it, upright; 0 if it does not."""
    try:
        with Image.open(io.BytesIO(data), formats=formats) as image:
            image.load()
            if image.has_transparency_data or image.mode[0] in "IF":
                return 0
            return picture_checksum(ImageOps.exif_transpose(image).convert("RGB"))
    except Exception:  # noqa: BLE001 - Pillow's decoders raise errors of every type
        return 0


def picture_checksum(image: Image.Image) -> int:
    return zlib.crc32(image.tobytes())
