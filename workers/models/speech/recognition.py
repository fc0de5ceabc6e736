"""The base class of speech recognition: recordings of any length, cut into windows at pauses."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from producers.wire.catalogue import Task
from producers.wire.errors import ConfigurationError, InvalidInput
from producers.wire.kinds.audio import SpeechRecognitionParams
from workers.models.huggingface.checkpoint import Checkpoint
from workers.models.huggingface.checkpoint_model import FolderModel, FolderOptions, read_for_each
from workers.models.interface import ragged
from workers.models.interface.model import Array, Arrays, Prepared, digest
from workers.models.interface.options import Positive, Text
from workers.models.speech import features, recordings, voice, waveform
from workers.models.speech.recordings import Window
from workers.models.speech.voice import Span


class RecognitionOptions(FolderOptions, frozen=True):
    """Recordings over `max_audio_s` are refused: an item is computed in one batch, which has a time limit. `voice` is
    the folder of Silero's weights, by default the model's own folder.
    """

    max_audio_s: Positive = 1800.0
    voice: Text | None = None


@dataclass(frozen=True)
class Recognition:
    """A speech recognition task. `between` separates the texts of two windows."""

    task: Task
    checkpoint: Checkpoint
    auto: str
    between: str

    def check(self) -> None:
        """Raise ConfigurationError if the libraries for audio files are not installed."""
        waveform.require()

    def finish(self, output: Array, params: SpeechRecognitionParams, aside: Sequence[float]) -> Any:
        """Join the windows' texts. `aside` has the recording's length and each window's start, in seconds."""
        heard = ragged.unpack(output)
        duration_s, *starts_s = aside
        found: dict[str, Any] = {"text": self.between.join(text for text, _ in heard if text)}
        if params.return_timestamps:
            found["chunks"] = [
                {"text": text, "timestamp": [_at(start, begins_s), _at(end, begins_s)], **_details(more, begins_s)}
                for begins_s, (_, chunks) in zip(starts_s, heard, strict=True)
                for text, start, end, *more in chunks
            ]
        if params.return_details:
            found["duration"] = round(duration_s, 3)
            languages = [chunk.pop("language") for chunk in found["chunks"] if "language" in chunk]
            found |= {"language": languages[0]} if languages else {}
        return found


def _at(time_s: float | None, begins_s: float) -> float | None:
    return None if time_s is None else round(time_s + begins_s, 3)


def _details(more: Sequence[dict[str, Any]], begins_s: float) -> dict[str, Any]:
    """Return the details of a chunk, if it has any. The place of its window counts from the recording's beginning."""
    found: dict[str, Any] = dict(*more)
    return found | {"seek": found["seek"] + round(begins_s * 100)} if "seek" in found else found


class RecognitionModel(FolderModel[Recognition]):
    """A subclass writes `settings`, `sound`, `size`, `longest` and `hear`."""

    options_class: ClassVar[type[RecognitionOptions]] = RecognitionOptions
    options: RecognitionOptions
    READERS = ("AutoFeatureExtractor", "AutoTokenizer")

    #: The separator between the texts of two windows.
    BETWEEN: ClassVar[str]

    # --- in the parent process ---

    @cached_property
    def revision(self) -> str:
        _ = self._extractor
        if self.options.voice and not (self._voice_folder / voice.WEIGHTS).is_file():
            raise ConfigurationError(f"{self.where}.options.voice: {self._voice_folder / voice.WEIGHTS} is missing")
        return super().revision

    @abstractmethod
    def settings(self, params: SpeechRecognitionParams) -> dict[str, Any]:
        """Return a task's settings for the device. Raises InvalidInput if the model does not support a parameter."""

    @abstractmethod
    def sound(self, samples: waveform.Samples) -> tuple[Array, int]:
        """Return the network's input for a window, and its length on the time axis."""

    @abstractmethod
    def size(self, lengths: Sequence[int]) -> int:
        """Return the cost of windows of these lengths."""

    @property
    @abstractmethod
    def longest(self) -> int:
        """The samples of the longest window."""

    def prepare(self, content: Any, params: Mapping[str, msgspec.Struct]) -> Prepared:
        """Decode a recording and cut it into windows. The row has the sounds of `recordings.pack`; its size comes from
        `size`.

        Raises InvalidInput, InputTooLarge.
        """
        chosen, refused = read_for_each(params, lambda _, own: self.settings(own))
        samples = decoded(content, self._extractor.rate, self.options.max_audio_s)
        spans = self.spans(samples)
        heard = [self.sound(samples[span.start : span.end]) for span in spans]
        lengths = [length for _, length in heard]
        arrays = recordings.pack([sound for sound, _ in heard], lengths, chosen)
        times_s = tuple(place / self._extractor.rate for place in (len(samples), *(span.start for span in spans)))
        return Prepared(arrays, max(1, self.size(lengths)), digest(arrays), refused, dict.fromkeys(chosen, times_s))

    def spans(self, samples: waveform.Samples) -> list[Span]:
        """Return the windows of a recording; none if it has no speech."""
        rate = self._extractor.rate
        if rate != voice.RATE:
            raise ConfigurationError(
                f"{self.where}: the model needs {rate} samples a second; only {voice.RATE} are supported"
            )
        return voice.windows(self._detector(samples), len(samples), self.longest)

    def collate(self, rows: Sequence[Prepared]) -> Arrays:
        return recordings.collate([row.arrays for row in rows], tuple(self.spec.tasks))

    @cached_property
    def _extractor(self) -> features.Extractor:
        return features.extractor(self.checkpoint)

    @cached_property
    def _detector(self) -> voice.Detector:
        return voice.detector([self._voice_folder])

    @property
    def _voice_folder(self) -> Path:
        return Path(self.options.voice or self.spec.folder).expanduser()

    # --- in the device process ---

    @abstractmethod
    def hear(self, windows: Sequence[Window], settings: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Any]]]:
        """Return each window's text, and if timestamps are requested its segments, as (text, start, end) in seconds.

        The details of a segment, if they are requested, follow as a mapping.
        """

    def load(self, device: str) -> None:
        features.check(self._extractor, self.spec.folder, self.where)
        super().load(device)

    def forward(self, arrays: Arrays, wanted: Mapping[str, Array]) -> Arrays:
        import torch

        by_row: dict[int, list[Window]] = {}
        for window in recordings.windows(arrays):
            by_row.setdefault(window.row, []).append(window)
        outputs: Arrays = {}
        with torch.inference_mode():
            for task, rows in wanted.items():
                settings = {int(row): recordings.settings(arrays, task, int(row)) for row in rows}
                own = [window for row in settings for window in by_row.get(row, [])]
                said = iter(self.hear(own, [settings[window.row] for window in own]))
                heard = {row: [next(said) for _ in by_row.get(row, [])] for row in settings}
                outputs[task] = ragged.pack([heard[int(row)] for row in rows])
        return outputs


def decoded(content: Any, rate: int, max_s: float) -> waveform.Samples:
    """Return an item's samples at `rate`. Raises InvalidInput, InputTooLarge."""
    if not isinstance(content, bytes):
        raise InvalidInput("input", f"must be the bytes of an audio file, not {type(content).__name__}")
    return waveform.decode(content, rate=rate, max_s=max_s)
