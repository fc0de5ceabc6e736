"""Any Hugging Face video model that answers in a single pass (VideoMAE, TimeSformer, ViViT …) over sampled frames."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec
import numpy as np
from msgspec import field
from PIL import Image

from producers.wire.errors import ConfigurationError, InvalidInput
from workers.models.huggingface.checkpoint_model import OwnCode
from workers.models.huggingface.vision.image_heads import ImageClassification, ImageFeatureExtraction, ImageHead
from workers.models.huggingface.vision.image_processing import ImageReader
from workers.models.huggingface.vision.pixel_model import PixelModel
from workers.models.interface.model import Array, Arrays, Prepared, digest
from workers.models.interface.options import Table, Text
from workers.models.pictures import picture_rows
from workers.models.video import frames
from workers.models.video.frame_sampling import FrameSampling, sampled_alike
from workers.models.video.frames import VideoLimits

if TYPE_CHECKING:
    import torch

    from workers.models.huggingface.exported import Inputs


class VideoClassification(ImageClassification):
    """Labels with their scores, as for images."""

    auto = "AutoModelForVideoClassification"

    @property
    def function(self) -> str:
        return self.options.function_to_apply.get(self.task.name, self.checkpoint.function_of_recordings)


class FrameReader(ImageReader):
    """The frame preparation of a checkpoint, like the image preparation of an image model."""

    PREPARED = "frames"

    def normalized(self, batch: torch.Tensor) -> torch.Tensor:
        values = super().normalized(batch)
        if not (self._type.startswith("Vivit") and self._config.get("offset", True)):
            return values
        # ViViT scales to 0 … 2, then subtracts 1 before the mean
        return values - 1 / values.new_tensor(self._config["image_std"]).view(1, -1, 1, 1)

    def _theirs(self, processor: Any, image: Image.Image) -> torch.Tensor:
        found: torch.Tensor = processor([image], return_tensors="pt")["pixel_values"].flatten(0, 1)
        return found


class VideoCheckpointOptions(VideoLimits, frozen=True):
    """The limits of a video, and the options of `ImageOptions` that concern the folder and its heads."""

    own_code: OwnCode = "refused"
    heads: Table = field(default_factory=dict)
    function_to_apply: Table = field(default_factory=dict)
    pooling: Text | None = None


class VideoCheckpoint(PixelModel):
    """Videos, sampled to the number of frames that the checkpoint reads."""

    options_class = VideoCheckpointOptions
    options: VideoCheckpointOptions
    HEADS: ClassVar[Mapping[str, type[ImageHead]]] = {
        "video-classification": VideoClassification,
        "video-feature-extraction": ImageFeatureExtraction,
    }

    # --- in the parent process ---

    @cached_property
    def revision(self) -> str:
        frames.check_installed(self.where)
        _ = self._num_frames
        return super().revision

    def prepare(self, content: Any, params: Mapping[str, msgspec.Struct]) -> Prepared:
        """Read and scale frames. The row is `pixels`, uint8 `(frames, height, width, 3)`."""
        if not isinstance(content, bytes):
            raise InvalidInput("input", f"must be the bytes of a video file, not {type(content).__name__}")
        sampling, refused = sampled_alike(params, self._sampling)
        read = frames.made(content, sampling, self.options, partial(frames.of_image, then=self.reader.scaled))
        arrays: Arrays = {"pixels": np.stack(read)}
        size = picture_rows.squares(arrays["pixels"])
        return Prepared(arrays, size, digest(arrays), refused, aside=dict.fromkeys(params))

    def _sampling(self, params: Any) -> FrameSampling:
        if params.num_frames not in (None, self._num_frames):
            remedy = "leave `num_frames` out, and choose a `frame_sampling_rate`"
            raise InvalidInput(
                "params.num_frames", f"must be {self._num_frames}, the number that the model reads", remedy
            )
        return FrameSampling(self._num_frames, params.frame_sampling_rate)

    @cached_property
    def _num_frames(self) -> int:
        found = self.checkpoint.config.get("num_frames")
        if not isinstance(found, int) or found < 1:
            raise ConfigurationError(f"{self.where}: config.json has no num_frames, the number of frames to read")
        return found

    @cached_property
    def reader(self) -> FrameReader:
        return FrameReader(self.checkpoint)

    # --- in the device process ---

    def _inputs(self, batch: Array) -> Inputs:
        import torch

        normalized = self.reader.normalized(torch.from_numpy(batch).to(self._device).flatten(0, 1))
        values = normalized.view(*batch.shape[:2], *normalized.shape[1:])
        return {"pixel_values": values.to(self.networks.dtype)}
