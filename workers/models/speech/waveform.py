"""An audio file's bytes to mono samples at the rate that a model hears. Whatever is wrong with them is the input's fault.

libsndfile reads WAV, FLAC, Ogg (Vorbis, Opus), MP3, AIFF and the like; what it does not know (M4A, AAC, WebM) goes to FFmpeg's libraries,
if the extra `video` is installed. A file is read block by block: its header may promise less than comes.
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

Samples = NDArray[np.float32]

#: Rates that are read: below there is no speech, above nothing that anybody hears.
_RATES = (1_000, 768_000)

_BLOCK_S = 10

#: What is recorded while it is sent has a header that promises this much, or more, or nothing.
_UNKNOWN_BYTES = 2**31 - 1
_UNKNOWN_SAMPLES = 2**62

#: Containers that are left to FFmpeg, as it calls them. No lists of other files (ffconcat, DASH), which it would open.
_FORMATS = (
    *("aac", "ac3", "aiff", "amr", "ape", "asf", "au", "avi", "caf", "dts", "eac3", "flac", "flv", "loas", "matroska"),
    *("mov", "mp3", "mp4", "mpeg", "mpegts", "ogg", "rm", "tta", "w64", "wav", "webm", "wv"),
)

#: How recordings begin in files where one may follow another: libsndfile reads the first.
_BEGINNINGS = {
    "MP3": re.compile(rb"\xff[\xe2-\xff].{7,34}(?:Xing|Info)", re.DOTALL),
    "Ogg": re.compile(rb"OggS\0[\x02\x06]"),
}

#: So much at an MP3's end may have been a tag that was counted, and taken off.
_TAG_BYTES = 4096

#: Samples beyond this are not sound: full scale is 1, and floating-point files may be somewhat over it.
_LOUDEST = 1e4


def require() -> None:
    """Raise ConfigurationError, with the remedy, unless what decodes audio is installed."""
    missing = [name for name in ("soundfile", "soxr") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigurationError(f"audio files need {missing[0]}; pip install 'argosy[speech]'")


def decode(data: bytes, *, rate: int, max_s: float) -> Samples:
    """Return a recording as mono samples at `rate`, full scale 1, its channels averaged.

    Raises InputTooLarge over `max_s` seconds, InvalidInput if it is not a whole audio file of a known format with samples in it.
    """
    if not data:
        raise InvalidInput("input", "is empty", "send the bytes of an audio file")
    try:
        blocks = list(_resampled(_sound(data), rate, max_s))
    except (InvalidInput, ConfigurationError):
        raise
    except MemoryError:
        raise  # the machine's fault, not the recording's
    except Exception as error:  # malformed bytes lead decoders into errors of every type
        raise InvalidInput("input", f"is a broken audio file: {error}", "save it again, whole") from error
    samples = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
    if not len(samples):
        raise InvalidInput("input", "is an audio file without a single sample", "send a recording")
    return samples


def _resampled(sound: Iterator[tuple[int, Samples]], rate: int, max_s: float) -> Iterator[Samples]:
    """Yield mono blocks at `rate`; each block that comes is `(samples, channels)`, with its rate."""
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
        raise InvalidInput("input", "holds samples that are no sound: NaN, infinite or huge", "save it again, whole")
    return mono


def _sound(data: bytes) -> Iterator[tuple[int, Samples]]:
    """Yield a file's rate and samples, block by block."""
    require()
    import soundfile

    _check_whole(data)
    if problem := _ends_early(data):
        if b"OpusHead" in data[:128]:  # of which FFmpeg reads no more
            raise InvalidInput("input", problem, "send each by itself")
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
    """Raise InvalidInput where a WAV, AIFF or MP3 tells of more bytes than there are; libsndfile takes what is there."""
    orders: dict[bytes, Literal["little", "big"]] = {b"RIFF": "little", b"FORM": "big"}
    if data[:4] in orders:
        promised, slack = int.from_bytes(data[4:8], orders[data[:4]]) + 8, 0
    else:
        promised, slack = _mp3_bytes(data) or 0, _TAG_BYTES
    if len(data) + slack < promised < _UNKNOWN_BYTES:
        raise InvalidInput("input", f"breaks off after {len(data):,} of {promised:,} bytes", "send the whole file")


def _ends_early(data: bytes) -> str:
    """Return why libsndfile would not read a file to its end, if it would not."""
    begins = _mp3_begins(data)
    form = "Ogg" if data[:4] == b"OggS" else "MP3" if begins is not None else ""
    if form and len(_BEGINNINGS[form].findall(data)) > 1:
        return "is several recordings, one behind another"
    if form == "MP3" and _mp3_bytes(data) is None:
        return "is an MP3 that does not say how long it is"  # it is guessed by the first frame's bit rate
    return ""


def _mp3_begins(data: bytes) -> int | None:
    """Return where the first frame of an MP3 is, behind a tag; None if it is no MP3."""
    tagged = data[:3] == b"ID3"  # of each byte of its size, seven bits count
    begins = 10 + sum(byte << 7 * place for place, byte in enumerate(data[9:5:-1])) if tagged else 0
    first = data[begins : begins + 2]
    return begins if len(first) == 2 and first[0] == 0xFF and first[1] & 0xE6 == 0xE2 else None


def _mp3_bytes(data: bytes) -> int | None:
    """Return where an MP3 ends, as its first frame says; 0 if that says how long it is only, None if it says nothing."""
    begins = _mp3_begins(data)
    if begins is None:
        return None
    head = data[begins : begins + 64]
    if b"VBRI" in head:
        return 0
    at = max(head.find(b"Xing"), head.find(b"Info"))
    told = int.from_bytes(head[at + 4 : at + 8], "big") if at >= 0 else 0  # by bits: frames, bytes, and more
    if not told & 1:
        return None
    return begins + int.from_bytes(head[at + 12 : at + 16], "big") if told & 2 else 0


def _checked(rate: int) -> int:
    if not _RATES[0] <= rate <= _RATES[1]:
        raise InvalidInput("input", f"has {rate:,} samples a second", f"send {_RATES[0]:,} to {_RATES[1]:,}")
    return rate


# --- what libsndfile does not know ----------------------------------------------------------------


def _by_ffmpeg(data: bytes, otherwise: str = "is not an audio file that can be read") -> Iterator[tuple[int, Samples]]:
    """As `_sound`; where FFmpeg's libraries are not installed, the file is refused as what it is `otherwise`."""
    known = "WAV, FLAC, Ogg, MP3 or AIFF"
    if importlib.util.find_spec("av") is None:
        remedy = f"send {known}; others need the extra `video` at the worker (pip install 'argosy[video]')"
        raise InvalidInput("input", otherwise, remedy)
    import av

    with _container(data) as container:
        if not container.streams.audio:
            raise InvalidInput("input", "is a file without sound", f"send {known}")
        planes = av.AudioResampler(format="fltp")  # each channel by itself, in floats
        for frame in container.decode(container.streams.audio[0]):
            for part in planes.resample(frame):
                yield _checked(part.sample_rate), np.asarray(part.to_ndarray().T, dtype=np.float32)


@contextmanager
def _container(data: bytes) -> Iterator[Any]:
    import av

    # the bytes are all there is to read
    options = {"format_whitelist": ",".join(_FORMATS), "protocol_whitelist": "none"}
    try:
        container = av.open(io.BytesIO(data), options=options)
    except av.FFmpegError as error:
        remedy = "send WAV, FLAC, Ogg, MP3, M4A or WebM"
        raise InvalidInput("input", "is not an audio file that can be read", remedy) from error
    with container:
        yield container
