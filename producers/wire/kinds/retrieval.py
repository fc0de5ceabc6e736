"""The kind that finds passages of your own documents for a text: parameters, outputs, index file names."""

from __future__ import annotations

import msgspec

from producers.wire.kinds.kind import Kind, at_least

#: The file of an index and the format name in its metadata. `producers.documents` writes it, workers read it.
INDEX_FILE = "index.safetensors"
INDEX_FORMAT = "argosy-index/1"

#: Default number of word pieces in a passage: near the best length for a sentence encoder, well under MiniLM's limit.
PIECES = 160

#: The most passages that a request can ask for.
MOST_PASSAGES = 100


class PassageRetrievalParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The `top_k` passages nearest to a text, nearest first, with a cosine of `min_score` or more. There may be none.

    `truncation` cuts a text over the model's tokens instead of refusing it.
    """

    top_k: int = 5
    min_score: float = 0.0
    truncation: bool = False

    def __post_init__(self) -> None:
        at_least("top_k", self.top_k)
        if self.top_k > MOST_PASSAGES:
            raise ValueError(f"`top_k` must be {MOST_PASSAGES} or less")
        if not -1 <= self.min_score <= 1:
            raise ValueError("`min_score` must be between -1 and 1")


class Passage(msgspec.Struct, frozen=True):
    """Characters `start` to `end` of a `document`, their cosine with the text, and the `edition` of the index."""

    score: float
    text: str
    document: str
    start: int
    end: int
    edition: str


RETRIEVAL_KINDS = (
    Kind(
        "passage-retrieval", "text", PassageRetrievalParams, list[Passage], "passages of your documents, nearest first"
    ),
)
