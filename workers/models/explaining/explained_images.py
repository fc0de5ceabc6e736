"""Explanations of image models: the line leads through the pixels, from an image of a single colour."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from producers.wire.kinds.explanation import Area, Explanation, PixelMap
from workers.models.built_in.vision.vision_model import VisionModel
from workers.models.explaining.subject import Attribution, IntegrationPath, M, Points, Subject
from workers.models.huggingface.vision.image_heads import ImageClassification
from workers.models.huggingface.vision.image_models import ImageModel
from workers.models.interface.model import SCORE_DIGITS, Arrays, Prepared
from workers.models.pictures import pixels

if TYPE_CHECKING:
    import torch

#: The approximate side of a field in the network's pixels. Contributions of single pixels are noise.
FIELD = 16

_MEAN = "all in the mean colour of the training"


class ImageSubject(Subject[M]):
    """The base of both kinds of image models."""

    @abstractmethod
    def _seen(self, content: bytes) -> Area:
        """Return the part of an image that the network sees, in pixels of the original image."""

    @abstractmethod
    def _values(self, image: torch.Tensor) -> torch.Tensor:
        """Return the network's input `(1, 3, height, width)` for an image's pixels `(1, height, width, 3)`."""

    @abstractmethod
    def _logits(self, values: torch.Tensor, rows: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Run the network over `(rows, 3, height, width)`, and return each task's logits for its rows."""

    @property
    @abstractmethod
    def _baseline(self) -> str:
        """A description of an input of zeros, for users."""

    # --- in the parent process ---

    def about(self, task: str, content: Any, params: Any, prepared: Prepared) -> tuple[Arrays, Any]:
        return {}, self._seen(content)

    def told(self, measured: Attribution, about: Any, *, steps: int) -> Explanation:
        rows = [[round(value, SCORE_DIGITS) for value in row] for row in measured.contributions.tolist()]
        return Explanation(
            method="integrated-gradients",
            baseline=self._baseline,
            value=round(measured.value, SCORE_DIGITS),
            base=round(measured.base, SCORE_DIGITS),
            steps=steps,
            delta=round(float(measured.contributions.sum()) - (measured.value - measured.base), SCORE_DIGITS),
            map=PixelMap(about, tuple(map(tuple, rows))),
        )

    # --- in the device process ---

    def line(self, task: str, row: Arrays, about: Arrays) -> IntegrationPath:
        import torch

        with torch.no_grad():
            x = self._values(torch.from_numpy(row["pixels"].copy()).unsqueeze(0).to(self.device))[0]
        return IntegrationPath(task, x, torch.zeros_like(x))

    def along(self, line: IntegrationPath, other: IntegrationPath) -> bool:
        return line.x.shape == other.x.shape

    def log_odds(self, points: Sequence[Points]) -> torch.Tensor:
        import torch

        values = torch.cat([own.values for own in points])
        return self.odds(points, lambda rows: self._logits(values, rows))

    def condensed(self, contributions: torch.Tensor) -> torch.Tensor:
        """Return the sums over the fields of the image, whose sides are near `FIELD` pixels and divide it evenly."""
        import torch

        by_pixel = contributions.sum(0)
        down, across = (_edges(int(size)) for size in by_pixel.shape)
        sums = torch.stack([by_pixel[a:b].sum(0) for a, b in itertools.pairwise(down)])
        return torch.stack([sums[:, a:b].sum(1) for a, b in itertools.pairwise(across)], 1)


class OwnImages(ImageSubject[VisionModel]):
    """The built-in vision model."""

    @property
    def tasks(self) -> Mapping[str, Sequence[str]]:
        tasks = self.model.spec.tasks.values()
        return {task.name: self.model.labels(task) for task in tasks if task.kind.name == "image-classification"}

    def _seen(self, content: bytes) -> Area:
        width, height = pixels.upright_size(content)
        side = pixels.centre_side(width, height)
        return _area((width - side) / 2, (height - side) / 2, side, side)

    def _values(self, image: torch.Tensor) -> torch.Tensor:
        values: torch.Tensor = self.model.module.normalized(image)
        return values

    def cost(self, line: IntegrationPath) -> int:
        return 1

    def _logits(self, values: torch.Tensor, rows: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        logits: torch.Tensor = self.model.module.network(pixel_values=values).logits
        return {task: logits.index_select(0, own) for task, own in rows.items()}

    @property
    def _baseline(self) -> str:
        return _MEAN


class FolderImages(ImageSubject[ImageModel]):
    """Any Hugging Face image classifier."""

    @property
    def tasks(self) -> Mapping[str, Sequence[str]]:
        heads = self.model.heads.items()
        return {task: head.checkpoint.labels for task, head in heads if isinstance(head, ImageClassification)}

    def _seen(self, content: bytes) -> Area:
        width, height = pixels.upright_size(content)
        return _area(*self.model.reader.seen(width, height))

    def _values(self, image: torch.Tensor) -> torch.Tensor:
        return self.model.reader.normalized(image).to(self.model.networks.dtype)

    def cost(self, line: IntegrationPath) -> int:
        return max(1, line.x.shape[1] * line.x.shape[2] // 1024)

    def _logits(self, values: torch.Tensor, rows: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        found = self.model.networks.run({"pixel_values": values}, rows)
        return {task: output.logits for task, output in found.items()}

    def rivals(self, task: str) -> bool:
        head = self.model.heads[task]
        assert isinstance(head, ImageClassification), "only classification is explained"
        return head.function == "softmax"

    @property
    def _baseline(self) -> str:
        return _MEAN if self.model.reader.centres else "black"


def _area(left: float, top: float, width: float, height: float) -> Area:
    return Area(*(round(value, 2) for value in (left, top, left + width, top + height)))


def _edges(size: int) -> list[int]:
    edges: list[int] = np.linspace(0, size, max(1, round(size / FIELD)) + 1).round().astype(int).tolist()
    return edges
