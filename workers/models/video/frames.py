"""Decode a few frames from the bytes of a video. Every error is the input's fault. Does not import torch.

The packets are listed first. Without decoding, that gives the number of frames and the places to start decoding at. So
a video over a limit is refused before it is decoded, and a long film is decoded only around the wanted frames. Frames
are scaled one after another, so only one of full size is held at a time.
"""

from __future__ import annotations

import io
import math
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from producers.wire.errors import ConfigurationError, InputTooLarge, InvalidInput
from workers.models.decoding import declared_size, isolation
from workers.models.interface.options import Count, Options, Positive
from workers.models.video.frame_sampling import FrameSampling

if TYPE_CHECKING:
    from av import VideoFrame

Pixels = NDArray[np.uint8]

_TURNED = (None, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)

_Made = TypeVar("_Made")

#: The containers that are read, by FFmpeg's names. No playlists and the like: their demuxers would open other files.
FORMATS = ("mov", "mp4", "matroska", "webm", "avi", "apng", "mpegts", "mpeg", "flv", "ogg", "asf")

#: The containers with seeking by time.
_INDEXED = ("mov", "mp4", "matroska", "webm")

#: The containers that a receiver may leave anywhere.
_STREAMED = ("mpegts", "mpeg")

_REMEDY = "send a video as MP4, WebM, Matroska, AVI, MPEG or GIF"


class VideoLimits(Options, frozen=True):
    """The options that limit videos.

    At most `max_decoded_frames` frames are decoded to reach the wanted ones, within `max_decoding_s` seconds of the
    thread's CPU time, so that the limit does not depend on the load of the machine.
    """

    max_frame_pixels: Count = 8_847_360  # 4096 x 2160
    max_video_s: Positive = 7200.0
    max_decoded_frames: Count = 4096
    max_decoding_s: Positive = 30.0


def check_installed(where: str) -> None:
    """Raise ConfigurationError, which names the extra, if PyAV is not installed."""
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise ConfigurationError(f"{where}: videos need PyAV; pip install 'argosy[video]'") from error


def read(data: bytes, sampling: FrameSampling, limits: VideoLimits, then: Callable[[VideoFrame], _Made]) -> list[_Made]:
    """Return `then(frame)` for each wanted frame.

    Raises InvalidInput if the bytes are no complete video, InputTooLarge if the video is over a limit.

    If files are decoded in other processes, `then` gets whole upright frames in this process. `made` returns less.
    """
    if not isolation.is_apart():
        return _opened(data, sampling, limits, then)
    from av import VideoFrame

    whole = made(data, sampling, limits, _whole)
    return [then(VideoFrame.from_ndarray(pixels, format="rgb24")) for pixels in whole]


def made(data: bytes, sampling: FrameSampling, limits: VideoLimits, then: Callable[[VideoFrame], _Made]) -> list[_Made]:
    """Return `then(frame)` for each wanted frame like `read`, called where the video is decoded.

    `then` must be importable, and return an array or plain values (`workers.models.decoding.isolation.decode`).
    """
    # a subclass's module and its other options stay here
    own = VideoLimits(**{name: getattr(limits, name) for name in VideoLimits.__struct_fields__})
    return isolation.decode(_opened, data, sampling, own, then)


def _whole(frame: VideoFrame) -> Pixels:
    return np.asarray(image(frame), dtype=np.uint8)


def _opened(
    data: bytes, sampling: FrameSampling, limits: VideoLimits, then: Callable[[VideoFrame], _Made]
) -> list[_Made]:
    import av

    if not data:
        raise InvalidInput("input", "is empty", _REMEDY)
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return _read_gif(data, sampling, limits, then)
    options = {
        "format_whitelist": ",".join(FORMATS),
        "protocol_whitelist": "none",  # reads the given bytes, and opens nothing else
        "max_pixels": str(limits.max_frame_pixels),  # opening a file may decode a frame
    }
    try:
        data = declared_size.mended(data)
        with av.open(io.BytesIO(data), options=options, metadata_errors="replace") as container:
            return _Video(container, limits).read(sampling, then)
    except InvalidInput:
        raise
    except av.FFmpegError as error:  # out of memory included: a broken file may ask for any amount
        raise InvalidInput("input", f"is not a complete, readable video ({error.strerror})", _REMEDY) from error
    except (ValueError, RuntimeError, IndexError) as error:  # PyAV's own errors, about broken streams
        raise InvalidInput("input", f"is a broken video: {error}", _REMEDY) from error


