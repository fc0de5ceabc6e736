"""The kinds whose input is an audio file: parameters and outputs, named as in the Hugging Face pipelines."""

from __future__ import annotations

from typing import Literal

import msgspec

from producers.wire.kinds.kind import Kind, Labels, at_least


class SpeechRecognitionParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`return_timestamps` adds `chunks` with their times: true for the stretches that a Whisper model marks, "word" for
    words, "char" for characters (models with a character alphabet only). `language` ("fr", "french") and `task`
    ("translate": into English) are for multilingual Whisper models; without a language, it is found by ear."""

    return_timestamps: bool | Literal["word", "char"] = False
    language: str | None = None
    task: Literal["transcribe", "translate"] | None = None


class AudioClassificationParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`top_k` labels are returned, best first (null: all of them)."""

    top_k: int | None = 5

    def __post_init__(self) -> None:
        at_least("top_k", self.top_k)


class Chunk(msgspec.Struct, frozen=True):
    """A stretch of what is said, and from when to when, in seconds; the end is null where the model did not tell."""

    text: str
    timestamp: tuple[float, float | None]


class Transcript(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is said; empty where nobody speaks. `chunks` only if timestamps were asked for."""

    text: str
    chunks: list[Chunk] | None = None


AUDIO_KINDS = (
    Kind("automatic-speech-recognition", "audio", SpeechRecognitionParams, Transcript, "what is said in a recording"),
    Kind("audio-classification", "audio", AudioClassificationParams, Labels, "labels for a recording, best first"),
)
