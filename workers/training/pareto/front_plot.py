"""The measured points as a picture: accuracy over items/s, over the time of a pass, and over memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from workers.training.pareto.tuned_point import TunedPoint

FILE = "tuned.png"

logger = logging.getLogger(__name__)

_AXES: Sequence[tuple[str, Callable[[TunedPoint], float]]] = (
    ("items/s", lambda point: point.items_per_s),
    ("ms of a pass", lambda point: point.latency_ms),
    ("MB of memory", lambda point: point.memory_mb),
)


def draw(
    out: Path, points: Sequence[TunedPoint], front: Sequence[TunedPoint], chosen: TunedPoint, *, model: str
) -> None:
    """Write `tuned.png`, if matplotlib is there; `tuned.json` has the same numbers. Points of the front are filled."""
    if find_spec("matplotlib") is None:
        logger.warning("%s: no %s, because matplotlib is missing; pip install 'argosy[train]'", out, FILE)
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.5), layout="constrained")
    figure.suptitle(f"{model}: filled points are beaten by none, the star is chosen")
    running = [point for point in points if not point.refused]
    for place, (axes, (label, of)) in enumerate(zip(figure.subplots(1, len(_AXES), sharey=True), _AXES, strict=True)):
        for number, variant in enumerate(dict.fromkeys(point.variant for point in running)):
            own = [point for point in running if point.variant == variant]
            for some, filled in (([p for p in own if p in front], True), ([p for p in own if p not in front], False)):
                axes.scatter(
                    [of(point) for point in some],
                    [100 * point.mean_accuracy for point in some],
                    color=f"C{number}" if filled else "none",
                    edgecolors=f"C{number}",
                    label=variant if some and filled == any(p in front for p in own) else None,
                )
        axes.scatter([of(chosen)], [100 * chosen.mean_accuracy], marker="*", s=200, color="none", edgecolors="black")
        axes.set(xlabel=label, xscale="log" if place < 2 else "linear")
        axes.grid(alpha=0.3)
        if not place:
            axes.set(ylabel="accuracy, %, mean of the tasks")
            axes.legend()
    figure.savefig(out / FILE, dpi=120)
