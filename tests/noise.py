"""A picture of noise: the same one at each run, so that what a model makes of it is too."""

from __future__ import annotations

import numpy as np
from PIL import Image


def noise(width: int, height: int, spread: float) -> Image.Image:
    """Return grey noise as RGB, `spread` levels (one standard deviation) around the middle."""
    levels = np.random.default_rng(0).normal(128, spread, (height, width)).clip(0, 255)
    return Image.fromarray(levels.astype(np.uint8)).convert("RGB")
