"""Safetensors files that declare their format in the metadata (heads, tables, series, indexes), read without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from producers.wire.errors import ConfigurationError

if TYPE_CHECKING:
    import torch

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


def write_described(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors with the metadata that `read_described` reads."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, dict(metadata))
    path.chmod(0o644)  # safetensors lets only the owner read it, and a worker may run as another user
