"""Safetensors files that say in their metadata what they are: heads, tables, series, indexes. Read without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import msgspec

from producers.wire.errors import ConfigurationError

T = TypeVar("T")


def read_described(
    path: Path, form: str, decode: Callable[[Mapping[str, str]], T], *, where: str = "", remedy: str = "train it again"
) -> T:
    """Return what `decode` makes of a file's metadata, whose `format` must be `form`. Raises ConfigurationError."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
        if metadata.get("format") != form:
            raise ValueError(f"format {metadata.get('format')!r} is not {form!r}")
        return decode(metadata)
    except (OSError, SafetensorError, ValueError, KeyError, msgspec.DecodeError) as error:
        raise ConfigurationError(f"{where}{path}: {error}; {remedy}") from error
