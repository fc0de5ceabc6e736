"""Decode audio files to mono samples at a model's sample rate. Every decoding error is an InvalidInput.

libsndfile reads WAV, FLAC, Ogg (Vorbis, Opus), MP3, AIFF and similar formats. FFmpeg's libraries read the rest (M4A,
AAC, WebM) if the extra `video` is installed. A file is read in blocks, because its header may understate its length.
"""

from __future__ import annotations

import importlib.util
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from producers.wire.errors import ConfigurationError, InputTooLarge, InvalidInput
from workers.models.decoding import isolation

Samples = NDArray[np.float32]

#: The accepted sample rates in Hz.
_RATES = (1_000, 768_000)

_BLOCK_S = 10

#: The header of a stream of unknown length declares this size, a larger size or none.
_UNKNOWN_BYTES = 2**31 - 1
_UNKNOWN_SAMPLES = 2**62

#: Containers for FFmpeg, by its names. Without playlists (ffconcat, DASH), which would open other files.
_FORMATS = (
    *("aac", "ac3", "aiff", "amr", "ape", "asf", "au", "avi", "caf", "dts", "eac3", "flac", "flv", "loas", "matroska"),
    *("mov", "mp3", "mp4", "mpeg", "mpegts", "ogg", "rm", "tta", "w64", "wav", "webm", "wv"),
)

#: Patterns of a recording's start in formats that allow concatenation. libsndfile reads only the first recording.
_BEGINNINGS = {
    "MP3": re.compile(rb"\xff[\xe2-\xff].{7,34}(?:Xing|Info)", re.DOTALL),
    "Ogg": re.compile(rb"OggS\0[\x02\x06]"),
}

#: An MP3's declared size may include a tag of up to this size that was removed from its end.
_TAG_BYTES = 4096

#: Larger samples are not sound. Full scale is 1, and floating-point files may exceed it somewhat.
_LOUDEST = 1e4


def require() -> None:
    """Raise ConfigurationError, with the remedy, if the audio libraries are not installed."""
    missing = [name for name in ("soundfile", "soxr") if importlib.util.find_spec(name) is None]
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
        raise InvalidInput("input", f"is a broken audio file: {error}", "save it again completely") from error
    samples = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
    if not len(samples):
        raise InvalidInput("input", "is an audio file without samples", "send a recording")
    return samples


def _resampled(sound: Iterator[tuple[int, Samples]], rate: int, max_s: float) -> Iterator[Samples]:
    """Yield mono blocks at `rate` from pairs of a sample rate and a block `(samples, channels)`."""
    import soxr

    stream, length_s = None, 0.0
    for own_rate, block in sound:
        length_s += len(block) / own_rate
        if length_s > max_s:
            problem = f"is a recording of over {max_s:,.0f} s"
            raise InputTooLarge("input", problem, "split it, or set the model's option max_audio_s")
        mono = _mono(block)
        if own_rate != rate:
            stream = stream or soxr.ResampleStream(own_rate, rate, 1, dtype="float32")
            mono = stream.resample_chunk(mono)
        yield mono
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
    import soundfile

    _check_whole(data)
    if problem := _ends_early(data):
        if b"OpusHead" in data[:128]:  # FFmpeg also reads only the first Opus recording
            raise InvalidInput("input", problem, "send each recording separately")
        yield from _by_ffmpeg(data, problem)
        return
    try:
        opened = soundfile.SoundFile(io.BytesIO(data))
    except soundfile.LibsndfileError:
        yield from _by_ffmpeg(data)
        return
    with opened as file:
        rate = _checked(file.samplerate)
        while len(block := file.read(rate * _BLOCK_S, dtype="float32", always_2d=True)):
            yield rate, block
        promised, found = file.frames, file.tell()
        if 0 < found < promised < _UNKNOWN_SAMPLES:
            raise InvalidInput("input", f"breaks off after {found / rate:.1f} s", "send the whole file")


