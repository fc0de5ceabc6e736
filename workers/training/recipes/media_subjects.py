"""Pictures, clips and recordings for backbones of Hugging Face, as the worker's own models read them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from producers.wire.errors import ConfigurationError
from workers.models.huggingface.checkpoint import Checkpoint
from workers.models.huggingface.network_calls import call
from workers.models.interface.model import Array, Arrays
from workers.models.speech import waves
from workers.models.speech.features import LogMel, Raw
from workers.training.kinds.labelled_kind import LabelledKind
from workers.training.kinds.shared_network import TaskNetwork
from workers.training.loop.training_subject import Part
from workers.training.recipes.folder_subject import ReadRow, TrainedFolder
from workers.training.recipes.labelled_rows import LabelledRow


class LogitsTask(TaskNetwork):
    """A task whose head of transformers returns logits."""

    def values(self, features: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        module: Any = self.module
        getattr(module, module.base_model_prefix).output = features
        found: torch.Tensor = call(module, inputs).logits.float()
        return found


class TrainedMedia(TrainedFolder):
    """Files of one network input each. A subclass writes `inputs`."""

    settings = ("backbone", "sharing", "lora_rank")
    task_network = LogitsTask
    usual_backbone = ""

    def begin(self, rows: Mapping[Part, Sequence[LabelledRow]]) -> None:
        super().begin(rows)
        self.check()

    @abstractmethod
    def check(self) -> None:
        """Raise ConfigurationError for a backbone whose inputs do not share a pass."""

    @abstractmethod
    def inputs(self, rows: Sequence[Arrays]) -> Arrays:
        """Return the backbone's arguments for rows as the worker reads them."""

    def complete(self, backbone: Any, missing: Sequence[str]) -> None:
        """Take away a pooler without weights that the heads of the architecture do not read."""
        if missing and all(name.startswith("pooler.") for name in missing):
            import transformers

            auto = next(iter(self.model.heads.values())).auto
            with torch.device("meta"):
                whole = getattr(transformers, auto).from_config(backbone.config)
            if getattr(whole.base_model, "pooler", None) is None:
                backbone.pooler, missing = None, ()
        super().complete(backbone, missing)

    def read(self, row: LabelledRow, kinds: Sequence[LabelledKind]) -> ReadRow:
        return self.read_input(row, kinds, kinds[0].content(row.columns, row.origin))

    def collate(self, rows: Sequence[ReadRow]) -> tuple[Arrays, Arrays]:
        return self.inputs([row.arrays for row in rows]), self.places(rows)

    def answer(self, kind: LabelledKind, outputs: Array, aside: Any) -> Any:
        return super().answer(kind, outputs[0], None)


class TrainedImages(TrainedMedia):
    """Pictures, all scaled to the same size."""

    def check(self) -> None:
        if self.model.reader.only_shape is None:
            problem = f"{self.backbone} scales pictures to different sizes, which cannot share a pass"
            raise ConfigurationError(f"train.backbone: {problem}; name a backbone of one size")

    def inputs(self, rows: Sequence[Arrays]) -> Arrays:
        pixels = torch.from_numpy(np.stack([row["pixels"] for row in rows]))
        return {"pixel_values": self.model.reader.normalized(pixels).numpy()}


class TrainedClips(TrainedImages):
    """Clips, sampled to the number of frames that the backbone reads."""

    def inputs(self, rows: Sequence[Arrays]) -> Arrays:
        pixels = torch.from_numpy(np.stack([row["pixels"] for row in rows]))
        values = self.model.reader.normalized(pixels.flatten(0, 1))
        return {"pixel_values": values.view(*pixels.shape[:2], *values.shape[1:]).numpy()}


class TrainedRecordings(TrainedMedia):
    """Recordings, as spectra, or as samples with a mask."""

    def check(self) -> None:
        config = Checkpoint(self.backbone, "train.backbone").config
        if isinstance(self.model.extractor, Raw) and len(waves.together([16_000, 16_001], config)) > 1:
            problem = f"{self.backbone} has no mask for padding: an answer would depend on the other rows of a pass"
            remedy = "name one of feat_extract_norm = 'layer', or one that reads spectra"
            raise ConfigurationError(f"train.backbone: {problem}; {remedy}")

    def inputs(self, rows: Sequence[Arrays]) -> Arrays:
        extractor, sounds = self.model.extractor, [row["sound"] for row in rows]
        if not isinstance(extractor, Raw):
            whole = [extractor.filled(sound) for sound in sounds] if isinstance(extractor, LogMel) else sounds
            return {extractor.name: np.stack(whole)}
        return {name: own.numpy() for name, own in waves.tensors(sounds, "cpu", torch.float32).items()}
