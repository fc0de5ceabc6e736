"""Token classification: label the tokens, join tokens to words and words to entities, and merge a long text's windows.

The aggregation strategies and the rules for words equal those of transformers' token-classification pipeline, so the
answers are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from producers.wire.errors import InvalidInput
from producers.wire.kinds.text import TokenClassificationParams
from workers.models.huggingface.text_head import TextHead, rounded, softmax
from workers.models.huggingface.token_sequences import Reading, TokenSequence
from workers.models.huggingface.tokenizing import Tokenizing
from workers.models.interface.model import Array

if TYPE_CHECKING:
    import torch
    from tokenizers import Encoding


@dataclass(frozen=True, slots=True)
class Piece:
    """A token or a word: its decoded text, its scores, its character range, and whether it continues a word."""

    text: str
    scores: Array
    start: int
    end: int
    index: int = 0
    goes_on: bool = False


@dataclass(frozen=True, slots=True)
class Labelled:
    """A piece with its best label and the score of that label."""

    label: str
    score: float
    text: str
    start: int
    end: int
    index: int

    @property
    def type(self) -> str:
        """The label without its prefix B- (begins an entity) or I- (inside an entity)."""
        return self.label[2:] if self.label.startswith(("B-", "I-")) else self.label


@dataclass(frozen=True, slots=True)
class EntityWindows:
    """A text, and the tokens of its windows."""

    text: str
    encodings: tuple[Encoding, ...]


class TokenClassification(TextHead):
    """Entities with their positions in the text, in characters."""

    auto = "AutoModelForTokenClassification"
    by_token = True

    @cached_property
    def _entities(self) -> Entities:
        return Entities(self.tokenizing, self.checkpoint.labels, self.max_tokens)

    def read(self, content: Any, params: TokenClassificationParams) -> Reading:
        windows = self._entities.windows(content, self.encode(content), params)
        return Reading(tuple(TokenSequence.of(window) for window in windows.encodings), windows)

    def compute(self, output: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        logits: torch.Tensor = output.logits
        return logits

    def finish(self, output: Array, params: TokenClassificationParams, aside: EntityWindows) -> Any:
        return self._entities.found(output, params, aside)


@dataclass(frozen=True)
class Entities:
    """Turns a text into windows of tokens, and the tokens' scores into entities."""

    tokenizing: Tokenizing
    labels: Sequence[str]
    max_tokens: int

    def windows(self, content: str, whole: Encoding, params: TokenClassificationParams) -> EntityWindows:
        """Return the text's tokens `whole`, or windows over them if they exceed `max_tokens`. Raises InvalidInput."""
        if len(whole.ids) <= self.max_tokens:
            return EntityWindows(content, (whole,))
        room = self.max_tokens - sum(whole.special_tokens_mask)
        stride = room // 8 if params.stride is None else params.stride
        if stride >= room:
            raise InvalidInput("params.stride", f"must be under {room}, the text tokens of a window")
        if stride > (most := room * 3 // 4):  # a window for each token of a long text would take an hour
            raise InvalidInput("params.stride", f"must be {most} or less, of the {room} text tokens of a window")
        return EntityWindows(content, tuple(self.tokenizing.windows(content, None, self.max_tokens, stride)))

    def found(self, output: Array, params: TokenClassificationParams, aside: EntityWindows) -> list[dict[str, Any]]:
        """Return a text's entities from the logits of its windows, `(windows or more, tokens or more, labels)`."""
        found: list[dict[str, Any]] = []
        for logits, encoding in zip(output, aside.encodings, strict=False):  # other items may have more
            scores = softmax(logits[: len(encoding.ids)])
            found += self._entities(list(self._pieces(encoding, scores, aside.text)), params)
        return _without_overlaps(found) if len(aside.encodings) > 1 else found

    def _pieces(self, encoding: Encoding, scores: Array, text: str) -> Iterator[Piece]:
        tokenizer = self.tokenizing.tokenizer
        knows_words = bool(getattr(tokenizer.model, "continuing_subword_prefix", None))
        unknown = self.tokenizing.token_id("unk_token")
        for index, (token, (start, end)) in enumerate(zip(encoding.tokens, encoding.offsets, strict=True)):
            if encoding.special_tokens_mask[index]:
                continue
            if encoding.ids[index] == unknown:
                yield Piece(text[start:end], scores[index], start, end, index)
                continue
            if knows_words:
                goes_on = len(token) != len(text[start:end])
            else:
                goes_on = start > 0 and " " not in text[start - 1 : start + 1]
            yield Piece(token, scores[index], start, end, index, goes_on)

    def _entities(self, pieces: Sequence[Piece], params: TokenClassificationParams) -> list[dict[str, Any]]:
        strategy = params.aggregation_strategy
        if strategy in _WORD_SCORES:
            pieces = [self._word(word, _WORD_SCORES[strategy]) for word in _words(pieces)]
        labelled = [self._label(piece) for piece in pieces]
        if strategy == "none":
            return [_token(one) for one in labelled if one.label not in params.ignore_labels]
        groups = [self._group(group) for group in _groups(labelled)]
        return [group for group in groups if group["entity_group"] not in params.ignore_labels]

    def _word(self, pieces: Sequence[Piece], scores_of: Callable[[Sequence[Piece]], Array]) -> Piece:
        text = self._written([piece.text for piece in pieces])
        return Piece(text, scores_of(pieces), pieces[0].start, pieces[-1].end)

    def _label(self, piece: Piece) -> Labelled:
        best = int(piece.scores.argmax())
        label, score = self.labels[best], float(piece.scores[best])
        return Labelled(label, score, piece.text, piece.start, piece.end, piece.index)

    def _group(self, group: Sequence[Labelled]) -> dict[str, Any]:
        return {
            "score": rounded(np.mean([one.score for one in group])),
            "word": self._written([one.text for one in group]),
            "start": group[0].start,
            "end": group[-1].end,
            "entity_group": group[0].label.split("-", 1)[-1],
        }

    def _written(self, tokens: list[str]) -> str:
        decoder = self.tokenizing.tokenizer.decoder
        return " ".join(tokens) if decoder is None else str(decoder.decode(tokens))


def _highest(pieces: Sequence[Piece]) -> Array:
    return max(pieces, key=lambda piece: float(piece.scores.max())).scores


def _mean(pieces: Sequence[Piece]) -> Array:
    return np.asarray(np.mean([piece.scores for piece in pieces], axis=0))


#: The strategies that score whole words: from a word's pieces to its scores.
_WORD_SCORES: Mapping[str, Callable[[Sequence[Piece]], Array]] = {
    "first": lambda pieces: pieces[0].scores,
    "average": _mean,
    "max": _highest,
}


def _words(pieces: Sequence[Piece]) -> list[list[Piece]]:
    words: list[list[Piece]] = []
    for piece in pieces:
        if words and piece.goes_on:
            words[-1].append(piece)
        else:
            words.append([piece])
    return words


def _groups(labelled: Sequence[Labelled]) -> list[list[Labelled]]:
    """Group neighbours of the same type; a label with the prefix B- starts a new group."""
    groups: list[list[Labelled]] = []
    for one in labelled:
        if groups and one.type == groups[-1][-1].type and not one.label.startswith("B-"):
            groups[-1].append(one)
        else:
            groups.append([one])
    return groups


def _token(one: Labelled) -> dict[str, Any]:
    return {
        "score": rounded(one.score),
        "word": one.text,
        "start": one.start,
        "end": one.end,
        "entity": one.label,
        "index": one.index,
    }


def _without_overlaps(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Where entities of neighbouring windows overlap, keep the longest; among equally long entities, the best score."""
    kept: list[dict[str, Any]] = []
    for entity in sorted(found, key=lambda entity: int(entity["start"])):
        if not kept or entity["start"] >= kept[-1]["end"]:
            kept.append(entity)
        elif (_length(entity), entity["score"]) > (_length(kept[-1]), kept[-1]["score"]):
            kept[-1] = entity
    return kept


def _length(entity: Mapping[str, Any]) -> int:
    return int(entity["end"] - entity["start"])
