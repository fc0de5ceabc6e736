"""The model of a text with an image: the text model's encoder, the vision model's encoder, and a head over both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import msgspec
import numpy as np
from msgspec import field

from producers.wire.catalogue import Task
from producers.wire.errors import ConfigurationError, InvalidInput
from producers.wire.messages import InlineBytes, TextAndImageInput
from workers.models.backends.choice import Name
from workers.models.built_in.multitask import head_file
from workers.models.built_in.multitask.multitask_model import MultiTaskModel
from workers.models.built_in.text.text_model import TextModel
from workers.models.built_in.vision.vision_model import VisionModel
from workers.models.interface.model import SCORE_DIGITS, Array, Arrays, Model, ModelSpec, Prepared, digest
from workers.models.interface.options import Count, Options, Table
from workers.models.pictures import pixels

if TYPE_CHECKING:
    import torch

    from workers.models.built_in.fused.fused_network import FusedHead

#: The cost of an image, in tokens.
_IMAGE_COST = 32

#: The encoder's layer that the head reads.
_LAST_LAYER = "tokens.6"


class _TextPart(TextModel):
    """The text model's backbone; the head reads its last layer."""

    def _network(self) -> torch.nn.Module:
        from workers.models.built_in.text.text_network import TextEncoder

        return TextEncoder(self.spec.folder, {_LAST_LAYER}).eval()


class _ImagePart(VisionModel):
    """The vision model's backbone; the head reads its last layer, place by place."""

    def _network(self) -> torch.nn.Module:
        from workers.models.built_in.vision.vision_network import VisionEncoder

        return VisionEncoder(self.spec.folder, {"places"}).eval()


class FusedOptions(Options, frozen=True):
    """Options of the fused model. `uses` has the folders of the two parts; the other options are passed to the
    parts.
    """

    uses: Table = field(default_factory=dict)
    max_tokens: Count | None = None
    max_image_pixels: Count = pixels.MAX_PIXELS


class FusedModel(Model):
    """A head over the weights of two models.

    The model's folder holds the head. The settings name the two models: `uses` = ``{ text = …, vision = … }``.
    """

    options_class = FusedOptions
    options: FusedOptions

    tunable = True
    backends = get_args(Name)
    budgets = (256, 512, 1024, 2048)

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self._device = "cpu"
        self._head: FusedHead

    @cached_property
    def _text_part(self) -> _TextPart:
        return _TextPart(self._part("text", _TextPart))

    @cached_property
    def _image_part(self) -> _ImagePart:
        return _ImagePart(self._part("vision", _ImagePart))

    def _part(self, role: str, class_: type[MultiTaskModel]) -> ModelSpec:
        if role not in self.options.uses:
            problem = f"names no model for {role!r}; it needs {{ text = …, vision = … }}"
            raise ConfigurationError(f"models.{self.spec.name}.uses: {problem}")
        theirs = class_.options_class.__struct_fields__
        own = {name: value for name, value in self.spec.options.items() if name in theirs}
        folder = Path(self.options.uses[role])
        return replace(self.spec, name=f"{self.spec.name}-{role}", folder=folder, tasks={}, options=own)

    # --- in the parent process ---

    @cached_property
    def revision(self) -> str:
        _ = self.labels, self._text_part, self._image_part  # report wrong settings when the worker starts
        weights = f"{self.spec.revision}+head.{head_file.digest([self._file])}"
        return weights if self.spec.backend.is_reference else f"{weights}+{self.spec.backend}"

    def prepare(self, content: Any, params: Mapping[str, msgspec.Struct]) -> Prepared:
        """Tokenise the text and decode the image. Errors name the part at fault."""
        if not isinstance(content, TextAndImageInput) or not isinstance(content.image, InlineBytes):
            raise InvalidInput("input", "must be an object with text and image", "see `argosy tasks`")
        with _part_named("text"):
            text = self._text_part.prepare(content.text, params)
        with _part_named("image"):
            image = self._image_part.prepare(content.image.data, {})
        arrays = text.arrays | image.arrays
        return Prepared(arrays, text.size + _IMAGE_COST, digest(arrays), aside=image.content)

    def collate(self, rows: Sequence[Prepared]) -> Arrays:
        """Pad the texts, and stack each distinct image once. `image_of` has the index of each text's image."""
        batch = self._text_part.collate(rows)
        places: dict[bytes, int] = {}
        distinct: list[Array] = []
        for row in rows:
            if places.setdefault(row.aside, len(distinct)) == len(distinct):
                distinct.append(row.arrays["pixels"])
        image_of = np.array([places[row.aside] for row in rows], dtype=np.int64)
        return batch | {"pixels": np.stack(distinct), "image_of": image_of}

    def finish(self, task: Task, output: Array, params: Any, prepared: Prepared) -> list[dict[str, Any]]:
        """Return the best answers of probabilities `(answers,)`."""
        best = np.argsort(-output, kind="stable")[: params.top_k]
        return [{"answer": self.labels[n], "score": round(float(output[n]), SCORE_DIGITS)} for n in best]

    @cached_property
    def labels(self) -> tuple[str, ...]:
        return head_file.read_labels(self._file)

    @property
    def _file(self) -> Path:
        return self.spec.folder / head_file.FILE

    # --- in the device process ---

    def load(self, device: str) -> None:
        from safetensors.torch import load_file

        from workers.models.built_in.fused.fused_network import FusedHead

        self._device = device
        self._text_part.load(device)
        self._image_part.load(device)
        tensors = load_file(self._file)
        fused = FusedHead.of_shape(tensors)
        fused.load_state_dict(tensors)
        self._head = fused.eval().to(device)

    def forward(self, arrays: Arrays, wanted: Mapping[str, Array]) -> Arrays:
        import torch

        with torch.inference_mode():
            # shared memory may be read-only, and torch would write to it all the same
            given = {name: torch.from_numpy(array.copy()).to(self._device) for name, array in arrays.items()}
            tokens = self._text_part.encode({"ids": given["ids"], "mask": given["mask"]})[_LAST_LAYER]
            shown = self._head.seen(self._image_part.encode({"pixels": given["pixels"]})["places"])
            scores = self._head(tokens, given["mask"], shown.index_select(0, given["image_of"])).softmax(-1)
        found: Array = scores.float().cpu().numpy()
        return {task: found[rows] for task, rows in wanted.items()}


@contextmanager
def _part_named(part: str) -> Iterator[None]:
    try:
        yield
    except InvalidInput as error:
        raise error.of_part(part) from error