def _read_gif(
    data: bytes, sampling: FrameSampling, limits: VideoLimits, then: Callable[[VideoFrame], _Made]
) -> list[_Made]:
    """Like `read`, with Pillow: FFmpeg reads a GIF whose frames have no duration as a single frame."""
    from av import VideoFrame

    until = time.thread_time() + limits.max_decoding_s
    try:
        with Image.open(io.BytesIO(data), formats=("GIF",)) as picture:
            _check_size(*picture.size, limits)
            places = sampling.places(int(getattr(picture, "n_frames", 1)))
            _check_effort(places[-1] + 1, limits)
            made: dict[int, _Made] = {}
            for place in sorted(set(places)):
                picture.seek(place)
                made[place] = then(VideoFrame.from_ndarray(np.asarray(picture.convert("RGB")), format="rgb24"))
                _check_time(until, limits)
    except (InvalidInput, MemoryError):
        raise
    except Exception as error:  # malformed bytes cause errors of every type in Pillow's decoders
        detail = "" if isinstance(error, UnidentifiedImageError) else f": {error}"  # that one names an object's address
        raise InvalidInput("input", f"is a broken animation{detail}", "save the complete file again") from error
    return [made[place] for place in places]


# --- limits -------------------------------------------------------------------------------------------


def _check_size(width: int, height: int, limits: VideoLimits) -> None:
    if not width or not height:
        raise InvalidInput("input", "is a video without a size", "save the complete file again")
    if width * height > limits.max_frame_pixels:
        problem = f"is a video of {width} x {height} pixels, over {limits.max_frame_pixels:,} in all"
        raise InputTooLarge("input", problem, "scale it down")


def _check_effort(count: int, limits: VideoLimits) -> None:
    if count > limits.max_decoded_frames:
        problem = f"needs {count:,} frames to be decoded, over {limits.max_decoded_frames:,}"
        raise InputTooLarge("input", problem, "send a part of it, or ask for fewer frames or a lower rate")


def _check_time(until: float, limits: VideoLimits) -> None:
    if time.thread_time() > until:
        problem = f"takes longer than {limits.max_decoding_s:g} s to decode"
        raise InputTooLarge("input", problem, "send a smaller or shorter video")


class _Video:
    """An open file with its packets listed."""

    def __init__(self, container: Any, limits: VideoLimits) -> None:
        self._container = container
        self._limits = limits
        self._until = time.thread_time() + limits.max_decoding_s
        self._stream = _picture_stream(container)
        codec = self._stream.codec_context
        if codec is None:
            raise InvalidInput("input", "is a video in an unknown codec", "save it as H.264 or VP9")
        _check_size(codec.width, codec.height, limits)
        codec.thread_count = 1  # many videos are prepared at once already
        self._times: list[int] = []
        self._starts: list[int] = []

    def read(self, sampling: FrameSampling, then: Callable[[VideoFrame], _Made]) -> list[_Made]:
        total = self._list_packets()
        places = sampling.places(total)
        wanted = sorted(set(places))
        read = self._by_time if self._times else self._by_number
        made: dict[int, _Made] = {}
        for place, frame in zip(wanted, read(wanted), strict=False):
            _check_size(frame.width, frame.height, self._limits)  # the size may change within a video
            made[place] = then(frame)
        if not made:
            raise InvalidInput("input", "has no frame that can be decoded", "save the complete file again")
        last = max(made)  # the end of a damaged file may have fewer frames than packets
        return [made[min(place, last)] for place in places]

    def _list_packets(self) -> int:
        """Note the times of the shown frames and the places to start decoding at; return the number of frames."""
        stream, times, decoding_times, starts, total, cut_off = self._stream, [], [], [], 0, False
        for packet in self._container.demux(stream):
            if not packet.size:
                continue
            cut_off = packet.is_corrupt
            if packet.dts is not None:
                decoding_times.append(packet.dts)
            if not packet.is_discard:  # by an edit list: only frames that others need are decoded
                total += 1
                times.append(packet.pts)
            if packet.is_keyframe and packet.pts is not None:
                starts.append(packet.pts)
            _check_time(self._until, self._limits)
        if not total:
            raise InvalidInput("input", "is a video without frames", "record it again")
        declared_size.check_index(self._container, stream)
        if cut_off and self._container.format.name not in _STREAMED:
            raise InvalidInput("input", "breaks off within its last frame", "send the whole file")
        self._container.seek(0)
        indexed = set(self._container.format.name.split(",")) & set(_INDEXED)
        if indexed and None not in times and len(set(times)) == total:
            self._times, self._starts = sorted(times), sorted(starts)
            self._check_length(float((self._times[-1] - self._times[0]) * stream.time_base))
        elif decoding_times:  # the stream's own duration may be guessed from a bit rate
            self._check_length(float((max(decoding_times) - min(decoding_times)) * stream.time_base))
        return total

    def _check_length(self, length_s: float) -> None:
        if length_s > self._limits.max_video_s:
            problem = f"is {length_s:,.0f} s long, over {self._limits.max_video_s:,.0f}"
            raise InputTooLarge("input", problem, "send a part of it")

    def _by_number(self, wanted: Sequence[int]) -> Iterator[VideoFrame]:
        """Yield the wanted frames, counted from the beginning."""
        _check_effort(wanted[-1] + 1, self._limits)
        left = list(reversed(wanted))
        frame = None
        for number, frame in enumerate(self._decoded()):
            if number == left[-1]:
                yield frame
                left.pop()
            if not left:
                return

    def _by_time(self, wanted: Sequence[int]) -> Iterator[VideoFrame]:
        """Yield the wanted frames, each decoded from the last keyframe before it."""
        _check_effort(self._effort(wanted), self._limits)
        frames, at = self._decoded(), self._times[0]
        for time_ in (self._times[place] for place in wanted):
            start = self._start_before(time_)
            if start is not None and start > at:
                self._container.seek(start, stream=self._stream, backward=True)
                frames = self._decoded()
            for frame in frames:
                if frame.pts is None or frame.pts >= time_:
                    at = time_ if frame.pts is None else frame.pts
                    yield frame
                    break
            else:
                return  # a damaged end

    def _start_before(self, time_: int) -> int | None:
        place = bisect_right(self._starts, time_)
        return self._starts[place - 1] if place else None

    def _effort(self, wanted: Sequence[int]) -> int:
        """Return the number of frames that `_by_time` decodes."""
        effort, at = 1, 0
        for place in wanted:
            start = self._start_before(self._times[place])
            first = 0 if start is None else bisect_right(self._times, start) - 1
            effort += place - at if first <= at else place - first + 1
            at = place
        return effort

    def _decoded(self) -> Iterator[VideoFrame]:
        for frame in self._container.decode(self._stream):
            _check_time(self._until, self._limits)
            yield frame