def _check_whole(data: bytes) -> None:
    """Raise InvalidInput if a WAV, AIFF or MP3 declares more bytes than it has, which libsndfile would ignore."""
    orders: dict[bytes, Literal["little", "big"]] = {b"RIFF": "little", b"FORM": "big"}
    if data[:4] in orders:
        promised, slack = int.from_bytes(data[4:8], orders[data[:4]]) + 8, 0
    else:
        promised, slack = _mp3_bytes(data) or 0, _TAG_BYTES
    if len(data) + slack < promised < _UNKNOWN_BYTES:
        raise InvalidInput("input", f"breaks off after {len(data):,} of {promised:,} bytes", "send the whole file")


def _ends_early(data: bytes) -> str:
    """Return the reason that libsndfile would not read the file to its end, or an empty string."""
    begins = _mp3_begins(data)
    form = "Ogg" if data[:4] == b"OggS" else "MP3" if begins is not None else ""
    if form and len(_BEGINNINGS[form].findall(data)) > 1:
        return "has several recordings, one after another"
    if form == "MP3" and _mp3_bytes(data) is None:
        # libsndfile guesses its length from the first frame's bit rate
        return "is an MP3 that does not declare its length"
    return ""


def _mp3_begins(data: bytes) -> int | None:
    """Return the offset of an MP3's first frame after a tag, or None if the file is not an MP3."""
    tagged = data[:3] == b"ID3"  # each byte of the size has seven bits
    begins = 10 + sum(byte << 7 * place for place, byte in enumerate(data[9:5:-1])) if tagged else 0
    first = data[begins : begins + 2]
    return begins if len(first) == 2 and first[0] == 0xFF and first[1] & 0xE6 == 0xE2 else None


def _mp3_bytes(data: bytes) -> int | None:
    """Return the end of an MP3 by its first frame; 0 if it declares only a duration, None if it declares neither."""
    begins = _mp3_begins(data)
    if begins is None:
        return None
    head = data[begins : begins + 64]
    if b"VBRI" in head:
        return 0
    at = max(head.find(b"Xing"), head.find(b"Info"))
    told = int.from_bytes(head[at + 4 : at + 8], "big") if at >= 0 else 0  # flags: 1 for frames, 2 for bytes
    if not told & 1:
        return None
    return begins + int.from_bytes(head[at + 12 : at + 16], "big") if told & 2 else 0


def _checked(rate: int) -> int:
    if not _RATES[0] <= rate <= _RATES[1]:
        raise InvalidInput("input", f"has {rate:,} samples a second", f"send {_RATES[0]:,} to {_RATES[1]:,}")
    return rate


# --- formats that libsndfile does not read --------------------------------------------------------


def _by_ffmpeg(data: bytes, otherwise: str = "is not an audio file that can be read") -> Iterator[tuple[int, Samples]]:
    """Decode like `_sound`. Without FFmpeg's libraries, raise InvalidInput with the problem `otherwise`."""
    known = "WAV, FLAC, Ogg, MP3 or AIFF"
    if importlib.util.find_spec("av") is None:
        remedy = f"send {known}; other formats need the extra `video` at the worker (pip install 'argosy[video]')"
        raise InvalidInput("input", otherwise, remedy)
    import av

    with _container(data) as container:
        if not container.streams.audio:
            raise InvalidInput("input", "is a file without an audio stream", f"send {known}")
        planes = av.AudioResampler(format="fltp")  # planar: a row of floats for each channel
        for frame in container.decode(container.streams.audio[0]):
            for part in planes.resample(frame):
                yield _checked(part.sample_rate), np.asarray(part.to_ndarray().T, dtype=np.float32)


@contextmanager
def _container(data: bytes) -> Iterator[Any]:
    import av

    # allow no protocol, so that a file cannot open other files
    options = {"format_whitelist": ",".join(_FORMATS), "protocol_whitelist": "none"}
    try:
        container = av.open(io.BytesIO(data), options=options)
    except av.FFmpegError as error:
        remedy = "send WAV, FLAC, Ogg, MP3, M4A or WebM"
        raise InvalidInput("input", "is not an audio file that can be read", remedy) from error
    with container:
        yield container
