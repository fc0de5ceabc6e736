"""Read safetensors files that declare their format in the metadata (heads, tables, series, indexes), without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import msgspec

from producers.wire.errors import ConfigurationError

T = TypeVar("T")


def read_described(
    path: Path,
    form: str | tuple[str, ...],
    decode: Callable[[Mapping[str, str]], T],
    *,
    where: str = "",
    remedy: str = "train it again",
) -> T:
    """Return `decode(metadata)` of a file whose metadata have the `format` `form`, or one of them.

    Raises ConfigurationError.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
        forms = (form,) if isinstance(form, str) else form
        if metadata.get("format") not in forms:
            raise ValueError(f"format {metadata.get('format')!r} is not {forms[0]!r}")
        return decode(metadata)
    except (OSError, SafetensorError, ValueError, KeyError, msgspec.DecodeError) as error:
        raise ConfigurationError(f"{where}{path}: {error}; {remedy}") from error
