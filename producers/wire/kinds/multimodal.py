"""The kind whose input is a text and an image: parameters and outputs, named as in the Hugging Face pipelines."""

from __future__ import annotations

import msgspec

from producers.wire.kinds.kind import Kind, at_least


class VisualQuestionAnsweringParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The `top_k` best answers are returned, best first (null: all answers)."""

    top_k: int | None = 5

    def __post_init__(self) -> None:
        at_least("top_k", self.top_k)


class VisualAnswer(msgspec.Struct, frozen=True):
    """An answer of the model with its probability, 0 to 1."""

    answer: str
    score: float


MULTIMODAL_KINDS = (
    Kind(
        "visual-question-answering",
        "text-and-image",
        VisualQuestionAnsweringParams,
        list[VisualAnswer],
        "answers to a question about an image, best first",
    ),
)
