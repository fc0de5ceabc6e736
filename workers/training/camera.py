"""Clips with a known camera motion: a virtual camera moves over photographs, or over frames of real clips.

Every clip has the disturbances that a classifier could otherwise use as a shortcut: a trembling hand, objects that
cross the picture, changing light, noise, and JPEG blocks. `still` has all of these too.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

LABELS = (
    "cut", "pan-left", "pan-right", "roll-left", "roll-right", "still", "tilt-down", "tilt-up", "zoom-in", "zoom-out",
)  # fmt: skip

Pixels = NDArray[np.uint8]
Values = NDArray[np.float64]

#: The camera's slowest and fastest motion between two frames, in widths of its view.
_SPEEDS = (0.008, 0.08)
_ZOOMS = (1.15, 2.5)
_TURNS = (12.0, 90.0)


@dataclass(frozen=True, slots=True)
class Scene:
    """A photograph (one frame), or the frames of a real clip with a still camera."""

    name: str
    frames: tuple[Image.Image, ...]


@dataclass(frozen=True, slots=True)
class View:
    """The camera's view at one time: its middle, its side in pixels of the scene, and its angle in degrees."""

    x: float
    y: float
    side: float
    angle: float = 0.0


def clip(label: str, scenes: Sequence[Scene], count: int, side: int, random: np.random.Generator) -> Pixels:
    """Return a clip with this motion, made of random scenes: `(count, side, side, 3)`."""
    if label == "cut":
        when = int(random.integers(2, count - 1))
        motions = [str(random.choice(("still", "still", *LABELS[1:]))) for _ in range(2)]
        # two views of one photograph may overlap, which would be no cut
        chosen = random.choice(len(scenes), 2, replace=False)
        parts = [
            _shot(motion, scenes[place], count, side, random) for motion, place in zip(motions, chosen, strict=True)
        ]
        frames = [*parts[0][:when], *parts[1][when:]]
    else:
        frames = _shot(label, scenes[int(random.integers(len(scenes)))], count, side, random)
    if random.random() < 0.35:
        frames = _crossed(frames, scenes[int(random.integers(len(scenes)))].frames[0], random)
    return _worn(frames, random)


def _shot(label: str, scene: Scene, count: int, side: int, random: np.random.Generator) -> list[Image.Image]:
    whole = scene.frames[0]
    views = _trembling(_path(label, whole.width, whole.height, count, random), random)
    start = int(random.integers(0, max(1, len(scene.frames) - count)))
    return [
        _seen(scene.frames[min(start + number, len(scene.frames) - 1)], view, side) for number, view in enumerate(views)
    ]


def _path(label: str, width: int, height: int, count: int, random: np.random.Generator) -> list[View]:
    """Return the views along a motion. It begins and ends slowly or not, and stays within the picture."""
    short = min(width, height)
    progress = np.linspace(0, 1, count) ** random.uniform(0.8, 1.25)
    kind = label.partition("-")[0]
    if kind in ("pan", "tilt"):
        return _straight(label, width, height, progress, random)
    if kind == "roll":
        side = random.uniform(0.4, 0.65) * short
        turned = math.exp(random.uniform(*np.log(_TURNS))) * (-1 if label == "roll-left" else 1)
        first = random.uniform(-10, 10)
        x, y = (_within(edge, side * math.sqrt(2), random) for edge in (width, height))
        return [View(x, y, side, first + turned * one) for one in progress]
    side, ratio = random.uniform(0.35, 0.7) * short, 1.0
    if kind == "zoom":
        ratio = math.exp(random.uniform(*np.log(_ZOOMS)))
        side = random.uniform(0.3, 0.95 / ratio) * short if ratio > 1.4 else random.uniform(0.3, 0.6) * short
    largest = side * ratio
    x, y = (_within(edge, largest, random) for edge in (width, height))
    nearing = 1 - progress if label == "zoom-in" else progress
    return [View(x, y, side * ratio ** float(one)) for one in nearing]


def _straight(label: str, width: int, height: int, progress: Values, random: np.random.Generator) -> list[View]:
    along, across = (width, height) if label.startswith("pan") else (height, width)
    side = random.uniform(0.3, 0.6) * min(width, height)
    speed = math.exp(random.uniform(*np.log(_SPEEDS)))
    far = min(speed * side * (len(progress) - 1), along - side * 1.05)
    aside = random.uniform(-0.1, 0.1) * far
    first = random.uniform(side / 2, along - side / 2 - far)
    second = random.uniform(side / 2 + abs(aside), across - side / 2 - abs(aside))
    closer = random.uniform(-0.03, 0.03)
    forward = label in ("pan-right", "tilt-down")
    found = []
    for one in progress:
        main = first + far * (float(one) if forward else 1 - float(one))
        other = second + aside * float(one)
        x, y = (main, other) if label.startswith("pan") else (other, main)
        found.append(View(x, y, side * (1 + closer * float(one))))
    return found


def _within(edge: int, side: float, random: np.random.Generator) -> float:
    half = min(side, edge) / 2
    return float(random.uniform(half, edge - half))


def _trembling(views: Sequence[View], random: np.random.Generator) -> list[View]:
    if random.random() < 0.5:
        return list(views)
    strength = random.uniform(0.0005, 0.004)
    moved = random.normal(0, strength, (len(views), 3))
    return [
        View(view.x + x * view.side, view.y + y * view.side, view.side, view.angle + 60 * turn)
        for view, (x, y, turn) in zip(views, moved.tolist(), strict=True)
    ]


def _seen(picture: Image.Image, view: View, side: int) -> Image.Image:
    """Return the camera's picture: each of its pixels, turned and moved, looked up in the scene."""
    scale = view.side / side
    cosine, sine = (scale * part(math.radians(view.angle)) for part in (math.cos, math.sin))
    x = view.x - (cosine - sine) * side / 2
    y = view.y - (sine + cosine) * side / 2
    matrix = (cosine, -sine, x, sine, cosine, y)
    return picture.transform((side, side), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


def _crossed(frames: Sequence[Image.Image], other: Image.Image, random: np.random.Generator) -> list[Image.Image]:
    """Let an object cross the picture, beside any motion of the camera."""
    side = frames[0].width
    size = int(random.uniform(0.15, 0.4) * side)
    thing = other.resize((size, size), box=(0, 0, min(other.size) / 2, min(other.size) / 2))
    start, end = random.uniform(-size, side, (2, 2))
    found = []
    for number, frame in enumerate(frames):
        at = start + (end - start) * number / (len(frames) - 1)
        changed = frame.copy()
        changed.paste(thing, (int(at[0]), int(at[1])))
        found.append(changed)
    return found


def _worn(frames: Sequence[Image.Image], random: np.random.Generator) -> Pixels:
    """Change the light, and add noise and JPEG blocks."""
    first, last = random.uniform(0.75, 1.25, 2).tolist() if random.random() < 0.3 else (1.0, 1.0)
    light = np.linspace(first, last, len(frames))
    noise = random.uniform(1, 7) if random.random() < 0.4 else 0.0
    quality = int(random.integers(30, 85)) if random.random() < 0.4 else None
    found = []
    for frame, gain in zip(frames, light.tolist(), strict=True):
        values = np.asarray(_packed(frame, quality), dtype=np.float32) * gain
        if noise:
            values = values + random.normal(0, noise, values.shape)
        found.append(np.clip(values, 0, 255).astype(np.uint8))
    return np.stack(found)


def _packed(frame: Image.Image, quality: int | None) -> Any:
    if quality is None:
        return frame
    made = io.BytesIO()
    frame.save(made, "JPEG", quality=quality)
    return Image.open(made)
