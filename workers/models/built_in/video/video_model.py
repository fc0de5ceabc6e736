"""The video model: MobileNetV2 over the frames of all videos in a pass, then heads that read each video's frames."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from producers.wire.catalogue import Task
from producers.wire.errors import ConfigurationError, InvalidInput
from workers.models.built_in.multitask import head_file
from workers.models.built_in.multitask.multitask_model import MultiTaskModel
from workers.models.built_in.text.text_model import BUILTIN_HEADS
from workers.models.interface.model import Arrays, ModelSpec, Prepared, digest
from workers.models.interface.options import Text
from workers.models.video import frames
from workers.models.video.frame_sampling import FrameSampling, sampled_alike
from workers.models.video.frames import Pixels, VideoLimits

if TYPE_CHECKING:
    import torch
    from av import VideoFrame

    from workers.models.built_in.multitask.multitask_model import Features

#: The number of frames read from a video unless `num_frames` is set; the built-in heads were trained on it.
NUM_FRAMES = 16

#: The side of the square that the model reads from a frame's middle, and the frame's short side before the cut.
FRAME_SIDE = 160
_SHORT_SIDE = 176


def centre(frame: VideoFrame) -> Pixels:
    """Return the square that the model reads from a frame: `(160, 160, 3)`."""
    return frames.centre(frame, FRAME_SIDE, _SHORT_SIDE)


#: `centre` for a decoding process, which imports nothing but the reader.
_CENTRE = partial(frames.centre, side=FRAME_SIDE, short_side=_SHORT_SIDE)


class VideoOptions(VideoLimits, frozen=True):
    """Options of the video model. `heads` is a folder with a folder for each task."""

    heads: Text | None = None


class VideoModel(MultiTaskModel):
    """A backbone over the frames of all videos in a batch, and heads that read each video's frames in order.

    There is no cache of features: the cache cannot split a batch of frames by video.
    """

    options_class = VideoOptions
    options: VideoOptions

    default_cost = 64
    budgets = (16, 32, 64, 128)

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self._heads: dict[str, Any] = {}

    # --- in the parent process ---

    def prepare(self, content: Any, params: Mapping[str, msgspec.Struct]) -> Prepared:
        """Read frames. The row is `pixels`, uint8 `(frames, 160, 160, 3)`."""
        if not isinstance(content, bytes):
            raise InvalidInput("input", f"must be the bytes of a video file, not {type(content).__name__}")
        sampling, refused = sampled_alike(params, _sampling)
        arrays = {"pixels": np.stack(frames.made(content, sampling, self.options, _CENTRE))}
        return Prepared(arrays, sampling.num_frames, digest(arrays), refused)

    def collate(self, rows: Sequence[Prepared]) -> Arrays:
        """Concatenate the rows' frames: `pixels` `(frames, 160, 160, 3)`, and each row's `lengths`."""
        return {
            "pixels": np.concatenate([row.arrays["pixels"] for row in rows]),
            "lengths": np.array([row.size for row in rows], dtype=np.int64),
        }

    def labels(self, task: Task) -> Sequence[str]:
        return self._labels[task.name]

    @cached_property
    def revision(self) -> str:
        frames.check_installed(f"models.{self.spec.name}")
        _ = self._labels  # report a wrong setting when the worker starts
        whole = self._weights
        return whole if self.spec.backend.is_reference else f"{whole}+{self.spec.backend}"

    @property
    def _weights(self) -> str:
        files = [self._head_files[name] for name in sorted(self._head_files)]
        return f"{self.spec.revision}+heads.{head_file.digest(files)}" if files else self.spec.revision

    @cached_property
    def _labels(self) -> dict[str, tuple[str, ...]]:
        return {name: head_file.read_labels(path) for name, path in self._head_files.items()}

    @cached_property
    def _head_files(self) -> dict[str, Path]:
        own = self.options.heads
        folders = [*([Path(own).expanduser()] if own else []), BUILTIN_HEADS]
        found: dict[str, Path] = {}
        for name, task in self.spec.tasks.items():
            if not task.kind.name.endswith("classification"):
                continue
            files = [folder / name / head_file.FILE for folder in folders]
            there = next((file for file in files if file.is_file()), None)
            if there is None:
                problem = f"{name!r} has no head: there is no {' or '.join(map(str, files))}"
                raise ConfigurationError(f"models.{self.spec.name}: {problem}; train a head (docs/models.md)")
            found[name] = there
        return found

    # --- in the device process ---

    def _load(self, device: str) -> None:
        from workers.models.built_in.video.video_network import load_head

        self._heads = {name: load_head(path).eval().to(device) for name, path in self._head_files.items()}

    def _network(self) -> torch.nn.Module:
        from workers.models.built_in.video.video_network import VideoEncoder

        return VideoEncoder(self.spec.folder, self._features_read).eval()

    @property
    def _features_read(self) -> frozenset[str]:
        """The features of the backbone that the tasks read; no others are computed."""
        of_heads = {name for module in self._heads.values() for name in module.reads}
        return frozenset(of_heads if len(self._heads) == len(self.spec.tasks) else {*of_heads, "pooled"})

    def _cache_file(self) -> Path:
        whole = super()._cache_file()
        own = hashlib.blake2b(repr(sorted(self._features_read)).encode(), digest_size=4).hexdigest()
        return whole.with_name(f"{whole.name}-{own}")  # other tasks use another part of the network

    def _example(self) -> Arrays:
        return {"pixels": np.zeros((2, FRAME_SIDE, FRAME_SIDE, 3), dtype=np.uint8)}

    def encode(self, arrays: Mapping[str, torch.Tensor]) -> Features:
        return super().encode({"pixels": arrays["pixels"]}) | {"lengths": arrays["lengths"]}

    def _head(self, task: Task, features: Features, rows: torch.Tensor) -> torch.Tensor:
        chosen = _of_rows(features, rows)
        if task.name in self._heads:
            scores: torch.Tensor = self._heads[task.name](chosen)
            return scores.softmax(-1)
        return _means(chosen["pooled"], chosen["lengths"])


def _sampling(params: Any) -> FrameSampling:
    if params.num_frames == 1:
        raise InvalidInput("params.num_frames", "must be 2 or more", "motion needs at least two frames")
    return FrameSampling(params.num_frames or NUM_FRAMES, params.frame_sampling_rate)


def _of_rows(features: Features, rows: torch.Tensor) -> Features:
    """Return the features of the frames of some rows, in the rows' order."""
    import torch

    lengths = features["lengths"]
    if len(rows) == len(lengths) and bool((rows == torch.arange(len(lengths), device=rows.device)).all()):
        return dict(features)
    starts = lengths.cumsum(0) - lengths
    places = torch.cat([torch.arange(int(lengths[row]), device=rows.device) + starts[row] for row in rows.tolist()])
    return {
        name: lengths[rows] if name == "lengths" else tensor.index_select(0, places)
        for name, tensor in features.items()
    }


def _means(pooled: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    import torch

    ends = lengths.cumsum(0).tolist()
    return torch.stack([pooled[end - length : end].mean(0) for end, length in zip(ends, lengths.tolist(), strict=True)])
