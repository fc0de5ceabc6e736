"""Any CTC checkpoint, which emits a letter per frame (Graves et al., 2006): Wav2Vec2, HuBERT, WavLM …"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from producers.wire.catalogue import Task
from producers.wire.errors import ConfigurationError, InvalidInput
from producers.wire.kinds.audio import SpeechRecognitionParams
from workers.models.huggingface.checkpoint import Checkpoint
from workers.models.interface.model import Array
from workers.models.speech import features, waveform, waves
from workers.models.speech.recognition import Recognition, RecognitionModel
from workers.models.speech.recordings import Window

logger = logging.getLogger(__name__)

#: The folder of a model of words, for a decoder that weighs them (Wav2Vec2ProcessorWithLM).
_LANGUAGE_MODEL = "language_model"

#: Longer recordings are cut, because the cost of attention grows with the square of the length.
_LONGEST_S = 30


class CtcModel(RecognitionModel):
    """Windows of up to 30 s, with a letter per frame."""

    BETWEEN = " "
    default_cost = 60 * waves.COSTS_PER_S

    # --- in the parent process ---

    def _head(self, task: Task, checkpoint: Checkpoint) -> Recognition:
        return Recognition(task, checkpoint, "AutoModelForCTC", self.BETWEEN)

    def settings(self, params: SpeechRecognitionParams) -> dict[str, Any]:
        for name in ("language", "task"):
            if getattr(params, name) is not None:
                raise InvalidInput(f"params.{name}", "is only for multilingual Whisper models", "leave it out")
        return {"timestamps": "word" if params.return_timestamps is True else params.return_timestamps}

    @property
    def longest(self) -> int:
        return _LONGEST_S * self._extractor.rate

    def sound(self, samples: waveform.Samples) -> tuple[Array, int]:
        if not isinstance(self._extractor, features.Raw):
            raise ConfigurationError(f"{self.where}: a CTC network that does not read samples is not supported")
        return self._extractor(samples), len(samples)

    def size(self, lengths: Sequence[int]) -> int:
        return waves.cost(sum(lengths), self._extractor.rate)

    # --- in the device process ---

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.spec.folder, local_files_only=True, trust_remote_code=False)

    def load(self, device: str) -> None:
        super().load(device)
        _ = self._tokenizer
        if (self.spec.folder / _LANGUAGE_MODEL).is_dir():
            told = "is not used: letters are the likeliest of each frame, as in transformers without pyctcdecode"
            logger.warning("%s: the folder's %s %s", self.where, _LANGUAGE_MODEL, told)

    def hear(self, windows: Sequence[Window], settings: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Any]]]:
        heard: list[tuple[str, list[Any]]] = [("", []) for _ in windows]
        for group in waves.together([window.length for window in windows], self.checkpoint.config):
            inputs = waves.tensors([windows[n].sound for n in group], self._device, self.networks.dtype)
            best = self.networks.only(**inputs).logits.argmax(-1).cpu().numpy()
            for n, letters in zip(group, best, strict=True):
                own = letters[: waves.frames(windows[n].length, self.checkpoint.config)]
                heard[n] = self._read(own, settings[n]["timestamps"])
        return heard

    def _read(self, letters: Array, timestamps: str | bool) -> tuple[str, list[Any]]:
        """Return the text of a window's frames, and its words or characters with their times."""
        tokenizer = self._tokenizer
        if not timestamps:
            return str(tokenizer.decode(letters)), []
        found = tokenizer.decode(letters, output_char_offsets=True)
        offsets = found["char_offsets"]
        if timestamps == "word":
            offsets = tokenizer._get_word_offsets(offsets, tokenizer.replace_word_delimiter_char)  # noqa: SLF001
        frame_s = float(np.prod(self.checkpoint.config["conv_stride"])) / self._extractor.rate
        times = [(float(one["start_offset"]) * frame_s, float(one["end_offset"]) * frame_s) for one in offsets]
        chunks = [(one[timestamps], *own) for one, own in zip(offsets, times, strict=True)]
        return str(found["text"]), chunks
