"""The kinds whose input is an audio file: parameters and outputs, named as in the Hugging Face pipelines."""

from __future__ import annotations

from typing import Literal

import msgspec

from producers.wire.kinds.kind import Kind, Labels, at_least


class SpeechRecognitionParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Parameters of speech recognition.

    `return_timestamps` adds `chunks` with their times: true for the segments of a Whisper model, "word" for words,
    "char" for characters (only models with a character alphabet). `language` ("fr", "french") and `task` ("translate":
    into English) are for multilingual Whisper models. Without `language` the model detects it.
    """

    return_timestamps: bool | Literal["word", "char"] = False
    language: str | None = None
    task: Literal["transcribe", "translate"] | None = None


class AudioClassificationParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The `top_k` best labels are returned, best first (null: all labels)."""

    top_k: int | None = 5

    def __post_init__(self) -> None:
        at_least("top_k", self.top_k)


class SpeechChunk(msgspec.Struct, frozen=True):
    """A stretch of speech with its start and end in seconds. The end is null if the model gave none."""

    text: str
    timestamp: tuple[float, float | None]


class Transcript(msgspec.Struct, frozen=True, omit_defaults=True):
    """The spoken text; empty for a recording without speech. `chunks` only if timestamps were requested."""

    text: str
    chunks: list[SpeechChunk] | None = None


AUDIO_KINDS = (
    Kind(
        "automatic-speech-recognition",
        "audio",
        SpeechRecognitionParams,
        Transcript,
        "the speech in a recording as text",
    ),
    Kind("audio-classification", "audio", AudioClassificationParams, Labels, "labels for a recording, best first"),
)
