"""A classifier whose answer and confidence its inputs name: ``cat 0.4`` is a cat with a score of 0.4 (0.5 if unsaid).

It stands in for the models of a site and its centre where what decides is their confidence.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from producers.wire.catalogue import Task
from workers.models.interface.model import Array, Arrays, Model, Prepared


class SureModel(Model):
    """Its option `says` stands before each label; with `row_s` a row takes so many seconds."""

    def prepare(self, content: str | bytes, params: Mapping[str, msgspec.Struct]) -> Prepared:
        assert isinstance(content, str)
        data = np.frombuffer(content.encode(), dtype=np.uint8)
        return Prepared({"text": data}, len(data), hashlib.blake2b(content.encode(), digest_size=16).digest())

    def finish(self, task: Task, output: Array, params: msgspec.Struct, prepared: Prepared) -> Any:
        label, _, score = bytes(prepared.arrays["text"]).decode().partition(" ")
        said = str(self.spec.options.get("says", ""))
        word = (score.split() or ["0.5"])[0]
        return [{"label": f"{said}{label}", "score": float(word) if word.startswith("0.") else 0.5}]

    def load(self, device: str) -> None:
        pass

    def forward(self, arrays: Arrays, wanted: Mapping[str, Array]) -> Arrays:
        texts = [bytes(row).rstrip(b"\0").decode() for row in arrays["text"]]
        time.sleep(len(texts) * float(self.spec.options.get("row_s", 0.0)))
        rows = np.zeros((len(texts), 1), dtype=np.int64)
        return {task: rows[where] for task, where in wanted.items()}
