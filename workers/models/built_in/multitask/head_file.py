"""A head: a small network from the text encoder's features to the scores of a task, in one safetensors file.

The file's metadata hold the labels and the kind, so that the parent process reads them without torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from producers.wire.errors import ConfigurationError
from workers.models.built_in.described_file import read_described, write_described

if TYPE_CHECKING:
    import torch

FILE = "head.safetensors"

_FORMAT = "argosy-head/1"


def read_metadata(path: Path) -> dict[str, str]:
    """Return a head file's metadata: `format`, `kind`, and `labels` as a JSON list. Raises ConfigurationError."""
    return read_described(path, _FORMAT, dict)


def read_labels(path: Path) -> tuple[str, ...]:
    """Return a head's labels in the order of its scores."""
    return tuple(json.loads(read_metadata(path)["labels"]))


def digest(files: Iterable[Path]) -> str:
    """Return a digest of head files, for a model's revision: heads decide its answers too."""
    found = hashlib.blake2b(digest_size=6)
    for path in files:
        found.update(path.read_bytes())
    return found.hexdigest()


def load(path: Path) -> torch.nn.Module:
    """Return a head as a module that maps features to scores `(rows, labels)`."""
    from safetensors.torch import load_file

    from workers.models.built_in.multitask.head_modules import MODULES

    kind = read_metadata(path)["kind"]
    if kind not in MODULES:
        raise ConfigurationError(f"{path}: no head of kind {kind!r}; known: {', '.join(MODULES)}")
    tensors = load_file(path)
    module = MODULES[kind].of_shape(tensors)
    module.load_state_dict(tensors)
    return module


def save(module: torch.nn.Module, path: Path, *, kind: str, labels: tuple[str, ...], **about: Any) -> None:
    """Write a head with its labels; `about` adds further metadata."""
    save_tensors(module.state_dict(), path, kind=kind, labels=labels, **about)


def save_tensors(
    tensors: Mapping[str, torch.Tensor], path: Path, *, kind: str, labels: tuple[str, ...], **about: Any
) -> None:
    """Write a head given as tensors instead of a module."""
    metadata = {"format": _FORMAT, "kind": kind, "labels": json.dumps(labels)}
    write_described(path, tensors, metadata | {name: str(value) for name, value in about.items()})
