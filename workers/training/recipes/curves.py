"""The curves of a training as a picture: each task's loss by step, and its score by evaluation."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from workers.training.loop.trainer import LogLine

FILE = "curves.png"

logger = logging.getLogger(__name__)

#: The share of the older steps in the smoothed losses.
_SMOOTHING = 0.9


def draw(out: Path, log: Sequence[LogLine], metrics: Mapping[str, str]) -> None:
    """Write `curves.png`, if matplotlib is there; `log.jsonl` has the same numbers."""
    if find_spec("matplotlib") is None:
        logger.warning("%s: no %s, because matplotlib is missing; pip install 'argosy[train]'", out, FILE)
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, (task, metric) in enumerate(metrics.items()):
        losses = [(line.step, loss) for line in log if (loss := line.losses[number]) is not None]
        left.plot([step for step, _ in losses], _smooth([loss for _, loss in losses]), label=task)
        scores = [(line.step, line.accuracies[number]) for line in log if line.accuracies is not None]
        right.plot(*zip(*scores, strict=True), marker=".", label=f"{task}: {metric}")
    left.set(title="loss of the training rows, smoothed", xlabel="step")
    right.set(title="validation part", xlabel="step")
    left.legend()
    right.legend()
    figure.savefig(out / FILE, dpi=120)


def _smooth(values: Sequence[float]) -> list[float]:
    found: list[float] = []
    for value in values:
        found.append(value if not found else _SMOOTHING * found[-1] + (1 - _SMOOTHING) * value)
    return found
