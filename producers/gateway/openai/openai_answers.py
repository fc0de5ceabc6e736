"""The answers of the OpenAI endpoints, by OpenAI's schema. Fields that OpenAI's schema lacks have a comment."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict


class TokenUsage(TypedDict):
    """The tokens that a model read, and the tokens of a whole request."""

    prompt_tokens: int
    total_tokens: int


class CompletionUsage(TokenUsage):
    """The tokens that a model read and wrote."""

    completion_tokens: int


class EmbeddingView(TypedDict):
    """The vector of a text: numbers, or base64 of float32 in little-endian order."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingList(TypedDict):
    """The vectors of a request's texts, in their order."""

    object: Literal["list"]
    data: list[EmbeddingView]
    model: str
    usage: TokenUsage


class AnswerMessage(TypedDict):
    """A model's message."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(TypedDict):
    """An answer to a conversation."""

    index: int
    message: AnswerMessage
    finish_reason: Literal["stop", "length"]
    logprobs: None


class ChatCompletion(TypedDict):
    """The answer to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: CompletionUsage


class TranscriptText(TypedDict):
    """The text of a recording."""

    text: str


class TranscriptWord(TypedDict):
    """A word, with its times in seconds."""

    word: str
    start: float
    end: float


class TranscriptSegment(TypedDict):
    """A stretch of speech with its times in seconds, and the figures of the window in which it was decoded.

    `seek` is the window's begin in hundredths of a second. Models other than Whisper have no such figures: their
    probabilities are 0, and they have no tokens.
    """

    id: int
    seek: int
    start: float
    end: float
    text: str
    tokens: list[int]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float


class DurationUsage(TypedDict):
    """The seconds of a recording."""

    type: Literal["duration"]
    seconds: float


class VerboseTranscript(TypedDict):
    """The text of a recording with its language, its length in seconds, and its segments and words as requested."""

    task: Literal["transcribe"]
    language: str
    duration: float
    text: str
    usage: DurationUsage
    segments: NotRequired[list[TranscriptSegment]]
    words: NotRequired[list[TranscriptWord]]


class ModelView(TypedDict):
    """A task of the fleet. Its date is not known."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    kind: str  # of the task


class ModelList(TypedDict):
    """All models."""

    object: Literal["list"]
    data: list[ModelView]


class FileView(TypedDict):
    """A file."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["processed"]


class FileList(TypedDict):
    """A page of files."""

    object: Literal["list"]
    data: list[FileView]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(TypedDict):
    """A file that is no more."""

    id: str
    object: Literal["file"]
    deleted: bool


class BatchFault(TypedDict):
    """A fault of a batch's input file, with its line."""

    code: str
    message: str
    param: str | None
    line: NotRequired[int | None]


class BatchFaults(TypedDict):
    """The faults of a batch's input file."""

    object: Literal["list"]
    data: list[BatchFault]


class RequestCounts(TypedDict):
    """The requests of a batch."""

    total: int
    completed: int
    failed: int


class BatchView(TypedDict):
    """A batch and its progress."""

    id: str
    object: Literal["batch"]
    endpoint: str
    errors: BatchFaults | None
    input_file_id: str
    completion_window: Literal["24h"]
    status: Literal[
        "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
    ]
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    metadata: dict[str, str] | None
    job: str | None  # the id of the batch's job


class BatchList(TypedDict):
    """A page of batches."""

    object: Literal["list"]
    data: list[BatchView]
    first_id: str | None
    last_id: str | None
    has_more: bool


class BatchResponse(TypedDict):
    """The answer to a request of a batch, as if it had been sent alone."""

    status_code: int
    request_id: str
    body: Any


class BatchLineError(TypedDict):
    """The reason for which a request of a batch has no answer."""

    code: str
    message: str


class BatchLine(TypedDict):
    """A line of a batch's output file or error file."""

    id: str
    custom_id: str
    response: BatchResponse | None
    error: BatchLineError | None
