"""What the files of a diffusers folder say, read without diffusers or torch: for the parent process."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from producers.wire.errors import ConfigurationError

#: The pipelines whose steps are known here, whether they read a prompt, and how many steps they take unless told otherwise: at
#: most as many as the network was trained on.
PIPELINES = {"StableDiffusionPipeline": (True, 50), "DDPMPipeline": (False, 1000), "DDIMPipeline": (False, 50)}

#: Sizes of pictures made by way of an autoencoder are multiples of this.
_MULTIPLE = 8


@dataclass(frozen=True)
class Folder:
    """A folder with ``model_index.json``. `where` is the setting that names it."""

    path: Path
    where: str

    @cached_property
    def pipeline(self) -> str:
        """The pipeline's class. Raises ConfigurationError if its steps are not known here."""
        name = str(self._read("model_index.json").get("_class_name"))
        if name not in PIPELINES:
            raise ConfigurationError(f"{self.where}: {name} is not served; these are: {', '.join(PIPELINES)}")
        return name

    @property
    def reads_prompts(self) -> bool:
        return PIPELINES[self.pipeline][0]

    @cached_property
    def steps(self) -> int:
        usual = PIPELINES[self.pipeline][1]
        return min(usual, int(self._read("scheduler/scheduler_config.json").get("num_train_timesteps", usual)))

    @cached_property
    def size(self) -> tuple[int, int]:
        """Height and width of the pictures that the network was trained to make."""
        sample = self._read("unet/config.json")["sample_size"]
        height, width = (sample, sample) if isinstance(sample, int) else sample
        return height * self._scale, width * self._scale

    @cached_property
    def max_tokens(self) -> int:
        """How many tokens a prompt may have, its beginning and end among them."""
        return int(self._read("text_encoder/config.json")["max_position_embeddings"])

    @property
    def multiple(self) -> int | None:
        """What other sizes must be multiples of; None: there is no other."""
        return max(_MULTIPLE, self._scale) if self.reads_prompts else None

    @cached_property
    def _scale(self) -> int:
        """How many pixels a number of the latents stands for, in each direction."""
        if not self.reads_prompts:
            return 1
        blocks: list[Any] = self._read("vae/config.json")["block_out_channels"]
        return 1 << (len(blocks) - 1)

    def _read(self, name: str) -> dict[str, Any]:
        try:
            value: dict[str, Any] = json.loads((self.path / name).read_text("utf-8"))
        except (OSError, ValueError) as error:
            remedy = "pull it (argosy models pull), or name a folder that diffusers wrote"
            raise ConfigurationError(f"{self.where}: {error}; {remedy}") from error
        return value
