"""The kinds whose input is a video file: parameters and outputs, named as in the Hugging Face pipelines where they have them."""

from __future__ import annotations

import msgspec

from producers.wire.kinds.kind import Kind, Labels, Vector, at_least

#: So many frames of a video may be asked for.
MOST_FRAMES = 128


class VideoClassificationParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`top_k` labels are returned, best first (null: all of them). Read are `num_frames` frames (null: as many as the
    model was trained on): spread evenly over the video, or with `frame_sampling_rate` N every Nth from its beginning."""

    top_k: int | None = 5
    num_frames: int | None = None
    frame_sampling_rate: int | None = None

    def __post_init__(self) -> None:
        at_least("top_k", self.top_k)
        check_frames(self.num_frames, self.frame_sampling_rate)


class VideoFeatureExtractionParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`normalize` scales the vector to length 1; frames are read as for video classification."""

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
