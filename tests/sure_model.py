"""A classifier whose answer and confidence its inputs name: ``cat 0.4`` is a cat with a score of 0.4.

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
    """Options: `says` stands before each label, `raises` is a word in whose text's batch `forward` raises."""

    def prepare(self, content: str | bytes, params: Mapping[str, msgspec.Struct]) -> Prepared:
        assert isinstance(content, str)
        data = np.frombuffer(content.encode(), dtype=np.uint8)
        return Prepared({"text": data}, len(data), hashlib.blake2b(content.encode(), digest_size=16).digest())

    def finish(self, task: Task, output: Array, params: msgspec.Struct, prepared: Prepared) -> Any:
        label, _, score = bytes(prepared.arrays["text"]).decode().partition(" ")
        said = str(self.spec.options.get("says", ""))
        return [{"label": f"{said}{label}", "score": float(score.split()[0])}]

    def load(self, device: str) -> None:
        pass

    def forward(self, arrays: Arrays, wanted: Mapping[str, Array]) -> Arrays:
        texts = [bytes(row).rstrip(b"\0").decode() for row in arrays["text"]]
        word = self.spec.options.get("raises")
        if word and any(word in text for text in texts):
            raise ValueError("told to raise")
        for text in texts:
            if "slow" in text:
                time.sleep(0.5)
        rows = np.zeros((len(texts), 1), dtype=np.int64)
        return {task: rows[where] for task, where in wanted.items()}
