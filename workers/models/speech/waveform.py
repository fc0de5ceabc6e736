"""Decode audio files to mono samples at a model's sample rate. Every decoding error is an InvalidInput.

FFmpeg's libraries (PyAV) read them all. They neither refuse a file that is cut off nor name the damage that they pass
over, so each length that a file declares is compared with the samples heard.
"""

from __future__ import annotations

import importlib.util
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from producers.wire.errors import ConfigurationError, InputTooLarge, InvalidInput
from workers.models.decoding import declared_size, isolation

if TYPE_CHECKING:
    from av import AudioFrame

Samples = NDArray[np.float32]

#: The accepted sample rates in Hz.
_RATES = (1_000, 768_000)

#: Containers for FFmpeg, by its names. Without playlists (ffconcat, DASH), which would open other files.
FORMATS = (
    *("aac", "ac3", "aiff", "amr", "ape", "asf", "au", "avi", "avr", "caf", "dts", "eac3", "epaf", "flac"),
    *("flv", "iff", "ircam", "loas", "matroska", "mov", "mp3", "mp4", "mpeg", "mpegts", "nistsphere", "ogg"),
    *("pvf", "rm", "tta", "voc", "w64", "wav", "webm", "wv"),
)

#: Formats whose decoders may begin anywhere. A packet that cannot be decoded is the rest of a tag or of a cut frame.
_RESYNCHRONISING = ("aac", "ac3", "dts", "eac3", "loas", "mp3", "mpeg", "mpegts", "w64", "wav")

#: The beginnings of recordings in formats that may be joined. FFmpeg loses sound where the next recording begins.
_BEGINNINGS = {b"OggS": re.compile(rb"OggS\0[\x02\x06]"), b"fLaC": re.compile(rb"fLaC[\0\x80]\0\0\x22")}

#: Formats whose header or last page declares the number of samples.
_COUNTED = ("ape", "flac", "ogg", "tta", "wv")

#: An encoder's delay counts as declared in some files, and is not heard: mostly 6.5 ms of Opus, or 80.
_SLACK_S = 0.1

#: The number of frames that an MP3's first frame declares: Xing's tag (Info at a constant rate) if its flag is set, or
#: Fraunhofer's.
_MP3_FRAMES = re.compile(
    rb"\xff[\xe2-\xff].{7,34}(?:(?:Xing|Info)\0\0\0[\x01\x03\x05\x07\x09\x0b\x0d\x0f]|VBRI.{10})(.{4})", re.DOTALL
)

#: Larger samples are not sound. Full scale is 1, and floating-point files may exceed it somewhat.
_LOUDEST = 1e4


def require() -> None:
    """Raise ConfigurationError, with the remedy, if the audio libraries are not installed."""
    missing = [name for name in ("av", "soxr") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigurationError(f"audio files need {missing[0]}; pip install 'argosy[speech]'")


def decode(data: bytes, *, rate: int, max_s: float) -> Samples:
    """Return a recording as mono samples at `rate`, full scale 1, its channels averaged.

    Raises InputTooLarge over `max_s` seconds, InvalidInput if it is not a complete audio file of a known format with
    samples.
    """
    if not data:
        raise InvalidInput("input", "is empty", "send the bytes of an audio file")
    return isolation.decode(_decoded, data, rate, max_s)


def _decoded(data: bytes, rate: int, max_s: float) -> Samples:
    try:
        blocks = list(_resampled(_sound(data), rate, max_s))
    except (InvalidInput, ConfigurationError):
        raise
    except MemoryError:
        raise  # the limit's or the machine's fault
    except Exception as error:  # decoders raise errors of every type on malformed bytes
        problem = f"is a broken audio file: {getattr(error, 'strerror', None) or error}"
        raise InvalidInput("input", problem, "save it again completely") from error
    samples = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
    if not len(samples):
        raise InvalidInput("input", "is an audio file without samples", "send a recording")
    return samples


def _resampled(sound: Iterator[tuple[int, Samples]], rate: int, max_s: float) -> Iterator[Samples]:
    """Yield mono blocks at `rate` from pairs of a sample rate and a block `(samples, channels)`."""
    import soxr

    stream, stream_rate, length_s = None, rate, 0.0
    for own_rate, block in sound:
        length_s += len(block) / own_rate
        if length_s > max_s:
            problem = f"is a recording of over {max_s:,.0f} s"
            raise InputTooLarge("input", problem, "split it, or set the model's option max_audio_s")
        if own_rate != stream_rate:  # at first, or in a file of several recordings
            if stream is not None:
                yield stream.resample_chunk(np.zeros(0, np.float32), last=True)
            stream = None if own_rate == rate else soxr.ResampleStream(own_rate, rate, 1, dtype="float32")
            stream_rate = own_rate
        mono = _mono(block)
        yield mono if stream is None else stream.resample_chunk(mono)
    if stream is not None:
        yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


def _mono(block: Samples) -> Samples:
    mono: Samples = block.mean(axis=1, dtype=np.float32)
    if not np.isfinite(mono).all() or (len(mono) and np.abs(mono).max() > _LOUDEST):
        raise InvalidInput("input", "has samples that are not sound: NaN, infinite or huge", "save it again completely")
    return mono


def _sound(data: bytes) -> Iterator[tuple[int, Samples]]:
    """Yield a file's sample rate and samples, block by block."""
    require()
    for recording in _recordings(data):
        yield from _recording(declared_size.mended(recording))


def _recordings(data: bytes) -> Iterator[bytes]:
    """Yield the recordings that are joined in a file. The streams of one recording begin in adjacent pages of Ogg."""
    starts, behind = [0], 0
    for found in _BEGINNINGS[data[:4]].finditer(data) if data[:4] in _BEGINNINGS else ():
        if found.start() > behind:
            starts.append(found.start())
        behind = declared_size.ogg_page_end(data, found.start()) if data[:4] == b"OggS" else found.end()
    for start, end in zip(starts, [*starts[1:], len(data)], strict=True):
        yield data[start:end]


def _recording(data: bytes) -> Iterator[tuple[int, Samples]]:
    with _container(data) as container:
        if not container.streams.audio:
            raise InvalidInput("input", "is a file without an audio stream", "send a recording")
        stream = container.streams.audio[0]
        declared_size.check_index(container, stream)
        heard_s = 0.0
        for frame in _frames(container, stream, data):
            rate = _checked(frame.sample_rate)
            heard_s += frame.samples / rate
            yield rate, _samples(frame)
        declared_s = _declared_s(container, stream, data)
        if heard_s < declared_s - _SLACK_S:
            problem = f"breaks off or has gaps: {heard_s:.1f} of {declared_s:.1f} s can be decoded"
            raise InvalidInput("input", problem, "send the whole file")


@contextmanager
def _container(data: bytes) -> Iterator[Any]:
    import av

    # allow no protocol, so that a file cannot open other files
    options = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "none"}
    try:
        container = av.open(io.BytesIO(data), options=options, metadata_errors="replace")
    except av.FFmpegError as error:
        problem, remedy = "is not an audio file that can be read", "send WAV, FLAC, Ogg, MP3, M4A or WebM"
        if data[4:8] == b"ftyp":
            problem, remedy = "is an MP4 or M4A that breaks off before its index, or has none", "send the whole file"
        raise InvalidInput("input", problem, remedy) from error
    with container:
        yield container


