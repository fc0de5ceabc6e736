"""The inputs of each kind: usual ones and odd ones, of many lengths and shapes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from workers.models.interface import sample_inputs

RATE = 16_000

_ODD = (
    "one",
    "  Ça va?  naïve café, Привет, 東京 \U0001f600 ",
    "a </s> and </s> more [SEP] <mask> and <|endoftext|> of it",
    "<b>bold</b>\n\ttabs\r\nand lines",
    "THE SAME THE SAME THE SAME 3.14159 1,000,000",
)


def of(kind: str, folder: Path, count: int) -> list[Any]:
    """Return about `count` inputs of a kind, as references get them: texts, images, samples, bytes of videos."""
    if kind == "fill-mask":
        mask = _mask(folder)
        return [_masked(text, mask) for text in _texts(count)]
    if kind == "question-answering":
        return [{"question": "Which value is returned?", "context": text} for text in _texts(count) if len(text) > 20]
    if kind == "text-generation":
        return [text[:200] for text in _texts(count) if len(text) > 3]
    media = {"image": _images, "object": _images, "video": _videos, "automatic": _sounds, "audio": _sounds}
    of_media = media.get(kind.partition("-")[0])
    return list(of_media()[:count] if of_media else _texts(count))


@cache
def _texts(count: int) -> Sequence[str]:
    odd = _ODD[: max(2, count // 3)]
    return (*odd, *(text.strip() for text in sample_inputs.texts(count - len(odd), seed=9)))


def _mask(folder: Path) -> str:
    from transformers import AutoTokenizer

    return str(AutoTokenizer.from_pretrained(folder).mask_token)


def _masked(text: str, mask: str) -> str:
    words = text.replace("<mask>", "").split()
    words.insert(len(words) // 2, mask)
    return " ".join(words)


@cache
def _images() -> Sequence[Image.Image]:
    """Return images upright and lying, one of a pixel, two of one shape; grey and with a palette among them."""
    shapes = [(50, 40), (90, 40), (40, 50), (1, 1), (50, 40), (64, 64), (200, 120), (33, 71)]
    random = np.random.default_rng(4)
    found = []
    for width, height in shapes:
        spots = Image.fromarray(random.integers(0, 255, (6, 8, 3), dtype=np.uint8))
        found.append(spots.resize((width, height), Image.Resampling.BICUBIC))
    return (*found[:5], found[5].convert("L").convert("RGB"), *found[6:])


@cache
def _videos() -> Sequence[bytes]:
    from tests import videos

    return tuple(
        videos.file(videos.moving(count, width, height, seed))
        for seed, (count, width, height) in enumerate(((8, 64, 48), (20, 48, 64), (9, 40, 40), (30, 64, 48)))
    )


@cache
def _sounds() -> Sequence[NDArray[np.float32]]:
    """Return hums with hiss; two of one length, one as long as the window of a tiny Whisper."""
    found = []
    for seed, seconds in enumerate((0.5, 1.3, 0.5, 2.0, 0.9, 1.7)):
        random, at = np.random.default_rng(seed), np.arange(int(seconds * RATE)) / RATE
        pitches = random.uniform(100, 3000, 4)
        hum = sum(0.1 * np.sin(2 * np.pi * pitch * at * (1 + 0.1 * np.sin(3 * at))) for pitch in pitches)
        found.append(np.asarray(hum + random.normal(size=len(at)) * 0.01, dtype=np.float32))
    return found


def sent(value: Any) -> Any:
    """Return an input as a client sends it."""
    if isinstance(value, Image.Image):
        made = io.BytesIO()
        value.save(made, "PNG")
        return made.getvalue()
    if isinstance(value, np.ndarray):
        import soundfile

        made = io.BytesIO()
        soundfile.write(made, value, RATE, format="WAV", subtype="FLOAT")
        return made.getvalue()
    return value
