"""The kinds whose input is an image: parameters and outputs, named as in the Hugging Face pipelines."""

from __future__ import annotations

from typing import Literal

import msgspec

from producers.wire.kinds.explanation import ExplainedLabels, check_steps
from producers.wire.kinds.kind import Kind, Vector, at_least, share


class ImageClassificationParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The `top_k` best labels are returned, best first (null: all labels).

    `explain` adds the contribution of each part of the image to the best label, or to `explain_label`, computed in
    `explain_steps` steps.
    """

    top_k: int | None = 5
    explain: bool = False
    explain_steps: int = 64
    explain_label: str | None = None

    def __post_init__(self) -> None:
        at_least("top_k", self.top_k)
        check_steps(self.explain_steps)


class ImageFeatureExtractionParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`normalize` scales the vector to length 1."""

    normalize: bool = True


class ObjectDetectionParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Objects with a score over `threshold` are returned."""

    threshold: float = 0.5

    def __post_init__(self) -> None:
        share("threshold", self.threshold)


class ImageSegmentationParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`subtask` is the kind of segmentation (null: the first of the three that the model can do).

    The thresholds are for panoptic and instance segmentation: of a segment's score, of a pixel's, and of the visible
    share of a segment under others.
    """

    subtask: Literal["panoptic", "instance", "semantic"] | None = None
    threshold: float = 0.9
    mask_threshold: float = 0.5
    overlap_mask_area_threshold: float = 0.5

    def __post_init__(self) -> None:
        for name in ("threshold", "mask_threshold", "overlap_mask_area_threshold"):
            share(name, getattr(self, name))


class Box(msgspec.Struct, frozen=True):
    """Corners in pixels of the image as it was sent, upright."""

    xmin: int
    ymin: int
    xmax: int
    ymax: int


class Detection(msgspec.Struct, frozen=True):
    """An object, its probability and its place."""

    score: float
    label: str
    box: Box


class Mask(msgspec.Struct, frozen=True):
    """The pixels of a segment in an image of `size` (height, width), as COCO's uncompressed run lengths.

    The runs go column by column, alternately outside and inside, beginning outside.
    """

    size: tuple[int, int]
    counts: list[int]


class Segment(msgspec.Struct, frozen=True):
    """A part of the image. Semantic segmentation has no score."""

    score: float | None
    label: str
    mask: Mask


VISION_KINDS = (
    Kind(
        "image-classification",
        "image",
        ImageClassificationParams,
        ExplainedLabels,
        "labels for an image, best first",
    ),
    Kind("image-feature-extraction", "image", ImageFeatureExtractionParams, Vector, "one vector for an image"),
    Kind("object-detection", "image", ObjectDetectionParams, list[Detection], "objects in an image, and where"),
    Kind("image-segmentation", "image", ImageSegmentationParams, list[Segment], "segments of an image, pixel by pixel"),
)
