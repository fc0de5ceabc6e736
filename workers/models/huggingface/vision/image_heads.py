"""Heads of image tasks: reduce the network's output on the device, and turn it into an answer in the parent."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import msgspec
import numpy as np

from producers.wire.catalogue import Task
from producers.wire.errors import ConfigurationError
from producers.wire.kinds.vision import (
    ImageClassificationParams,
    ImageFeatureExtractionParams,
    ImageSegmentationParams,
    ObjectDetectionParams,
)
from workers.models.huggingface.checkpoint import Checkpoint
from workers.models.huggingface.checkpoint_networks import BACKBONE
from workers.models.huggingface.network_calls import rows_of
from workers.models.huggingface.text.label_heads import FUNCTIONS
from workers.models.huggingface.text_head import best_labels, rounded
from workers.models.interface import ragged
from workers.models.interface.model import Array

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Image:
    """The data of an image on the device besides its pixels: its original size, and the task's parameters."""

    size: tuple[int, int]
    params: bytes = b""


class ImageHeadOptions(Protocol):
    """The options of image and video models that concern heads."""

    @property
    def function_to_apply(self) -> Mapping[str, str]: ...
    @property
    def pooling(self) -> str | None: ...


@dataclass(frozen=True)
class ImageHead(ABC):
    """A task of an image model. `checkpoint` is the folder of its network and gives its labels."""

    task: Task
    checkpoint: Checkpoint
    options: ImageHeadOptions

    #: Whether `compute` needs the image's size. If so, images of different sizes are different inputs.
    needs_size: ClassVar[bool] = False

    #: Whether `compute` needs the parameters.
    needs_params: ClassVar[bool] = False

    @property
    @abstractmethod
    def auto(self) -> str:
        """The transformers class that loads the network."""

    def check(self) -> None:
        """Raise ConfigurationError if the folder or the options do not fit this kind."""
        _ = self.auto

    @abstractmethod
    def compute(self, output: Any, images: Sequence[Image], processor: Any) -> Array:
        """Turn the network's output into a row per image. Runs in the device process."""

    @abstractmethod
    def finish(self, output: Array, params: Any, aside: Any) -> Any:
        """Turn an image's row into the task's answer."""

    @property
    def architecture(self) -> str:
        """The class that the checkpoint was saved from."""
        names = self.checkpoint.config.get("architectures") or [""]
        return str(names[0])


class ImageClassification(ImageHead):
    """Labels with their scores, as for texts."""

    auto = "AutoModelForImageClassification"

    def check(self) -> None:
        if self.function not in FUNCTIONS:
            where = f"{self.checkpoint.where}.options.function_to_apply.{self.task.name}"
            raise ConfigurationError(f"{where}: must be one of {', '.join(FUNCTIONS)}, not {self.function!r}")

    @property
    def function(self) -> str:
        return self.options.function_to_apply.get(self.task.name, self.checkpoint.function_to_apply)

    def compute(self, output: Any, images: Sequence[Image], processor: Any) -> Array:
        return numpy(output.logits)

    def finish(self, output: Array, params: ImageClassificationParams, aside: Any) -> Any:
        return best_labels(self.checkpoint.labels, FUNCTIONS[self.function](output), params.top_k)


class ImageFeatureExtraction(ImageHead):
    """The network's own pooled output, else the mean over the positions. `pooling` = "cls" takes the first."""

    auto = BACKBONE

    def check(self) -> None:
        if self.options.pooling not in (None, "mean", "cls"):
            raise ConfigurationError(f"{self.checkpoint.where}.options.pooling: must be mean or cls")

    def compute(self, output: Any, images: Sequence[Image], processor: Any) -> Array:
        pooled = getattr(output, "pooler_output", None)
        hidden = output.last_hidden_state
        if self.options.pooling is None and pooled is not None:
            return numpy(pooled.flatten(1))
        places = hidden.flatten(2).transpose(1, 2) if hidden.dim() == 4 else hidden  # feature maps: channels first
        return numpy(places[:, 0] if self.options.pooling == "cls" else places.mean(1))

    def finish(self, output: Array, params: ImageFeatureExtractionParams, aside: Any) -> Any:
        vector = output.astype(np.float32)
        length = float(np.linalg.norm(vector))
        return vector / length if params.normalize and length > 0 else vector


