"""A model's class by its name in the settings: ``module:Class``, or the name of an entry point that a package has."""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from typing import Any

#: The group of entry points by which an installed package offers its models.
GROUP = "argosy.models"


def find(name: str) -> Any:
    """Return what the settings call ``class``, to be called with a ModelSpec.

    Raises ImportError or AttributeError if it is not to be had.
    """
    module, colon, attribute = name.partition(":")
    if colon:
        return getattr(importlib.import_module(module), attribute)
    offered = entry_points(group=GROUP)
    if name not in offered.names:
        known = ", ".join(sorted(offered.names)) or "none"
        problem = f"{name!r} is neither module:Class nor a model that an installed package offers (these are: {known})"
        raise ImportError(problem)
    return offered[name].load()
