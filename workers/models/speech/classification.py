"""Any Hugging Face audio classifier: speakers, languages, emotions, sounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec
import numpy as np

from producers.wire.catalogue import Task
from producers.wire.errors import ConfigurationError
from producers.wire.kinds.audio import AudioClassificationParams
from workers.models.huggingface.checkpoint import Checkpoint
from workers.models.huggingface.checkpoint_model import FolderModel, HeadOptions
from workers.models.huggingface.text.label_heads import FUNCTIONS
from workers.models.huggingface.text_head import best_labels
from workers.models.interface.model import Array, Arrays, Prepared, digest
from workers.models.interface.options import Positive
from workers.models.speech import features, waveform, waves
from workers.models.speech.features import LogMel, Raw
from workers.models.speech.recognition import decoded

#: The cost of a spectrum, whose size is fixed, in tenths of a second.
_SPECTRUM_COST = 100


class AudioOptions(HeadOptions, frozen=True):
    """A recording over `max_audio_s` is refused; it is not cut into windows. Of a spectrum, the network gets the first
    part, up to its input length, as in transformers.
    """

    max_audio_s: Positive = 60.0


@dataclass(frozen=True)
class AudioClassification:
    """Labels with their scores."""

    task: Task
    checkpoint: Checkpoint
    options: AudioOptions
    auto = "AutoModelForAudioClassification"

    def check(self) -> None:
        waveform.require()
        if self._function not in FUNCTIONS:
            where = f"{self.checkpoint.where}.options.function_to_apply.{self.task.name}"
            raise ConfigurationError(f"{where}: must be one of {', '.join(FUNCTIONS)}, not {self._function!r}")

    @property
    def _function(self) -> str:
        """The function from raw output to scores."""
        return str(self.options.function_to_apply.get(self.task.name, self.checkpoint.function_of_recordings))

    def finish(self, output: Array, params: AudioClassificationParams, aside: Any) -> Any:
        return best_labels(self.checkpoint.labels, FUNCTIONS[self._function](output), params.top_k)


class AudioModel(FolderModel[AudioClassification]):
    """Labels of whole recordings. Recordings of equal length, or spectra, share a pass."""

    options_class = AudioOptions
    options: AudioOptions
    READERS = ("AutoFeatureExtractor",)
    default_cost = 60 * waves.COSTS_PER_S

    # --- in the parent process ---

    @cached_property
    def revision(self) -> str:
        _ = self.extractor
        return super().revision

    def prepare(self, content: Any, params: Mapping[str, msgspec.Struct]) -> Prepared:
        """Decode a recording. The row is ``sound``, samples or a spectrum."""
        samples = decoded(content, self.extractor.rate, self.options.max_audio_s)
        if isinstance(self.extractor, Raw):
            waves.check_length(len(samples), self.checkpoint.config)
        arrays = {"sound": self.extractor(samples)}
        size = waves.cost(len(samples), self.extractor.rate) if isinstance(self.extractor, Raw) else _SPECTRUM_COST
        return Prepared(arrays, size, digest(arrays), aside=dict.fromkeys(params))

    def collate(self, rows: Sequence[Prepared]) -> Arrays:
        """Concatenate the rows' sounds, with their `shapes`."""
        sounds = [row.arrays["sound"] for row in rows]
        shapes = [sound.shape if sound.ndim == 2 else (1, len(sound)) for sound in sounds]
        return {
            "sound": np.concatenate([sound.ravel() for sound in sounds]),
            "shapes": np.array(shapes, dtype=np.int64),
        }

    def _head(self, task: Task, checkpoint: Checkpoint) -> AudioClassification:
        return AudioClassification(task, checkpoint, self.options)

    @cached_property
    def extractor(self) -> features.Extractor:
        return features.extractor(self.checkpoint)

    # --- in the device process ---

    def load(self, device: str) -> None:
        features.check(self.extractor, self.spec.folder, self.where)
        super().load(device)

    def forward(self, arrays: Arrays, wanted: Mapping[str, Array]) -> Arrays:
        import torch

        ends = np.cumsum(arrays["shapes"].prod(axis=1))
        sounds = [
            own.reshape(shape)
            for own, shape in zip(np.split(arrays["sound"], ends[:-1]), arrays["shapes"], strict=True)
        ]
        found: dict[str, dict[int, Array]] = {task: {} for task in wanted}
        with torch.inference_mode():
            for group in self._together(sounds):
                chosen = {task: [row for row in group if row in rows] for task, rows in wanted.items()}
                rows = {
                    task: torch.tensor([group.index(row) for row in own], device=self._device)
                    for task, own in chosen.items()
                    if own
                }
                inputs = self._inputs([sounds[row] for row in group])
                for task, output in self.networks.run(inputs, rows).items():
                    found[task].update(zip(chosen[task], output.logits.float().cpu().numpy(), strict=True))
        return {task: np.stack([found[task][int(row)] for row in rows]) for task, rows in wanted.items()}

    def _together(self, sounds: Sequence[Array]) -> list[list[int]]:
        if not isinstance(self.extractor, Raw):
            return [list(range(len(sounds)))]
        lengths = [sound.shape[1] for sound in sounds]
        return waves.together(lengths, self.checkpoint.config, equal_lengths=self.equal_lengths)

    def _inputs(self, sounds: Sequence[Array]) -> dict[str, Any]:
        import torch

        dtype = self.networks.dtype
        if isinstance(self.extractor, Raw):
            return waves.tensors([sound[0] for sound in sounds], self._device, dtype)
        whole = [self.extractor.filled(sound) for sound in sounds] if isinstance(self.extractor, LogMel) else sounds
        return {self.extractor.name: torch.from_numpy(np.stack(whole)).to(self._device, dtype)}
