"""The kinds whose input is a video file: parameters and outputs, if possible named as in Hugging Face's pipelines."""

from __future__ import annotations

import msgspec

from producers.wire.kinds.kind import Kind, Labels, Vector, at_least

#: The most frames of a video that a request can ask for.
MOST_FRAMES = 128


class VideoClassificationParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The `top_k` best labels are returned, best first (null: all labels).

    The model reads `num_frames` frames (null: as many as it was trained on), spread evenly over the video. With
    `frame_sampling_rate` N it reads every Nth frame from the beginning.
    """

    top_k: int | None = 5
    num_frames: int | None = None
    frame_sampling_rate: int | None = None

    def __post_init__(self) -> None:
        at_least("top_k", self.top_k)
        check_frames(self.num_frames, self.frame_sampling_rate)


class VideoFeatureExtractionParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`normalize` scales the vector to length 1. Frames are read as for video classification."""

    normalize: bool = True
    num_frames: int | None = None
    frame_sampling_rate: int | None = None

    def __post_init__(self) -> None:
        check_frames(self.num_frames, self.frame_sampling_rate)


def check_frames(num_frames: int | None, frame_sampling_rate: int | None) -> None:
    at_least("num_frames", num_frames)
    at_least("frame_sampling_rate", frame_sampling_rate)
    if num_frames is not None and num_frames > MOST_FRAMES:
        raise ValueError(f"`num_frames` must be {MOST_FRAMES} or less")


VIDEO_KINDS = (
    Kind("video-classification", "video", VideoClassificationParams, Labels, "labels for a video, best first"),
    Kind("video-feature-extraction", "video", VideoFeatureExtractionParams, Vector, "one vector for a video"),
)
