"""Numbers among a model's options, which an operator writes: a wrong one is named when the worker starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from producers.errors import ConfigurationError


def whole(options: Mapping[str, Any], name: str, default: int, *, where: str, least: int = 1) -> int:
    """Return an option that counts something. Raises ConfigurationError if it is no whole number of at least `least`."""
    value = options.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigurationError(f"{where}.options.{name}: must be a whole number, {least} or more, not {value!r}")
    return value


def over_zero(options: Mapping[str, Any], name: str, default: float, *, where: str) -> float:
    """Return an option that measures something. Raises ConfigurationError if it is no number over 0."""
    value = options.get(name, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        raise ConfigurationError(f"{where}.options.{name}: must be a number over 0, not {value!r}")
    return float(value)
