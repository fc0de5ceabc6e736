"""The base class of image and video models: a batch has rows of any shape; rows of the same shape share a pass."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from producers.wire.catalogue import Task
from workers.models.huggingface.checkpoint import Checkpoint
from workers.models.huggingface.checkpoint_model import FolderModel
from workers.models.huggingface.vision import image_processing
from workers.models.huggingface.vision.image_heads import Image, ImageHead
from workers.models.huggingface.vision.image_processing import ImageReader
from workers.models.interface.model import Array, Arrays, Prepared, padded
from workers.models.pictures import picture_rows

if TYPE_CHECKING:
    from workers.models.huggingface.exported import Inputs


class PixelModel(FolderModel[ImageHead]):
    """A subclass writes `reader`, `_inputs`, and `prepare`, whose rows have `pixels`, uint8 `(…, height, width, 3)`."""

    PADDABLE = True
    READERS = ("AutoImageProcessor",)

    #: The head class of each kind.
    HEADS: ClassVar[Mapping[str, type[ImageHead]]]

    # --- in the parent process ---

    @property
    @abstractmethod
    def reader(self) -> ImageReader:
        """The reader of images or frames for this checkpoint."""

    @cached_property
    def revision(self) -> str:
        self.reader.check_settings()
        return super().revision

    def collate(self, rows: Sequence[Prepared]) -> Arrays:
        """Concatenate the rows' pixels, with their `shapes`."""
        return picture_rows.collate(rows)

    def _head(self, task: Task, checkpoint: Checkpoint) -> ImageHead:
        return self.HEADS[task.kind.name](task, checkpoint, self.options)

    # --- in the device process ---

    @cached_property
    def _processor(self) -> Any:
        return image_processing.processor(self.spec.folder, self.where)

    def load(self, device: str) -> None:
        self.reader.check(self._processor)
        super().load(device)

    @abstractmethod
    def _inputs(self, batch: Array) -> Inputs:
        """Return the network's inputs for the pixels of rows of the same shape, `(rows, …, height, width, 3)`."""

    def _known(self, arrays: Arrays, task: str, rows: Sequence[int]) -> Sequence[Image]:
        """Return the data of rows besides their pixels, for heads that need it."""
        return ()

    def forward(self, arrays: Arrays, wanted: Mapping[str, Array]) -> Arrays:
        import torch

        found: dict[str, dict[int, Array]] = {task: {} for task in wanted}
        with torch.inference_mode():
            for group, batch in picture_rows.by_shape(arrays):
                chosen = {task: [row for row in group if row in rows] for task, rows in wanted.items()}
                self._run(arrays, batch, group, {task: rows for task, rows in chosen.items() if rows}, found)
        return {task: padded([found[task][int(row)] for row in rows]) for task, rows in wanted.items()}

    def _run(
        self,
        arrays: Arrays,
        batch: Array,
        group: Sequence[int],
        chosen: Mapping[str, Sequence[int]],
        found: dict[str, dict[int, Array]],
    ) -> None:
        """Run a pass over rows of the same shape, and each wanted head over the rows that it needs."""
        import torch

        places = {task: [group.index(row) for row in rows] for task, rows in chosen.items()}
        rows = {task: torch.tensor(own, device=self._device) for task, own in places.items()}
        for task, output in self.networks.run(self._inputs(batch), rows).items():
            known = self._known(arrays, task, chosen[task])
            results = self.heads[task].compute(output, known, self._processor)
            found[task].update(zip(chosen[task], results, strict=True))
