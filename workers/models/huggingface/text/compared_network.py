"""The outcome of comparing a backbone on another runtime with its torch weights, kept in the cache for later loads.

These take the network's file alone. They read no weights, and do not import transformers, which takes seconds and most
of the memory of a small model's process.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import msgspec

from producers.wire.atomic_files import atomically

if TYPE_CHECKING:
    import torch

    from workers.models.huggingface.exported import LinearHead

#: The settings of transformers' config that a pass reads; the folder's file may leave them out.
_READ: Final = ("is_encoder_decoder", "eos_token_id", "type_vocab_size")


class ComparedNetwork(msgspec.Struct, frozen=True, kw_only=True):
    """The names of the network's inputs, and the facts that transformers told of the folder.

    `heads` are the tasks whose head is a matrix over an output of the backbone, each with the name of that output.
    `tokenizer` is the file of the tokenizer that gave transformers' tokens; `gives_types`, whether these have types.
    `files` are the network's files in the cache, each with its size and the time of its last change.
    """

    inputs: tuple[str, ...]
    heads: dict[str, str]
    settings: dict[str, Any]
    gives_types: bool
    tokenizer: str
    files: dict[str, tuple[int, int]]

    @property
    def config(self) -> Any:
        """The settings as attributes, like transformers' config; a setting that it lacks is no attribute."""
        return SimpleNamespace(**self.settings)


def settings_of(config: Any) -> dict[str, Any]:
    """Return the settings of transformers' config that a pass reads."""
    return {name: getattr(config, name) for name in _READ if hasattr(config, name)}


def states_of(network: Path) -> dict[str, tuple[int, int]]:
    """Return the files of a network in the cache, whose names begin with its own: sizes, and times in nanoseconds."""
    files = {file.name: file.stat() for file in network.parent.glob(f"{network.name}*")}
    return {name: (state.st_size, state.st_mtime_ns) for name, state in files.items()}


def read(file: Path, tokenizer: Path) -> ComparedNetwork | None:
    """Return a kept outcome, or None if there is none for this file of the tokenizer."""
    with suppress(OSError, msgspec.DecodeError):
        found = msgspec.json.decode(file.read_bytes(), type=ComparedNetwork)
        return found if found.tokenizer == str(tokenizer) else None
    return None


def keep(file: Path, outcome: ComparedNetwork, heads: Mapping[str, LinearHead]) -> bool:
    """Keep an outcome, with its heads' matrices. Return whether that was possible: the cache may be read-only."""
    from safetensors.torch import save

    tensors = {name: one for task, head in heads.items() for name, one in _named(task, head).items()}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomically(_matrices(file)) as part:
            part.write_bytes(save(tensors))
        with atomically(file) as part:
            part.write_bytes(msgspec.json.encode(outcome))
    except (OSError, TypeError):  # TypeError: a setting that is no JSON
        return False
    return True


def heads(file: Path, outcome: ComparedNetwork) -> dict[str, LinearHead]:
    """Return an outcome's heads by task. Raises FileNotFoundError if their file is gone."""
    from safetensors.torch import load

    from workers.models.huggingface.exported import LinearHead

    own = load(_matrices(file).read_bytes())
    return {task: LinearHead(name, own[f"{task}/weight"], own[f"{task}/bias"]) for task, name in outcome.heads.items()}


def _named(task: str, head: LinearHead) -> dict[str, torch.Tensor]:
    return {f"{task}/weight": head.weight.contiguous(), f"{task}/bias": head.bias.contiguous()}


def _matrices(file: Path) -> Path:
    return file.with_name(f"{file.name}.safetensors")