class ObjectDetection(ImageHead):
    """Boxes in pixels of the original image, best first. transformers' own code converts the output to boxes."""

    needs_size = True

    @property
    def auto(self) -> str:
        if not self.architecture.endswith("ForObjectDetection"):
            raise ConfigurationError(
                f"{self.checkpoint.where}: {self.architecture or 'the model'} does not detect objects"
            )
        return self.architecture

    def compute(self, output: Any, images: Sequence[Image], processor: Any) -> Array:
        import torch

        sizes = torch.tensor([image.size for image in images], device=output.logits.device)
        found = processor.post_process_object_detection(output, threshold=0.0, target_sizes=sizes)
        return ragged.pack(
            [
                list(zip(one["scores"].tolist(), one["labels"].tolist(), one["boxes"].int().tolist(), strict=True))
                for one in found
            ]
        )

    def finish(self, output: Array, params: ObjectDetectionParams, aside: Any) -> Any:
        found = sorted(ragged.unpack(output), key=lambda one: -one[0])
        return [
            {
                "score": rounded(score),
                "label": self.checkpoint.labels[label],
                "box": dict(zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)),
            }
            for score, label, box in found
            if score > params.threshold
        ]


#: The subtasks in the order of preference, with transformers' method for each.
_SUBTASKS = {
    "panoptic": "post_process_panoptic_segmentation",
    "instance": "post_process_instance_segmentation",
    "semantic": "post_process_semantic_segmentation",
}


class ImageSegmentation(ImageHead):
    """Masks at the size of the original image. The device run-length encodes them, to transfer little data."""

    needs_size = True
    needs_params = True

    @property
    def auto(self) -> str:
        if not self.architecture.endswith("Segmentation"):
            raise ConfigurationError(
                f"{self.checkpoint.where}: {self.architecture or 'the model'} does not segment images"
            )
        return self.architecture

    def compute(self, output: Any, images: Sequence[Image], processor: Any) -> Array:
        import torch

        found = []
        for row, image in enumerate(images):
            own = rows_of(output, torch.tensor([row], device=self._device(output)), len(images))
            params = msgspec.msgpack.decode(image.params, type=ImageSegmentationParams)
            found.append(list(_segments(own, image.size, params, processor)))
        return ragged.pack(found)

    def _device(self, output: Any) -> Any:
        return next(iter(output.values())).device

    def finish(self, output: Array, params: ImageSegmentationParams, aside: Any) -> Any:
        return [
            {
                "score": None if score is None else rounded(score),
                "label": self.checkpoint.labels[label],
                "mask": {"size": size, "counts": counts},
            }
            for score, label, size, counts in ragged.unpack(output)
        ]


def _segments(
    output: Any, size: tuple[int, int], params: ImageSegmentationParams, processor: Any
) -> Iterator[tuple[float | None, int, tuple[int, int], list[int]]]:
    able = [subtask for subtask, method in _SUBTASKS.items() if hasattr(processor, method)]
    subtask = params.subtask or (able[0] if able else "")
    if subtask not in able:
        raise ValueError(
            f"the model does not support {subtask or 'segmentation'}; it supports: {', '.join(able) or 'none'}"
        )
    process = getattr(processor, _SUBTASKS[subtask])
    if subtask == "semantic":
        [map_] = process(output, target_sizes=[size])
        yield from ((None, label, size, counts) for label, counts in run_lengths_by_label(numpy(map_)))
        return
    thresholds = ("threshold", "mask_threshold", "overlap_mask_area_threshold")
    [found] = process(output, target_sizes=[size], **{name: getattr(params, name) for name in thresholds})
    segments = numpy(found["segmentation"])
    for one in found["segments_info"]:
        yield float(one["score"]), int(one["label_id"]), size, run_lengths(segments == one["id"])


def run_lengths(mask: Array) -> list[int]:
    """Return a mask `(height, width)` in COCO's uncompressed form: run lengths, column by column, background first."""
    flat = np.asarray(mask, dtype=np.bool_).ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts: list[int] = np.diff(np.concatenate(([0], changes, [len(flat)]))).tolist()
    return [0, *counts] if flat[0] else counts


def run_lengths_by_label(labels: Array) -> Iterator[tuple[int, list[int]]]:
    """Yield each label of a map `(height, width)` with its mask as in `run_lengths`, in a single scan."""
    flat = labels.ravel(order="F")
    starts = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1))
    ends = np.append(starts[1:], len(flat))
    order = np.argsort(flat[starts], kind="stable")
    of_run = flat[starts][order]
    for own in np.split(order, np.flatnonzero(of_run[1:] != of_run[:-1]) + 1):
        outside = starts[own] - np.concatenate(([0], ends[own][:-1]))
        counts = np.stack([outside, ends[own] - starts[own]], axis=1).ravel()
        rest = len(flat) - int(ends[own][-1])
        yield int(flat[starts[own[0]]]), [*counts.tolist(), *([rest] if rest else [])]


def numpy(tensor: torch.Tensor) -> Array:
    """Return a tensor as a numpy array; floating-point values become float32."""
    values: Array = (tensor.float() if tensor.is_floating_point() else tensor).cpu().numpy()
    return values