def _frames(container: Any, stream: Any, data: bytes) -> Iterator[AudioFrame]:
    import av

    codec, name = _codec(stream, data), container.format.name
    for packet in container.demux(stream):
        try:
            yield from codec.decode(packet)
        except av.FFmpegError as error:
            if isinstance(error, MemoryError):
                raise
            if name not in _RESYNCHRONISING:
                problem = f"is a broken audio file: a part cannot be decoded ({error.strerror})"
                raise InvalidInput("input", problem, "save it again completely") from error


def _codec(stream: Any, data: bytes) -> Any:
    """Return the decoder of a stream, set right where FFmpeg takes another than the file means."""
    import av
    from av.codec.context import Flags2

    codec = stream.codec_context
    if codec is None:
        raise InvalidInput("input", "is a recording in an unknown codec", "save it as WAV, FLAC or MP3")
    other = _mistaken(codec, data)
    if other is not None:
        raise InvalidInput("input", f"is {other}, which is not read", "save it as PCM")
    if data[:4] == b"caff" and codec.name == "alac":
        codec.flags2 |= Flags2.skip_manual  # the last packet has been shortened already
    if data[:4] == b"RIFX" and codec.name.startswith("pcm_") and codec.name.endswith("le"):
        big_endian: Any = av.CodecContext.create(f"{codec.name[:-2]}be", "r")
        big_endian.sample_rate, big_endian.layout = codec.sample_rate, codec.layout
        return big_endian
    return codec


def _mistaken(codec: Any, data: bytes) -> str | None:
    """Return the name of a codec that FFmpeg takes for another one, and makes noise of."""
    is_wav = data[:4] == b"RIFF"
    if codec.name == "g726" and is_wav and codec.codec_tag[:1] == "@":
        return "a WAV in G.721"
    if codec.name.startswith("g726") and data[:4] == b".snd":
        return "AU in G.721 or G.723"
    bits = data[data.find(b"fmt ") + 22 :][:1]
    return "a WAV in NMS ADPCM" if codec.name == "amrnb" and is_wav and bits in (b"\2", b"\3", b"\4") else None


def _samples(frame: AudioFrame) -> Samples:
    """Return a frame as `(samples, channels)`, full scale 1."""
    values = frame.to_ndarray()
    values = values.T if frame.format.is_planar else values.reshape(-1, frame.layout.nb_channels)
    if values.dtype.kind == "f":
        return values.astype(np.float32)
    full_scale = np.float32(2 ** (8 * values.itemsize - 1))
    return (values.astype(np.float32) - (full_scale if values.dtype.kind == "u" else 0)) / full_scale


def _declared_s(container: Any, stream: Any, data: bytes) -> float:
    """Return the length of a recording by its own account, or 0. FFmpeg's estimates from a bit rate are none."""
    declared_s = float(stream.duration * stream.time_base) if stream.duration else 0.0
    if container.format.name == "mp3":
        rate: int = stream.codec_context.sample_rate
        begins = declared_size.untagged(data)
        found = _MP3_FRAMES.search(data, begins, begins + 2**16)
        frames = int.from_bytes(found[1], "big") if found else 0
        return min(declared_s, frames * (1152 if rate >= 32_000 else 576) / rate)
    return declared_s if container.format.name in _COUNTED else 0.0


def _checked(rate: int) -> int:
    if not _RATES[0] <= rate <= _RATES[1]:
        raise InvalidInput("input", f"has {rate:,} samples a second", f"send {_RATES[0]:,} to {_RATES[1]:,}")
    return rate
