"""The built-in style model: redraws photographs in trained styles, in one pass.

`workers.shipped_heads.vision.style_training` trains it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from producers.wire.catalogue import Task
from producers.wire.errors import InvalidInput
from producers.wire.kinds import KINDS
from producers.wire.kinds.pictures import StyleTransferParams
from workers.models.backends.choice import DTYPES
from workers.models.huggingface.checkpoint import Checkpoint
from workers.models.huggingface.checkpoint_model import read_for_each
from workers.models.interface import output_files
from workers.models.interface.model import Array, Arrays, Model, Prepared, digest
from workers.models.interface.options import Count, Options
from workers.models.pictures import picture_rows

if TYPE_CHECKING:
    import torch

#: Sizes inside the network are multiples of this.
_MULTIPLE = 4


class StyleOptions(Options, frozen=True):
    """Options of the style model. Pictures longer than `longest_side` are scaled down to it."""

    longest_side: Count = 768


class StyleModel(Model):
    """Tasks of the kind `style-transfer`."""

    options_class = StyleOptions
    options: StyleOptions
    kind = KINDS["style-transfer"]
    backends = ("torch",)

    # --- in the parent process ---

    @cached_property
    def revision(self) -> str:
        backend = self.spec.backend
        return self.spec.revision if backend.is_reference else f"{self.spec.revision}+{backend}"

    @cached_property
    def styles(self) -> tuple[str, ...]:
        """The names of the styles, in the order of their numbers."""
        return tuple(Checkpoint(self.spec.folder, self._where).config["styles"])

    def prepare(self, content: Any, params: Mapping[str, msgspec.Struct]) -> Prepared:
        """Decode a picture. Raises InvalidInput or InputTooLarge.

        The row has `pixels`, uint8 `(height, width, 3)`, and for each task `chosen/TASK`: the style's number and the
        strength, float32 `(2,)`.
        """
        longest = self.options.longest_side
        arrays: Arrays = {"pixels": picture_rows.read(content, most_pixels=longest**2, longest_side=longest)}
        chosen, refused = read_for_each(params, lambda _, own: self._chosen(own))
        for task, (style, strength) in chosen.items():
            arrays[f"chosen/{task}"] = np.array([style, strength], dtype=np.float32)
        size = picture_rows.squares(arrays["pixels"]) * len(chosen)
        return Prepared(arrays, size, digest(arrays), refused)

    def _chosen(self, params: msgspec.Struct) -> tuple[int, float]:
        assert isinstance(params, StyleTransferParams), "only this kind is served"
        name = self.styles[0] if params.style is None else params.style
        if name not in self.styles:
            problem = f"{name!r} is not a style of the model"
            raise InvalidInput("params.style", problem, f"choose {', '.join(self.styles)}")
        return self.styles.index(name), params.strength

    def collate(self, rows: Sequence[Prepared]) -> Arrays:
        none = np.zeros(2, dtype=np.float32)
        chosen = {
            f"chosen/{task}": np.stack([row.arrays.get(f"chosen/{task}", none) for row in rows])
            for task in self.spec.tasks
        }
        return picture_rows.collate(rows) | chosen

    def finish(self, task: Task, output: Array, params: msgspec.Struct, prepared: Prepared) -> Any:
        """Return the picture of a row that `picture_rows.packed` encoded."""
        assert isinstance(params, StyleTransferParams), "only this kind is served"
        return {"image": output_files.picture(picture_rows.unpacked(output), params.format)}

    @property
    def _where(self) -> str:
        return f"models.{self.spec.name}"

    # --- in the device process ---

    def load(self, device: str) -> None:
        from safetensors.torch import load_file

        from workers.models.built_in.vision.style_network import StyleNetwork

        self._device = device
        network = StyleNetwork(len(self.styles))
        network.load_state_dict(load_file(self.spec.folder / "model.safetensors"))
        self._network = network.eval().to(device, self._dtype)

    @property
    def _dtype(self) -> torch.dtype:
        import torch

        found: torch.dtype = getattr(torch, DTYPES[self.spec.backend.precision])
        return found

    def forward(self, arrays: Arrays, wanted: Mapping[str, Array]) -> Arrays:
        import torch

        outputs: dict[str, dict[int, Array]] = {task: {} for task in wanted}
        with torch.inference_mode():
            for rows, pictures in picture_rows.by_shape(arrays):
                for task, own in wanted.items():
                    places = [place for place, row in enumerate(rows) if row in own]
                    if places:
                        chosen = [rows[place] for place in places]
                        styled = self._styled(pictures[places], arrays[f"chosen/{task}"][chosen])
                        outputs[task].update(zip(chosen, styled, strict=True))
        return {task: picture_rows.packed([outputs[task][int(row)] for row in own]) for task, own in wanted.items()}

    def _styled(self, pictures: Array, wanted: Array) -> Array:
        """Return pictures of equal size, each in its own style and strength."""
        import torch
        from torch.nn import functional

        height, width = pictures.shape[1:3]
        rows = torch.from_numpy(pictures).to(self._device).permute(0, 3, 1, 2).to(self._dtype) / 255
        edges = (0, _padded_side(width) - width, 0, _padded_side(height) - height)
        numbers, strengths = torch.from_numpy(wanted.copy()).to(self._device).T
        drawn = self._network(functional.pad(rows, edges, mode="replicate"), numbers.long())[..., :height, :width]
        mixed = torch.lerp(rows.float(), drawn.float(), strengths[:, None, None, None])
        values = (mixed.clamp(0, 1) * 255).round().permute(0, 2, 3, 1).cpu().numpy()
        return np.asarray(values.astype(np.uint8))


def _padded_side(side: int) -> int:
    """Return the padded size of a side: mirrored edges need a few pixels to mirror."""
    return max(4 * _MULTIPLE, -(-side // _MULTIPLE) * _MULTIPLE)
