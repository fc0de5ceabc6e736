"""Small sounds in the formats that people have, and files damaged at random."""

from __future__ import annotations

import io
import random
from functools import cache
from typing import Any

import av
import numpy as np
import soundfile
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from tests import videos

RATE = 16_000


def tones(length_s: float = 1.0, rate: int = RATE) -> NDArray[np.float32]:
    """Return two tones, which every codec keeps."""
    at = np.arange(int(length_s * rate), dtype=np.float64) / rate
    return np.asarray(0.3 * np.sin(2 * np.pi * 440 * at) + 0.2 * np.sin(2 * np.pi * 1200 * at), dtype=np.float32)


def by_libsndfile(
    samples: Any, form: str = "WAV", subtype: str | None = "PCM_16", rate: int = RATE, endian: str | None = None
) -> bytes:
    made = io.BytesIO()
    soundfile.write(made, samples, rate, format=form, subtype=subtype, endian=endian)
    return made.getvalue()


def by_ffmpeg(
    form: str,
    codec: str,
    samples: NDArray[np.float32] | None = None,
    *,
    rate: int = RATE,
    piped: bool = False,
    options: dict[str, str] | None = None,
) -> bytes:
    """Return a mono sound as FFmpeg writes it into a file, or into a pipe."""
    samples = tones(rate=rate) if samples is None else samples
    made: Any = videos.Pipe() if piped else io.BytesIO()
    with av.open(made, "w", format=form, options=options or {}) as container:
        stream: Any = container.add_stream(codec, rate=rate, options={"strict": "experimental"})
        stream.layout = "mono"
        stream.codec_context.open()
        frame = av.AudioFrame.from_ndarray((samples[None] * 32767).astype(np.int16), format="s16", layout="mono")
        frame.sample_rate = rate
        size = stream.codec_context.frame_size or 1024
        parts = av.AudioResampler(stream.codec_context.format.name, "mono", rate, size)
        heard = 0
        for part in (*parts.resample(frame), *parts.resample(None)):
            part.pts, heard = heard, heard + part.samples
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return bytes(made.content) if piped else made.getvalue()


@cache
def sounds() -> dict[str, bytes]:
    """Return half a second in each format."""
    half = tones(0.5)
    made = {
        f"{form} {subtype}": by_libsndfile(half, form, subtype)
        for form, subtype in (
            *(("WAV", name) for name in ("PCM_16", "PCM_U8", "PCM_24", "FLOAT", "ULAW", "IMA_ADPCM", "GSM610")),
            *((name, "PCM_16") for name in ("WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "FLAC")),
            *(("CAF", "ALAC_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None)),
        )
    }
    for form, codec in (
        *(
            ("wav", "libmp3lame"),
            ("ogg", "flac"),
            ("ipod", "aac"),
            ("mov", "alac"),
            ("adts", "aac"),
            ("mp3", "libmp3lame"),
        ),
        *(("matroska", "libopus"), ("webm", "libopus"), ("avi", "pcm_s16le"), ("mpegts", "aac"), ("flv", "aac")),
        *(("wv", "wavpack"), ("tta", "tta"), ("matroska", "pcm_s16le")),
    ):
        made[f"{form} {codec}"] = by_ffmpeg(form, codec, half)
    made["fragments aac"] = by_ffmpeg("mp4", "aac", half, options={"movflags": "frag_keyframe+empty_moov"})
    made["ac3"] = by_ffmpeg("ac3", "ac3", tones(0.5, 48_000), rate=48_000)
    return made


@cache
def clips() -> dict[str, bytes]:
    """Return twelve frames in each format."""
    moving = videos.moving(12)
    return {
        f"{form} {codec}": videos.file(moving, form, codec, gop=4)
        for form, codec in (
            *(
                ("mp4", "libx264"),
                ("matroska", "libx264"),
                ("webm", "libvpx-vp9"),
                ("avi", "mpeg4"),
                ("flv", "libx264"),
            ),
            *(("mpegts", "mpeg2video"), ("asf", "mpeg4"), ("apng", "apng"), ("gif", "gif")),
        )
    }


@cache
def pictures() -> dict[str, bytes]:
    """Return a picture in each format and several modes."""
    values = np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    picture = Image.fromarray(np.kron(values, np.ones((8, 8, 1), np.uint8)))
    text = PngImagePlugin.PngInfo()
    text.add_text("workflow", "{}" * 1000, zip=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds: list[tuple[str, str, dict[str, Any]]] = [
        *((mode, "PNG", {}) for mode in ("RGB", "P", "L", "1", "LA", "RGBA")),
        ("RGB", "PNG", {"pnginfo": text, "exif": exif}),
        *(("RGB", "JPEG", {"exif": exif}), ("RGB", "JPEG", {"progressive": True}), ("CMYK", "JPEG", {})),
        *(("P", "GIF", {}), ("RGB", "WEBP", {"lossless": True}), ("RGB", "BMP", {}), ("RGB", "TIFF", {})),
        *((mode, "TIFF", {"compression": "tiff_lzw"}) for mode in ("RGB", "CMYK", "L")),
    ]
    made = {}
    for mode, form, options in kinds:
        file = io.BytesIO()
        picture.convert(mode).save(file, form, **options)
        made[" ".join((mode, form, *options))] = file.getvalue()
    return made


_FIELDS = tuple(
    value.to_bytes(4, order)
    for value in (0, 1, 44, 0x7FFFF000, 2_000_000_000, 2**31, 2**32 - 1)
    for order in ("little", "big")
)


def damaged(data: bytes, draw: random.Random) -> bytes:
    """Return a file with some bytes of its header, its index or its end other than they were, or away."""
    made = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        head = draw.randrange(min(len(made), draw.choice((64, 512))))
        at = draw.choice((head, head, head, len(made) - 1 - head, draw.randrange(len(made))))
        match draw.randrange(6):
            case 0 | 1:
                made[at] = draw.randrange(256)
            case 2:
                made[at : at + 4] = draw.choice(_FIELDS)
            case 3:
                made[at] ^= 1 << draw.randrange(8)
            case 4:
                del made[draw.randrange(len(made)) :]
            case 5:
                made[at : at + draw.randrange(3)] = draw.randbytes(draw.randrange(3))
        if not made:
            break
    return bytes(made)
