"""A scripted model whose versions can be told apart: each is a folder with a number in it, which every answer names.

Items carry the number of the version that prepared them; a batch that meets another version raises, and one item
answered by two versions would show two numbers.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from producers.wire.catalogue import Task
from tests.scripted_model import ScriptedModel
from workers.models.interface.model import Array, Arrays, Prepared


def write_version(folder: Path, number: int, *, megabytes: int = 0, fails: str = "") -> Path:
    """Write a version: its number, what it takes of memory, and how its loading fails, if it does: ``raise``, ``die``,
    or ``reader`` for that of a `ReadingModel` alone.
    """
    folder.mkdir(parents=True)
    (folder / "number").write_text(str(number), encoding="ascii")
    (folder / "megabytes").write_text(str(megabytes), encoding="ascii")
    (folder / "fails").write_text(fails, encoding="ascii")
    return folder


class VersionedModel(ScriptedModel):
    """Its loading makes a file ``loading`` beside its folder's ``hold``, as long as there is such a file."""

    @cached_property
    def number(self) -> int:
        return int(self._word("number"))

    def _word(self, name: str) -> str:
        return (self.spec.folder / name).read_text("ascii")

    def prepare(self, content: str | bytes, params: Mapping[str, msgspec.Struct]) -> Prepared:
        prepared = super().prepare(content, params)
        return Prepared({**prepared.arrays, "number": np.array([self.number])}, prepared.size, prepared.content)

    def load(self, device: str) -> None:
        if (self.spec.folder / "hold").exists():
            (self.spec.folder / "loading").touch()
            while (self.spec.folder / "hold").exists():
                time.sleep(0.01)
        if self._word("fails") == "raise":
            raise RuntimeError("this version cannot be loaded")
        if self._word("fails") == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        self._weights = np.ones(int(self._word("megabytes")) * 10**6, dtype=np.uint8)

    def forward(self, arrays: Arrays, wanted: Mapping[str, Array]) -> Arrays:
        prepared = set(arrays.pop("number").ravel().tolist())
        if prepared != {self.number}:
            raise RuntimeError(f"version {self.number} got items of {prepared}")
        found = super().forward(arrays, wanted)
        return {task: np.column_stack([own, np.full(len(own), self.number)]) for task, own in found.items()}

    def finish(self, task: Task, output: Array, params: msgspec.Struct, prepared: Prepared) -> Any:
        return {"crc": int(output[0]), "task": task.name, "version": int(output[1]), "finished_by": self.number}


class ReadingModel(VersionedModel):
    """A model that reads another's weights: its number is that one's. `uses` = ``{ weights = … }``."""

    def _word(self, name: str) -> str:
        return (Path(self.spec.options["uses"]["weights"]) / name).read_text("ascii")

    def load(self, device: str) -> None:
        if self._word("fails") == "reader":
            raise RuntimeError("its reader cannot be loaded")
        super().load(device)
