"""Any Whisper checkpoint (Radford et al., 2022). Windows of at most 30 s of several recordings are decoded together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from producers.wire.catalogue import Task
from producers.wire.errors import ConfigurationError, InvalidInput
from producers.wire.kinds.audio import SpeechRecognitionParams
from workers.models.huggingface import generation_settings
from workers.models.huggingface.checkpoint import Checkpoint
from workers.models.interface.model import Array
from workers.models.interface.options import Count
from workers.models.speech import waveform
from workers.models.speech.features import LogMel
from workers.models.speech.recognition import Recognition, RecognitionModel, RecognitionOptions
from workers.models.speech.recordings import Window

if TYPE_CHECKING:
    from workers.models.speech.whisper_decoding import Passage, WhisperDecoder

#: Whisper's languages: the code of each name, as in transformers.
LANGUAGES = {
    "afrikaans": "af", "albanian": "sq", "amharic": "am", "arabic": "ar", "armenian": "hy", "assamese": "as",
    "azerbaijani": "az", "bashkir": "ba", "basque": "eu", "belarusian": "be", "bengali": "bn", "bosnian": "bs",
    "breton": "br", "bulgarian": "bg", "burmese": "my", "cantonese": "yue", "castilian": "es", "catalan": "ca",
    "chinese": "zh", "croatian": "hr", "czech": "cs", "danish": "da", "dutch": "nl", "english": "en", "estonian": "et",
    "faroese": "fo", "finnish": "fi", "flemish": "nl", "french": "fr", "galician": "gl", "georgian": "ka",
    "german": "de", "greek": "el", "gujarati": "gu", "haitian": "ht", "haitian creole": "ht", "hausa": "ha",
    "hawaiian": "haw", "hebrew": "he", "hindi": "hi", "hungarian": "hu", "icelandic": "is", "indonesian": "id",
    "italian": "it", "japanese": "ja", "javanese": "jw", "kannada": "kn", "kazakh": "kk", "khmer": "km",
    "korean": "ko", "lao": "lo", "latin": "la", "latvian": "lv", "letzeburgesch": "lb", "lingala": "ln",
    "lithuanian": "lt", "luxembourgish": "lb", "macedonian": "mk", "malagasy": "mg", "malay": "ms", "malayalam": "ml",
    "maltese": "mt", "mandarin": "zh", "maori": "mi", "marathi": "mr", "moldavian": "ro", "moldovan": "ro",
    "mongolian": "mn", "myanmar": "my", "nepali": "ne", "norwegian": "no", "nynorsk": "nn", "occitan": "oc",
    "panjabi": "pa", "pashto": "ps", "persian": "fa", "polish": "pl", "portuguese": "pt", "punjabi": "pa",
    "pushto": "ps", "romanian": "ro", "russian": "ru", "sanskrit": "sa", "serbian": "sr", "shona": "sn",
    "sindhi": "sd", "sinhala": "si", "sinhalese": "si", "slovak": "sk", "slovenian": "sl", "somali": "so",
    "spanish": "es", "sundanese": "su", "swahili": "sw", "swedish": "sv", "tagalog": "tl", "tajik": "tg",
    "tamil": "ta", "tatar": "tt", "telugu": "te", "thai": "th", "tibetan": "bo", "turkish": "tr", "turkmen": "tk",
    "ukrainian": "uk", "urdu": "ur", "uzbek": "uz", "valencian": "ca", "vietnamese": "vi", "welsh": "cy",
    "yiddish": "yi", "yoruba": "yo",
}  # fmt: skip


class WhisperOptions(RecognitionOptions, frozen=True):
    """`max_new_tokens` limits the tokens of a window, by default like transformers' pipeline. `windows_together`
    windows are encoded and decoded together; use more on a GPU.
    """

    max_new_tokens: Count = 256
    windows_together: Count = 16


class WhisperModel(RecognitionModel):
    """Windows of 30 s, decoded token by token."""

    options_class = WhisperOptions
    options: WhisperOptions
    BETWEEN = ""
    default_cost = 8  # windows

    # --- in the parent process ---

    def _head(self, task: Task, checkpoint: Checkpoint) -> Recognition:
        generation_settings.check(checkpoint, obeyed=("suppress_tokens", "begin_suppress_tokens"))
        return Recognition(task, checkpoint, "AutoModelForSpeechSeq2Seq", self.BETWEEN)

    def settings(self, params: SpeechRecognitionParams) -> dict[str, Any]:
        config = self._generation
        if params.return_timestamps == "char":
            raise InvalidInput(
                "params.return_timestamps", 'is "char", which Whisper does not support', 'ask for "word"'
            )
        if params.return_timestamps and "no_timestamps_token_id" not in config:
            raise InvalidInput(
                "params.return_timestamps", "is not supported by the model's generation_config", "leave it out"
            )
        if params.return_timestamps == "word" and not config.get("alignment_heads"):
            remedy = "ask for segments (true), or use a model with alignment_heads in its generation_config"
            raise InvalidInput("params.return_timestamps", 'is "word", which this model does not support', remedy)
        foreign = params.language and params.language.lower() not in ("en", "english")
        if "lang_to_id" not in config and (foreign or params.task == "translate"):
            name = "language" if foreign else "task"
            raise InvalidInput(f"params.{name}", "is only for multilingual models", "leave it out")
        language, task = params.language or config.get("language"), params.task or config.get("task")
        if language is None and task is None:
            language, task = (self._forced(names) for names in ("lang_to_id", "task_to_id"))
        details = {"details": True} if params.return_details else {}
        return {
            **details,
            "timestamps": params.return_timestamps,
            "language": self._language(language),
            "task": task or "transcribe",
        }

    def _forced(self, names: str) -> str | None:
        """Return the language or the task of `forced_decoder_ids`, the earlier form of both."""
        own = self._generation.get("forced_decoder_ids") or self.checkpoint.config.get("forced_decoder_ids") or ()
        tokens = {token for _, token in own}
        return next((name for name, token in self._generation.get(names, {}).items() if token in tokens), None)

    def _language(self, given: str | None) -> str | None:
        """Return the model's token of a language, such as ``<|fr|>``, or None to detect the language."""
        if given is None or "lang_to_id" not in self._generation:
            return None
        known: Mapping[str, int] = self._generation["lang_to_id"]
        name = given.lower().strip("<|>")
        token = f"<|{LANGUAGES.get(name, name)}|>"
        if token not in known:
            codes = ", ".join(sorted(code.strip("<|>") for code in known))
            raise InvalidInput(
                "params.language", f"is {given!r}, which this model does not support", f"use one of {codes}"
            )
        return token

    @cached_property
    def _generation(self) -> Mapping[str, Any]:
        return self.checkpoint.read_if_there("generation_config.json")

    @property
    def _spectrum(self) -> LogMel:
        if not isinstance(self._extractor, LogMel):
            raise ConfigurationError(f"{self.where}: a Whisper model needs the extractor WhisperFeatureExtractor")
        return self._extractor

    @property
    def longest(self) -> int:
        return self._spectrum.longest

    def sound(self, samples: waveform.Samples) -> tuple[Array, int]:
        found = self._spectrum(samples)
        return found, found.shape[1]

    def size(self, lengths: Sequence[int]) -> int:
        return len(lengths)  # each window is padded to 30 s

    # --- in the device process ---

    def load(self, device: str) -> None:
        super().load(device)
        if self._spectrum.bands != self.networks.only.config.num_mel_bins:
            raise ConfigurationError(
                f"{self.where}: preprocessor_config.json and config.json differ in the number of mel bands"
            )
        _ = self._writer

    @cached_property
    def _writer(self) -> WhisperDecoder:
        from workers.models.speech.whisper_decoding import WhisperDecoder

        return WhisperDecoder(self.networks.only, self.spec.folder, self.options.max_new_tokens)

    def hear(self, windows: Sequence[Window], settings: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Any]]]:
        languages: dict[int, str] = {}  # by recording: detected in its first window
        heard: list[tuple[str, list[Any]]] = []
        for start in range(0, len(windows), self.options.windows_together):
            end = start + self.options.windows_together
            chosen = zip(windows[start:end], settings[start:end], strict=True)
            heard += self._writer.write([self._passage(window, own) for window, own in chosen], languages)
        return heard

    def _passage(self, window: Window, settings: Mapping[str, Any]) -> Passage:
        import torch

        from workers.models.speech.whisper_decoding import Passage

        spectrum = self._spectrum.filled(window.sound.reshape(self._spectrum.bands, -1))
        on_device = torch.from_numpy(spectrum).to(self._device, self.networks.dtype)
        return Passage(on_device, window.row, window.number, self._spectrum.sounding(window.length), settings)
