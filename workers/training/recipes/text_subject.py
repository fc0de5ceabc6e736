"""Texts as the worker's encoder reads them, for a text backbone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from workers.models.huggingface import token_sequences
from workers.models.interface.model import Arrays
from workers.training.kinds.labelled_kind import LabelledKind
from workers.training.recipes.folder_subject import ReadRow, TrainedFolder
from workers.training.recipes.labelled_rows import LabelledRow


class TrainedTexts(TrainedFolder):
    """Token sequences; long texts are cut, or read in windows."""

    def read(self, row: LabelledRow, kinds: Sequence[LabelledKind]) -> ReadRow:
        heads = self.model.heads
        readings = {
            kind.name: heads[kind.name].read(kind.content(row.columns, row.origin), kind.cut_params) for kind in kinds
        }
        arrays = token_sequences.pack({name: reading.sequences for name, reading in readings.items()})
        asides = {name: reading.aside for name, reading in readings.items()}
        inputs = {name: len(reading.sequences) for name, reading in readings.items()}
        targets = {kind.name: kind.targets(row.labels[kind.name], asides[kind.name]) for kind in kinds}
        return ReadRow(arrays, int(arrays["lengths"].sum()), inputs, targets, asides, row.labels)

    def collate(self, rows: Sequence[ReadRow]) -> tuple[Arrays, Arrays]:
        arrays = token_sequences.collate([row.arrays for row in rows], self.tasks)
        batch = token_sequences.Batch(arrays, self.model.checkpoint.pad_id)
        padded = batch.padded(range(len(batch.sequences)))
        inputs = {"input_ids": padded["ids"], "attention_mask": padded["mask"]}
        if self._gives_types:
            inputs["token_type_ids"] = padded["types"]
        return inputs, {task: arrays[f"of/{task}"] for task in self.tasks}

    @cached_property
    def _gives_types(self) -> bool:
        found: bool = next(iter(self.model.heads.values())).tokenizing.check()
        return found
