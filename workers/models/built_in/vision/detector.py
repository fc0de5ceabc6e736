"""The built-in detector: NanoDet, which finds objects of COCO's 80 classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from producers.wire.catalogue import Task
from producers.wire.errors import InvalidInput
from producers.wire.kinds import KINDS
from producers.wire.kinds.vision import ObjectDetectionParams
from workers.models.built_in.multitask.multitask_model import MultiTaskModel
from workers.models.built_in.vision.vision_model import VisionOptions
from workers.models.huggingface.checkpoint import Checkpoint
from workers.models.huggingface.text_head import rounded
from workers.models.interface.model import Array, Arrays, Prepared, digest
from workers.models.pictures import pixels

if TYPE_CHECKING:
    import torch

    from workers.models.built_in.multitask.multitask_model import Features

#: Height and width of the network's input: the whole image, resized to a square.
SIDE = 416

#: If two boxes of a class overlap by more than this (intersection over union), the less likely box is dropped.
_SAME_OBJECT = 0.6


class DetectorModel(MultiTaskModel):
    """Tasks of the kind `object-detection`."""

    options_class = VisionOptions
    options: VisionOptions
    kind = KINDS["object-detection"]
    tunable = False
    default_cost = 8

    # --- in the parent process ---

    def prepare(self, content: Any, params: Mapping[str, msgspec.Struct]) -> Prepared:
        """Decode an image and resize it to the network's square. The row is `pixels`, uint8 `(height, width, 3)`."""
        if not isinstance(content, bytes):
            raise InvalidInput("input", f"must be the bytes of an image file, not {type(content).__name__}")
        limit = self.options.max_image_pixels
        squeezed, size = pixels.read(content, partial(pixels.squeezed, side=SIDE), max_pixels=limit)
        row: Arrays = {"pixels": squeezed}
        return Prepared(row, 1, digest(row), aside=size)

    def labels(self, task: Task) -> Sequence[str]:
        return self._labels

    @cached_property
    def _labels(self) -> tuple[str, ...]:
        return Checkpoint(self.spec.folder, f"models.{self.spec.name}").labels

    def finish(self, task: Task, output: Array, params: msgspec.Struct, prepared: Prepared) -> Any:
        """Return boxes in pixels of the image.

        A row of `output` `(boxes, 6)` has score, label, and the corners as shares of width and height.
        """
        assert isinstance(params, ObjectDetectionParams), "only this kind is served"
        width, height = prepared.aside
        found = output[output[:, 0] > params.threshold]
        stay = set(_without_duplicates(found))
        corners = (found[:, 2:].clip(0, 1) * (width, height, width, height)).round().astype(int)
        return [
            {
                "score": rounded(score),
                "label": self._labels[int(label)],
                "box": dict(zip(("xmin", "ymin", "xmax", "ymax"), corners[place].tolist(), strict=True)),
            }
            for place, (score, label) in enumerate(found[:, :2].tolist())
            if place in stay
        ]

    # --- in the device process ---

    def _network(self) -> torch.nn.Module:
        from workers.models.built_in.vision.detector_network import DetectorNetwork

        return DetectorNetwork(self.spec.folder).eval()

    def _example(self) -> Arrays:
        return {"pixels": np.zeros((2, SIDE, SIDE, 3), dtype=np.uint8)}

    def _head(self, task: Task, features: Features, rows: torch.Tensor) -> torch.Tensor:
        return features["found"].index_select(0, rows)


def _without_duplicates(found: Array) -> list[int]:
    """Return the indices of the boxes `(boxes, 6)`, best first, that remain after non-maximum suppression."""
    kept: list[int] = []
    for place, (_, label, *_) in enumerate(found):
        rivals = [other for other in kept if found[other, 1] == label]
        if all(_overlap(found[place, 2:], found[other, 2:]) <= _SAME_OBJECT for other in rivals):
            kept.append(place)
    return kept


def _overlap(first: Array, second: Array) -> float:
    """Return the intersection over union of two boxes."""
    low, high = np.maximum(first[:2], second[:2]), np.minimum(first[2:], second[2:])
    common = float(np.prod((high - low).clip(min=0)))
    together = float(np.prod(first[2:] - first[:2]) + np.prod(second[2:] - second[:2])) - common
    return common / together if together > 0 else 0.0
