"""The kinds whose input is an audio file: parameters and outputs, named as in the Hugging Face pipelines."""

from __future__ import annotations

from typing import Literal

import msgspec

from producers.wire.kinds.kind import Kind, Labels, at_least


class SpeechRecognitionParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Parameters of speech recognition.

    `return_timestamps` adds `chunks` with their times: true for the segments of a Whisper model, "word" for words,
    "char" for characters (only models with a character alphabet). `language` ("fr", "french") and `task` ("translate":
    into English) are for multilingual Whisper models. Without `language` the model detects it. `return_details` adds
    the recording's `duration`, and of a Whisper model the `language` and the figures of each segment.
    """

    return_timestamps: bool | Literal["word", "char"] = False
    language: str | None = None
    task: Literal["transcribe", "translate"] | None = None
    return_details: bool = False

    def __post_init__(self) -> None:
        if self.return_details and not self.return_timestamps:
            raise ValueError("`return_details` needs `return_timestamps`")


class AudioClassificationParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The `top_k` best labels are returned, best first (null: all labels)."""

    top_k: int | None = 5

    def __post_init__(self) -> None:
        at_least("top_k", self.top_k)


class SpeechChunk(msgspec.Struct, frozen=True, omit_defaults=True):
    """A stretch of speech with its start and end in seconds. The end is null if the model gave none.

    The details of a segment of Whisper are its `tokens` and the figures of the window in which it was decoded, as in
    OpenAI's own program: `seek`, the window's beginning in hundredths of a second, `avg_logprob`, `compression_ratio`
    and `no_speech_prob`.
    """

    text: str
    timestamp: tuple[float, float | None]
    seek: int | None = None
    tokens: list[int] | None = None
    avg_logprob: float | None = None
    compression_ratio: float | None = None
    no_speech_prob: float | None = None


class Transcript(msgspec.Struct, frozen=True, omit_defaults=True):
    """The spoken text; empty for a recording without speech. `chunks` only if timestamps were requested.

    `language` (such as "english") and `duration` in seconds are there only if details were requested.
    """

    text: str
    chunks: list[SpeechChunk] | None = None
    language: str | None = None
    duration: float | None = None


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
