"""Find a model's class by its name in the settings: ``module:Class``, or an entry point of an installed package."""

from __future__ import annotations

import importlib
import warnings
from importlib.metadata import entry_points
from typing import Any

#: The group of entry points by which an installed package offers its models.
GROUP = "argosy.models"

#: Names of the built-in classes before they had short names; accepted for one release.
_OLD_NAMES = {
    "workers.models.detector:DetectorModel": "detector",
    "workers.models.fused:FusedModel": "fused",
    "workers.models.language:LanguageModel": "language",
    "workers.models.series:SeriesModel": "series",
    "workers.models.style:StyleModel": "style",
    "workers.models.tabular:TabularModel": "tabular",
    "workers.models.text:TextModel": "text",
    "workers.models.video.model:VideoModel": "video",
    "workers.models.vision:VisionModel": "vision",
}


def is_built_in(name: object) -> bool:
    """Return whether a class is Argosy's own, by its name in the settings."""
    return isinstance(name, str) and (name in _OLD_NAMES.values() or name.startswith("workers."))


def find(name: str) -> Any:
    """Return the class that `name` refers to; call it with a `ModelSpec`.

    Raises ImportError or AttributeError if the class cannot be imported.
    """
    if name in _OLD_NAMES:
        short = _OLD_NAMES[name]
        warnings.warn(
            f'class = "{name}" is now class = "{short}"; the next release drops the old name',
            FutureWarning,
            stacklevel=2,
        )
        name = short
    module, colon, attribute = name.partition(":")
    if colon:
        return getattr(importlib.import_module(module), attribute)
    offered = entry_points(group=GROUP)
    found = {point.value: point for point in offered if point.name == name}
    if len(found) > 1:
        classes = ", ".join(sorted(found))
        raise ImportError(f"several installed packages offer a model class {name!r}: write one of {classes}")
    for point in found.values():
        return point.load()
    known = ", ".join(sorted(offered.names)) or "none"
    problem = f"{name!r} is neither module:Class nor a model class of an installed package (installed: {known})"
    if name in _OLD_NAMES.values():
        problem += "; a built-in class is missing, so this installation is older than its source: install argosy again"
    raise ImportError(problem)
