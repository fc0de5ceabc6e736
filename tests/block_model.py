"""The scripted model with blocks: bulk for it comes in large envelopes, as for the text models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from producers.wire.catalogue import Task
from tests.scripted_model import ScriptedModel
from workers.models.interface.model import Array, Arrays, padded
from workers.models.interface.text_block import ALONE, BlockAnswers, LabelColumns, TextBlock


class BlockModel(ScriptedModel):
    """The tasks ``say`` and ``place`` have blocks."""

    def prepare_block(self, contents: Sequence[str], params: Mapping[str, msgspec.Struct]) -> TextBlock | None:
        """Texts that are refused or not prepared are left alone; so is ``alone``."""
        if not {"say", "place"}.issuperset(params):
            return None
        odd = ("refuse", "bug", "kill", "thread", "alone")
        unique = {text: None for text in contents if not text.startswith(odd)}
        rows = {text: row for row, text in enumerate(unique)}
        data = [np.frombuffer(text.encode(), dtype=np.uint8) for text in unique]
        sizes = np.array([len(row) for row in data], dtype=np.int64)
        return TextBlock(sizes, np.array([rows.get(text, ALONE) for text in contents]), data)

    def collate_blocks(self, parts: Sequence[tuple[TextBlock, Array]]) -> Arrays:
        return {"text": padded([block.data[row] for block, rows in parts for row in rows])}

    def finish_block(self, task: Task, outputs: Array, params: msgspec.Struct) -> BlockAnswers:
        if task.name == "place":
            return np.array([[int(crc) % 1000, 1] for (crc,) in outputs], dtype=np.float32)
        labels = [f"said {crc}" for (crc,) in outputs]
        return LabelColumns(labels, 1, [*range(len(labels))], [1.0] * len(labels))
