"""Any Hugging Face image model that answers in one pass. Images that are scaled to one size go through together, unpadded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from producers.catalogue import Task
from producers.errors import ConfigurationError, InvalidInput
from workers.models import pixels, samples
from workers.models.huggingface import image_heads, ragged
from workers.models.huggingface.checkpoint import Checkpoint
from workers.models.huggingface.image_heads import Image, ImageHead
from workers.models.huggingface.images import ImageReader
from workers.models.huggingface.serving import FolderModel
from workers.models.model import Array, Arrays, Prepared, digest

if TYPE_CHECKING:
    import torch

    from workers.models.huggingface.exported import Inputs

HEADS: Mapping[str, type[ImageHead]] = {
    "image-classification": image_heads.ImageClassification,
    "image-feature-extraction": image_heads.ImageFeatureExtraction,
    "object-detection": image_heads.ObjectDetection,
    "image-segmentation": image_heads.ImageSegmentation,
}

#: A row's size is counted in squares of 32 x 32 pixels, so that large images are costly and like goes to like.
_SQUARE = 32 * 32


class ImageModel(FolderModel[ImageHead]):
    """Options: `max_image_pixels`, `heads` (folders by task), `function_to_apply` (by task), `pooling`."""

    OPTIONS = ("max_image_pixels", "heads", "function_to_apply", "pooling")

    tunable = True
    backends = ("torch", "openvino", "onnxruntime")

    # --- in the parent process ---

    @cached_property
    def revision(self) -> str:
        self.reader.check_settings()
        return super().revision

    def prepare(self, content: Any, params: Mapping[str, msgspec.Struct]) -> Prepared:
        """Decode and scale an image. The row is `pixels`, uint8 `(height, width, 3)`, with what heads need besides."""
        if not isinstance(content, bytes):
            raise InvalidInput("input", f"must be the bytes of an image file, not {type(content).__name__}")
        scaled, original = self.reader.read(content)
        arrays: Arrays = {"pixels": scaled}
        if any(self.heads[task].needs_size for task in params):
            arrays["size"] = np.array(original, dtype=np.int32)
        for task, chosen in params.items():
            if self.heads[task].needs_params:
                arrays[f"params/{task}"] = np.frombuffer(msgspec.msgpack.encode(chosen), dtype=np.uint8)
        return Prepared(arrays, _squares(scaled), digest(arrays), aside=dict.fromkeys(params))

    def collate(self, rows: Sequence[Prepared]) -> Arrays:
        """Put the rows' pixels behind one another, with their `shapes`, the images' `sizes`, and parameters by task."""
        nothing = np.zeros(0, dtype=np.uint8)
        batch = {
            "pixels": np.concatenate([row.arrays["pixels"].ravel() for row in rows]),
            "shapes": np.array([row.arrays["pixels"].shape[:2] for row in rows], dtype=np.int64),
            "sizes": np.array([row.arrays.get("size", (0, 0)) for row in rows], dtype=np.int64),
        }
        for task, head in self.heads.items():
            if head.needs_params:
                name = f"params/{task}"
                batch[name] = ragged.pack([row.arrays.get(name, nothing).tobytes() for row in rows])
        return batch

    def trial(self, count: int) -> list[samples.Item]:
        return samples.for_all(samples.images(max(2, count // 2)), self.spec.tasks)

    @cached_property
    def budgets(self) -> tuple[int, ...]:  # type: ignore[override]
        """One usual image, and a few of them."""
        [image] = samples.images(1)
        squares = _squares(self.reader.read(image)[0])
        return tuple(squares * images for images in (1, 2, 4, 8, 16, 32))

    def _head(self, task: Task, checkpoint: Checkpoint) -> ImageHead:
        return HEADS[task.kind.name](task, checkpoint, self.spec.options)

    @cached_property
    def reader(self) -> ImageReader:
        limit = int(self.spec.options.get("max_image_pixels", pixels.MAX_PIXELS))
        return ImageReader(self.checkpoint, limit)

    # --- in the device process ---

    @cached_property
    def _processor(self) -> Any:
        from transformers import AutoImageProcessor

        return AutoImageProcessor.from_pretrained(
            self.spec.folder, local_files_only=True, trust_remote_code=False, backend="pil"
        )

    def load(self, device: str) -> None:
        self.reader.check(self._processor)
        super().load(device)

    def _examples(self) -> tuple[Inputs, Inputs]:
        shape = self.reader.only_shape
        if shape is None:
            problem = "images are scaled to shapes of their own, and a trace holds for one"
            raise ConfigurationError(f"{self.where}.backend: {problem}; torch runs this model")
        pixels_of = np.random.default_rng(0).integers(0, 255, (3, *shape, 3), dtype=np.uint8)
        few, many = (self._inputs(pixels_of[:rows]) for rows in (2, 3))
        return few, many

    def forward(self, arrays: Arrays, wanted: Mapping[str, Array]) -> Arrays:
        import torch

        images = _split(arrays)
        found: dict[str, dict[int, Array]] = {task: {} for task in wanted}
        groups: dict[tuple[int, ...], list[int]] = {}
        for row, image in enumerate(images):
            groups.setdefault(image.shape, []).append(row)
        with torch.inference_mode():
            for group in groups.values():
                chosen = {task: [row for row in group if row in rows] for task, rows in wanted.items()}
                batch = np.stack([images[row] for row in group])
                self._run(arrays, batch, group, {task: rows for task, rows in chosen.items() if rows}, found)
        return {task: _stacked([found[task][int(row)] for row in rows]) for task, rows in wanted.items()}

    def _run(
        self,
        arrays: Arrays,
        batch: Array,
        group: Sequence[int],
        chosen: Mapping[str, Sequence[int]],
        found: dict[str, dict[int, Array]],
    ) -> None:
        """Run one pass over images of one shape, and each wanted head over those of them that it needs."""
        import torch

        inputs = self._inputs(batch)
        places = {task: [group.index(row) for row in rows] for task, rows in chosen.items()}
        rows = {task: torch.tensor(own, device=self._device) for task, own in places.items()}
        for task, output in self.networks.run(inputs, rows).items():
            about = [self._about(arrays, task, row) for row in chosen[task]]
            results = self.heads[task].compute(output, about, self._processor)
            found[task].update(zip(chosen[task], results, strict=True))

    def _inputs(self, batch: Array) -> dict[str, torch.Tensor]:
        import torch

        values = self.reader.normalized(torch.from_numpy(batch).to(self._device))
        return {"pixel_values": values.to(self.networks.dtype)}

    def _about(self, arrays: Arrays, task: str, row: int) -> Image:
        height, width = arrays["sizes"][row].tolist()
        own = arrays.get(f"params/{task}")
        return Image((height, width), b"" if own is None else ragged.unpack(own[row]))


def _squares(scaled: Array) -> int:
    height, width = scaled.shape[:2]
    return max(1, int(height * width) // _SQUARE)


def _split(arrays: Arrays) -> list[Array]:
    counts = arrays["shapes"].prod(axis=1) * 3
    ends = np.cumsum(counts)
    return [
        arrays["pixels"][end - count : end].reshape(*shape, 3)
        for end, count, shape in zip(ends, counts, arrays["shapes"], strict=True)
    ]


def _stacked(outputs: Sequence[Array]) -> Array:
    """Return outputs as rows of one array, with zeros behind the shorter ones."""
    longest = tuple(max(sizes) for sizes in zip(*(output.shape for output in outputs), strict=True))
    rows = np.zeros((len(outputs), *longest), dtype=outputs[0].dtype)
    for row, output in zip(rows, outputs, strict=True):
        row[tuple(slice(size) for size in output.shape)] = output
    return rows
