"""A model on the GPU that does what its inputs say: OK, take more memory than there is, break the GPU's context."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from producers.wire.catalogue import Task
from workers.models.interface.model import Array, Arrays, Model, Prepared

_WORDS = {"overflow": 1, "break": 2}


class FaultyModel(Model):
    """Answers the number in a text with its square, and where that was computed."""

    def prepare(self, content: str | bytes, params: Mapping[str, msgspec.Struct]) -> Prepared:
        assert isinstance(content, str)
        word, _, number = content.partition(" ")
        row = np.array([_WORDS.get(word, 0), int(number)], dtype=np.int64)
        return Prepared({"row": row}, 1, hashlib.blake2b(content.encode(), digest_size=16).digest())

    def finish(self, task: Task, output: Array, params: msgspec.Struct, prepared: Prepared) -> Any:
        return {"square": int(output[0]), "gpus": int(output[1])}

    def load(self, device: str) -> None:
        import torch

        assert device == "cuda:0", device
        self._squares = torch.arange(1000, device=device) ** 2

    def forward(self, arrays: Arrays, wanted: Mapping[str, Array]) -> Arrays:
        import torch

        words, numbers = torch.from_numpy(arrays["row"]).to(self._squares.device).T
        if bool((words == 1).any()):
            torch.empty(2**50, device=self._squares.device)
        # an index out of bounds: the kernel's assertion fails, and with it every later call of this process
        squares = self._squares[numbers + 10**6 * (words == 2)].cpu().numpy()
        seen = np.full_like(squares, torch.cuda.device_count())
        return {task: np.stack([squares, seen], 1)[rows] for task, rows in wanted.items()}