def _picture_stream(container: Any) -> Any:
    """Return the first video stream; a cover picture is not a video stream."""
    from av.stream import Disposition

    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            return stream
    kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
    raise InvalidInput("input", f"has no moving pictures, only {kinds}", _REMEDY)


# --- the content of a frame ----------------------------------------------------------------------------


def image(frame: VideoFrame) -> Image.Image:
    """Return a frame as an RGB image, turned and mirrored as a player shows it."""
    made: Image.Image = frame.to_image(threads=1)  # type: ignore[no-untyped-call]
    mirrored, turns = _orientation(frame)
    if mirrored:
        made = made.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    turned = _TURNED[turns]
    return made if turned is None else made.transpose(turned)


def of_image(frame: VideoFrame, then: Callable[[Image.Image], _Made]) -> _Made:
    """Return `then` of a frame's upright RGB image."""
    return then(image(frame))


def centre(frame: VideoFrame, side: int, short_side: int) -> Pixels:
    """Return the middle of a frame as `(side, side, 3)`, upright; the short side is first scaled to `short_side`."""
    scale = short_side / min(frame.width, frame.height)
    width, height = (max(short_side, round(edge * scale)) for edge in (frame.width, frame.height))
    scaled = frame.reformat(width=width, height=height, format="rgb24", interpolation="AREA", threads=1).to_ndarray()
    left, top = (width - side) // 2, (height - side) // 2
    mirrored, turns = _orientation(frame)
    middle = scaled[top : top + side, left : left + side]
    return np.ascontiguousarray(np.rot90(middle[:, ::-1] if mirrored else middle, turns))


def _orientation(frame: VideoFrame) -> tuple[bool, int]:
    """Return whether a frame is mirrored left to right, and then the number of its counterclockwise quarter turns.

    The file's matrix takes the point (x, y) to (ax + cy, bx + dy).
    """
    from av.sidedata import sidedata

    known: Any = sidedata.SideDataContainer
    try:
        matrix = known(frame).get("DISPLAYMATRIX")  # `frame.side_data` would keep the frame in a cycle
    except ValueError:  # PyAV does not know the type of other data beside this frame, and hands out none
        return False, round(frame.rotation / 90) % 4
    if matrix is None:
        return False, 0
    a, b, _, c, d = np.frombuffer(matrix, np.int32, 5).tolist()
    mirrored = a * d < b * c
    if mirrored:
        a, b = -a, -b
    return mirrored, round(-math.degrees(math.atan2(b, a)) / 90) % 4
