"""The settings in the files of a diffusers folder, read without diffusers or torch for the parent process."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from producers.wire.errors import ConfigurationError

#: The supported pipelines: whether they read prompts, and their default number of steps, which is limited to the
#: number that the network was trained with.
PIPELINES = {"StableDiffusionPipeline": (True, 50), "DDPMPipeline": (False, 1000), "DDIMPipeline": (False, 50)}

#: The sizes of pictures from an autoencoder are multiples of this.
_MULTIPLE = 8


@dataclass(frozen=True)
class Folder:
    """A folder with ``model_index.json``. `where` is the setting that names it."""

    path: Path
    where: str

    @cached_property
    def pipeline(self) -> str:
        """The pipeline's class. Raises ConfigurationError if it is not supported."""
        name = str(self._read("model_index.json").get("_class_name"))
        if name not in PIPELINES:
            raise ConfigurationError(f"{self.where}: {name} is not supported; use one of {', '.join(PIPELINES)}")
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
        """The height and width that the network was trained on."""
        sample = self._read("unet/config.json")["sample_size"]
        height, width = (sample, sample) if isinstance(sample, int) else sample
        return height * self._scale, width * self._scale

    @cached_property
    def max_tokens(self) -> int:
        """The most tokens of a prompt, including its start and end tokens."""
        return int(self._read("text_encoder/config.json")["max_position_embeddings"])

    @property
    def multiple(self) -> int | None:
        """The number that sizes must be multiples of, or None if only `size` is supported."""
        return max(_MULTIPLE, self._scale) if self.reads_prompts else None

    @cached_property
    def _scale(self) -> int:
        """The number of pixels per latent value in each direction."""
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
