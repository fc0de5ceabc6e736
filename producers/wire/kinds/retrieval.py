"""The kind that finds passages of one's own documents for a text: parameters and outputs, and what an index file is."""

from __future__ import annotations

import msgspec

from producers.wire.kinds.kind import Kind, at_least

#: The file of an index, and what its metadata call its format. Written by `producers.documents`, read by workers.
INDEX_FILE = "index.safetensors"
INDEX_FORMAT = "argosy-index/1"

#: Words and marks in a passage, unless asked otherwise: about what a sentence encoder reads best, and well under what MiniLM can.
PIECES = 160

#: So many passages may be asked for.
MOST_PASSAGES = 100


class PassageRetrievalParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The `top_k` passages that are nearest to a text, nearest first, of those whose cosine with it is `min_score` or more: there
    may be none. `truncation` cuts a text over the model's tokens instead of refusing it."""

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
    """Characters `start` to `end` of a `document`, and how near they are, as a cosine. `edition` says which version of the index it is of."""

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
