"""The kind of a task: the common part of all tasks of a Hugging Face pipeline name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from producers.wire.forms import Modality


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind by its Hugging Face pipeline name: the form of its input, its parameters and its output.

    `makes_files`: the output refers to files (``producers.wire.result_files``). `strict`: the answer of a user's own
    class must have the form `output`; for kinds that are older than this check, another form is only logged.
    `in_columns`: so many items, which are texts, may be in an envelope and computed as a block; 0: none may
    (docs/decisions/0054-result-chunks.md).
    """

    name: str
    modality: Modality
    params: type[msgspec.Struct]
    output: Any
    summary: str
    makes_files: bool = False
    strict: bool = False
    in_columns: int = 0


class LabelScore(msgspec.Struct, frozen=True):
    """A label with its probability, 0 to 1."""

    label: str
    score: float


class NoParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """There are no parameters."""


Labels = list[LabelScore]
Vector = list[float]


def at_least(name: str, value: int | None, least: int = 1) -> None:
    """Raise ValueError, which msgspec turns into its ValidationError, if a parameter is under `least`."""
    if value is not None and value < least:
        raise ValueError(f"`{name}` must be {least} or more")


def share(name: str, value: float) -> None:
    """Raise ValueError if a parameter is not between 0 and 1."""
    if not 0 <= value <= 1:
        raise ValueError(f"`{name}` must be between 0 and 1")
