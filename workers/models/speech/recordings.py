"""A recording in rows: the windows of it that are heard, one behind another, and how the task is to hear them.

In a row: ``sound``, the windows' numbers flat; ``lengths``, how long each is on the axis of time; and for each task ``settings/TASK``.
In a batch the same of all rows, and ``windows``, how many of these are each row's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from workers.models.interface import ragged
from workers.models.interface.model import Array, Arrays

_NOTHING = np.zeros(0, dtype=np.uint8)


def pack(sounds: Sequence[Array], lengths: Sequence[int], settings: Mapping[str, Mapping[str, Any]]) -> Arrays:
    """Return a row's arrays. Windows may be none: nobody speaks."""
    flat = [np.ascontiguousarray(sound, dtype=np.float32).ravel() for sound in sounds]
    arrays: Arrays = {
        "sound": np.concatenate([np.zeros(0, np.float32), *flat]),
        "lengths": np.array(lengths, dtype=np.int64),
    }
    for task, own in settings.items():
        arrays[f"settings/{task}"] = np.frombuffer(msgspec.msgpack.encode(own, order="sorted"), dtype=np.uint8)
    return arrays


def collate(rows: Sequence[Arrays], tasks: Sequence[str]) -> Arrays:
    """Return a batch's arrays."""
    batch = {name: np.concatenate([row[name] for row in rows]) for name in ("sound", "lengths")}
    batch["windows"] = np.array([len(row["lengths"]) for row in rows], dtype=np.int64)
    for task in tasks:
        batch[f"settings/{task}"] = ragged.pack([row.get(f"settings/{task}", _NOTHING).tobytes() for row in rows])
    return batch


@dataclass(frozen=True, slots=True)
class Window:
    """A window on the device's side: of which row it is, which one of that row's, its numbers, its length in time."""

    row: int
    number: int
    sound: Array
    length: int


def windows(batch: Arrays) -> list[Window]:
    """Return a batch's windows, row by row. `sound` is flat."""
    lengths = batch["lengths"]
    # what stands for one unit of time is as wide in every window
    width = len(batch["sound"]) // max(1, int(lengths.sum()))
    ends = np.cumsum(lengths) * width
    owners = [(row, number) for row, count in enumerate(batch["windows"]) for number in range(count)]
    return [
        Window(row, number, batch["sound"][end - length * width : end], int(length))
        for (row, number), end, length in zip(owners, ends, lengths, strict=True)
    ]


def settings(batch: Arrays, task: str, row: int) -> dict[str, Any]:
    """Return how a task is to hear a row."""
    found: dict[str, Any] = msgspec.msgpack.decode(ragged.unpack(batch[f"settings/{task}"][row]))
    return found
