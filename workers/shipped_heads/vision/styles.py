"""The pictures of the built-in styles: drawn here, by numbers, so that nobody else owns them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from workers.training.data import SEED

SIDE = 384

_WARM = ((196, 62, 40), (232, 150, 52), (246, 218, 140), (44, 84, 120), (110, 164, 160), (244, 238, 220), (120, 36, 60))
_COOL = ((18, 38, 92), (36, 84, 160), (90, 150, 206), (240, 206, 90), (250, 240, 200), (20, 60, 80), (160, 196, 214))

Picture = NDArray[np.uint8]


def mosaic() -> Picture:
    """Tiles of glass, lighter in the middle, with dark mortar between them."""
    random = np.random.default_rng(SEED)
    steps = np.linspace(0, SIDE, 17)[:-1]
    centres = np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2) + random.uniform(2, 22, (256, 2))
    down, right = np.mgrid[0:SIDE, 0:SIDE]
    away = np.hypot(right[..., None] - centres[:, 0], down[..., None] - centres[:, 1])
    nearest = np.sort(away, axis=-1)[..., :2]
    tile = away.argmin(-1)
    patches = np.sin(centres[:, 0] / 61) + np.cos(centres[:, 1] / 47) + random.normal(0, 0.5, len(centres))
    colours = np.array(_WARM, dtype=np.float64)[np.digitize(patches, np.quantile(patches, np.arange(1, 7) / 7))]
    colours = colours + random.normal(0, 14, colours.shape)
    shade = 1.12 - nearest[..., 0] / 60
    mortar = ((nearest[..., 1] - nearest[..., 0]) < 3.2)[..., None]
    return np.where(mortar, (34, 30, 28), colours[tile] * shade[..., None]).clip(0, 255).astype(np.uint8)


def brush() -> Picture:
    """Broad strokes of paint that follow swirls."""
    random = np.random.default_rng(SEED + 1)
    image = Image.new("RGB", (SIDE, SIDE), _COOL[1])
    draw = ImageDraw.Draw(image)
    for _ in range(5200):
        x, y = random.uniform(-10, SIDE + 10, 2)
        turn = 2.2 * np.sin(x / 58) + 2.0 * np.cos(y / 52) + random.normal(0, 0.12)
        tone = int((np.sin(x / 70 + y / 91) + np.cos(y / 63) + random.normal(0, 0.45) + 2.4) * 1.5)
        colour = np.array(_COOL[min(max(tone, 0), 6)]) + random.normal(0, 12, 3)
        fill = tuple(int(value) for value in colour.clip(0, 255))
        for side in range(-2, 3):  # the bristles
            dx, dy = 13 * np.cos(turn), 13 * np.sin(turn)
            ox, oy = -side * np.sin(turn), side * np.cos(turn)
            tint = tuple(min(max(value + 9 * side, 0), 255) for value in fill)
            draw.line((x - dx + ox, y - dy + oy, x + dx + ox, y + dy + oy), fill=tint, width=2)
    return np.asarray(image.filter(ImageFilter.GaussianBlur(0.6)), dtype=np.uint8)


def pencil() -> Picture:
    """Hatching on paper, in three directions, denser where it is darker."""
    random = np.random.default_rng(SEED + 2)
    image = Image.new("L", (SIDE, SIDE), 242)
    draw = ImageDraw.Draw(image)
    for turn, darkest in ((0.8, 0.9), (2.3, 0.55), (1.5, 0.3)):
        for _ in range(2600):
            x, y = random.uniform(-10, SIDE + 10, 2)
            light = 0.5 + 0.5 * np.sin(x / 46 + 1.5) * np.cos(y / 57)
            if light > darkest:
                continue
            along = turn + random.normal(0, 0.06)
            length = random.uniform(10, 22)
            dx, dy = length * np.cos(along), length * np.sin(along)
            draw.line((x - dx, y - dy, x + dx, y + dy), fill=int(random.uniform(40, 110)), width=1)
    return np.asarray(image.filter(ImageFilter.GaussianBlur(0.4)).convert("RGB"), dtype=np.uint8)


STYLES: Mapping[str, Callable[[], Picture]] = {"brush": brush, "mosaic": mosaic, "pencil": pencil}
