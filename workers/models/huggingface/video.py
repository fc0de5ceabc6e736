"""Any Hugging Face video model that answers in one pass (VideoMAE, TimeSformer, ViViT …), over frames read out of the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from PIL import Image

from producers.catalogue import Task
from producers.errors import ConfigurationError, InvalidInput
from workers.models.huggingface.checkpoint import Checkpoint
from workers.models.huggingface.image_heads import ImageClassification, ImageFeatureExtraction, ImageHead
from workers.models.huggingface.images import ImageReader
from workers.models.huggingface.serving import FolderModel
from workers.models.model import Array, Arrays, Prepared, digest
from workers.models.video import frames
from workers.models.video.frames import VideoLimits
from workers.models.video.sampling import Sampling, sampled_alike

if TYPE_CHECKING:
    import torch

#: A row's size is counted in squares of 32 x 32 pixels, as an image model's.
_SQUARE = 32 * 32


class VideoClassification(ImageClassification):
    """Labels with their scores, as for images."""

    auto = "AutoModelForVideoClassification"


HEADS: Mapping[str, type[ImageHead]] = {
    "video-classification": VideoClassification,
    "video-feature-extraction": ImageFeatureExtraction,
}


class FrameReader(ImageReader):
    """How a checkpoint wants its frames: each as an image model wants its images."""

    def normalized(self, batch: torch.Tensor) -> torch.Tensor:
        values = super().normalized(batch)
        if not (self._type.startswith("Vivit") and self._config.get("offset", True)):
            return values
        # ViViT scales to 0 … 2, then takes one off before the mean
        return values - 1 / values.new_tensor(self._config["image_std"]).view(1, -1, 1, 1)

    def check(self, processor: Any) -> None:
        """Compare with transformers' own processor on two frames. Raises ConfigurationError if one of them differs."""
        import torch

        for width, height in ((61, 43), (40, 97)):
            noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
            frame = Image.fromarray(noise)
            theirs = processor([frame], return_tensors="pt")["pixel_values"].flatten(0, 1)
            ours = self.normalized(torch.from_numpy(self.scaled(frame).copy())[None])
            if ours.shape != theirs.shape or not torch.allclose(ours, theirs, atol=1e-4):
                problem = f"frames are not prepared as {type(processor).__name__} prepares them"
                raise ConfigurationError(f"{self.checkpoint.where}: {problem}; write a class for it (docs/models.md)")


class VideoCheckpoint(FolderModel[ImageHead]):
    """Options: `heads` (folders by task), `function_to_apply` (by task), `pooling`, and the fields of `VideoLimits`."""

    OPTIONS = ("heads", "function_to_apply", "pooling", *VideoLimits.__dataclass_fields__)

    # --- in the parent process ---

    @cached_property
    def revision(self) -> str:
        frames.check_installed(self.where)
        self._reader.check_settings()
        _ = self._num_frames, self._limits
        return super().revision

    def prepare(self, content: Any, params: Mapping[str, msgspec.Struct]) -> Prepared:
        """Read and scale frames. The row is `frames`, uint8 `(frames, height, width, 3)`."""
        if not isinstance(content, bytes):
            raise InvalidInput("input", f"must be the bytes of a video file, not {type(content).__name__}")
        sampling, refused = sampled_alike(params, self._sampling)
        read = frames.read(content, sampling, self._limits, lambda frame: self._reader.scaled(frames.image(frame)))
        arrays: Arrays = {"frames": np.stack(read)}
        size = max(1, int(np.prod(arrays["frames"].shape[:3])) // _SQUARE)
        return Prepared(arrays, size, digest(arrays), refused, aside=dict.fromkeys(params))

    def _sampling(self, params: Any) -> Sampling:
        if params.num_frames not in (None, self._num_frames):
            remedy = "leave `num_frames` out, and choose a `frame_sampling_rate`"
            raise InvalidInput("params.num_frames", f"must be {self._num_frames}, which the model reads", remedy)
        return Sampling(self._num_frames, params.frame_sampling_rate)

    def collate(self, rows: Sequence[Prepared]) -> Arrays:
        """Put the rows' pixels behind one another, with their `shapes` (frames, height, width)."""
        return {
            "pixels": np.concatenate([row.arrays["frames"].ravel() for row in rows]),
            "shapes": np.array([row.arrays["frames"].shape[:3] for row in rows], dtype=np.int64),
        }

    def _head(self, task: Task, checkpoint: Checkpoint) -> ImageHead:
        return HEADS[task.kind.name](task, checkpoint, self.spec.options)

    @cached_property
    def _num_frames(self) -> int:
        found = self.checkpoint.config.get("num_frames")
        if not isinstance(found, int) or found < 1:
            raise ConfigurationError(f"{self.where}: config.json does not say how many frames are read (num_frames)")
        return found

    @cached_property
    def _reader(self) -> FrameReader:
        return FrameReader(self.checkpoint)

    @cached_property
    def _limits(self) -> VideoLimits:
        return frames.limits(self.spec.options, self.where)

    # --- in the device process ---

    @cached_property
    def _processor(self) -> Any:
        from transformers import AutoImageProcessor

        return AutoImageProcessor.from_pretrained(
            self.spec.folder, local_files_only=True, trust_remote_code=False, backend="pil"
        )

    def load(self, device: str) -> None:
        self._reader.check(self._processor)
        super().load(device)

    def forward(self, arrays: Arrays, wanted: Mapping[str, Array]) -> Arrays:
        import torch

        videos = _split(arrays)
        found: dict[str, dict[int, Array]] = {task: {} for task in wanted}
        groups: dict[tuple[int, ...], list[int]] = {}
        for row, video in enumerate(videos):
            groups.setdefault(video.shape, []).append(row)
        with torch.inference_mode():
            for group in groups.values():
                chosen = {task: [row for row in group if row in rows] for task, rows in wanted.items()}
                batch = np.stack([videos[row] for row in group])
                self._run(batch, group, {task: rows for task, rows in chosen.items() if rows}, found)
        return {task: np.stack([found[task][int(row)] for row in rows]) for task, rows in wanted.items()}

    def _run(
        self,
        batch: Array,
        group: Sequence[int],
        chosen: Mapping[str, Sequence[int]],
        found: dict[str, dict[int, Array]],
    ) -> None:
        """Run one pass over videos of one shape, and each wanted head over those of them that it needs."""
        import torch

        normalized = self._reader.normalized(torch.from_numpy(batch).to(self._device).flatten(0, 1))
        values = normalized.view(*batch.shape[:2], *normalized.shape[1:]).to(self.networks.dtype)
        rows = {
            task: torch.tensor([group.index(row) for row in own], device=self._device) for task, own in chosen.items()
        }
        for task, output in self.networks.run({"pixel_values": values}, rows).items():
            results = self.heads[task].compute(output, (), self._processor)
            found[task].update(zip(chosen[task], results, strict=True))


def _split(arrays: Arrays) -> list[Array]:
    counts = arrays["shapes"].prod(axis=1) * 3
    ends = np.cumsum(counts)
    return [
        arrays["pixels"][end - count : end].reshape(*shape, 3)
        for end, count, shape in zip(ends, counts, arrays["shapes"], strict=True)
    ]
