"""Recordings in rows and batches: the windows to transcribe, concatenated, and each task's settings.

A row has ``sound``, the values of its windows; ``lengths``, their lengths on the time axis; and ``settings/TASK`` for
each task. A batch concatenates these, and has in ``windows`` the number of windows of each row.
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
    """Return a row's arrays. A recording without speech has no windows."""
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
    """A window in the device process: its row, its number in the row, its values, and its length on the time axis."""

    row: int
    number: int
    sound: Array
    length: int


def windows(batch: Arrays) -> list[Window]:
    """Return a batch's windows, row by row. `sound` is flat."""
    lengths = batch["lengths"]
    # every window has the same number of values per unit of time
    width = len(batch["sound"]) // max(1, int(lengths.sum()))
    ends = np.cumsum(lengths) * width
    owners = [(row, number) for row, count in enumerate(batch["windows"]) for number in range(count)]
    return [
        Window(row, number, batch["sound"][end - length * width : end], int(length))
        for (row, number), end, length in zip(owners, ends, lengths, strict=True)
    ]


def settings(batch: Arrays, task: str, row: int) -> dict[str, Any]:
    """Return a task's settings for a row."""
    found: dict[str, Any] = msgspec.msgpack.decode(ragged.unpack(batch[f"settings/{task}"][row]))
    return found
