"""Labels of parts of a text: entities, and the answer to a question."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from producers.wire.errors import InvalidInput
from producers.wire.kinds.text import QuestionAnsweringParams
from producers.wire.messages import QuestionInput
from workers.models.huggingface.text.answers import AnswerWindows
from workers.models.huggingface.text.entities import EntityWindows
from workers.models.interface.model import Array
from workers.training.kinds.label_kinds import f1
from workers.training.kinds.labelled_kind import IGNORED, LabelledKind, Pair, listed, padded, unknown_label

if TYPE_CHECKING:
    import torch
    from tokenizers import Encoding

_OUTSIDE = "O"

#: The prefixes of tags: an entity begins with B-, or is the one word of S- or U-, and goes on with I-, E- or L-.
_BEGIN, _GO_ON = ("B-", "S-", "U-"), ("I-", "E-", "L-")


class LabelledSpan(NamedTuple):
    """The characters `start` to `end` of a text, with a label."""

    start: int
    end: int
    label: str


class TokenLabelKind(LabelledKind):
    """Entities in a text: cross-entropy of each token's label, by the scheme B- (begins) and I- (inside).

    A label is a list of ``{"start": …, "end": …, "label": …}`` in characters, or a list of tags, one for each element
    of a list of words in the input's column. Words are joined by spaces. Tags may be of the scheme BIOES or BILOU, too.
    """

    served = "token-classification"
    label_column = "entities"
    metric = "f1"
    heads = ("transformers",)

    def content(self, row: Mapping[str, Any], origin: str) -> str:
        words = self._words(row, origin)
        return super().content(row, origin) if words is None else " ".join(words)

    def _words(self, row: Mapping[str, Any], origin: str) -> list[str] | None:
        value = row.get(self.columns[0])
        if isinstance(value, str) and not value.lstrip().startswith("["):
            return None
        try:
            words = listed(value, f"{origin}: {self.columns[0]}") if value is not None else None
        except InvalidInput:
            if isinstance(value, str):  # a text that begins with a bracket
                return None
            raise
        if words is not None and not all(isinstance(word, str) and word.strip() for word in words):
            raise InvalidInput(f"{origin}: {self.columns[0]}", "has a word that is empty or no text")
        return words

    def read_label(self, value: Any, row: Mapping[str, Any], where: str) -> tuple[LabelledSpan, ...]:
        given, words = listed(value, where), self._words(row, where)
        if all(isinstance(one, str) for one in given) and words is not None:
            if len(given) != len(words):
                raise InvalidInput(where, f"has {len(given)} tags for {len(words)} words", "give each word a tag")
            return _spans(words, given, where)
        text = " ".join(words) if words is not None else str(row.get(self.columns[0], ""))
        found = sorted(_span(one, len(text), where) for one in given)
        for before, after in pairwise(found):
            if after.start < before.end:
                problem = f"has overlapping entities at characters {after.start} and {before.start}"
                raise InvalidInput(where, problem, "keep one of them")
        return tuple(found)

    def learn(self, labels: Sequence[tuple[LabelledSpan, ...]]) -> None:
        types = sorted({span.label for label in labels for span in label})
        if not types:
            raise InvalidInput(
                f"{self.where}.label", "no training row has an entity", "name the column of the entities"
            )
        self.labels = (_OUTSIDE, *(f"{prefix}-{type_}" for type_ in types for prefix in "BI"))

    def names(self, label: tuple[LabelledSpan, ...]) -> set[str]:
        return {span.label for span in label}

    def check(self, label: tuple[LabelledSpan, ...], where: str) -> None:
        if unknown := [span.label for span in label if f"B-{span.label}" not in self.labels]:
            raise unknown_label(unknown[0], where)

    def targets(self, label: tuple[LabelledSpan, ...], aside: EntityWindows) -> Array:
        windows = [self._window(label, encoding) for encoding in aside.encodings]
        return padded(windows)

    def _window(self, label: tuple[LabelledSpan, ...], encoding: Encoding) -> list[int]:
        found = []
        for (start, end), special in zip(encoding.offsets, encoding.special_tokens_mask, strict=True):
            span = next((span for span in label if span.start < end and start < span.end), None)
            if special:
                found.append(IGNORED)
            elif span is None:
                found.append(self.labels.index(_OUTSIDE))
            else:
                begins = start <= span.start
                found.append(self.labels.index(f"{'B' if begins else 'I'}-{span.label}"))
        return found

    @property
    def blank(self) -> Array:
        return np.full((1, 1), IGNORED)

    def losses(self, values: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        from torch.nn import functional

        scores = values[:, 0, : targets.shape[1]]
        each = functional.cross_entropy(scores.transpose(1, 2), targets, reduction="none", ignore_index=IGNORED)
        return each.sum(1)

    def terms(self, targets: torch.Tensor) -> torch.Tensor:
        return (targets != IGNORED).sum(1)

    def scores(self, pairs: Sequence[Pair]) -> dict[str, float]:
        return {"f1": f1([({_found(one) for one in answer}, set(wanted)) for answer, wanted in pairs])}


class AnswerKind(LabelledKind):
    """The part of a context that answers a question: cross-entropy of its first and its last token.

    A label is the answer's text, ``{"text": …, "start": …}``, or SQuAD's ``{"text": […], "answer_start": […]}``.
    Without a start, the answer must be in the context once. An empty list of texts says that there is no answer.
    """

    served = "question-answering"
    input_columns = ("question", "context")
    label_column = "answer"
    metric = "f1"
    heads = ("transformers",)

    @property
    def config(self) -> dict[str, Any]:
        return {"num_labels": 2}  # scores of the first and of the last token, whatever the backbone's folder classified

    #: Whether a training row has no answer.
    impossible = False

    @property
    def params(self) -> QuestionAnsweringParams:
        return QuestionAnsweringParams(handle_impossible_answer=self.impossible)

    def content(self, row: Mapping[str, Any], origin: str) -> QuestionInput:
        return QuestionInput(*(self._text(row, column, origin) for column in self.columns))

    def read_label(self, value: Any, row: Mapping[str, Any], where: str) -> tuple[LabelledSpan, ...]:
        """Return the right answers, each as good as the others; none if there is no answer."""
        context = str(row.get(self.columns[1], ""))
        if isinstance(value, str) and value.lstrip().startswith("{"):
            [value] = listed(f"[{value}]", where)
        if isinstance(value, dict):
            texts, starts = value.get("text"), value.get("answer_start", value.get("start"))
            texts = [texts] if isinstance(texts, str) else texts
            starts = [starts] if isinstance(starts, int) else starts
        else:
            texts, starts = [value], None
        if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
            raise InvalidInput(where, "has no text of an answer", 'write the text, or {"text": …, "start": …}')
        if isinstance(starts, list) and len(starts) != len(texts):
            raise InvalidInput(where, f"has {len(starts)} starts for {len(texts)} texts", "give each text a start")
        return tuple(
            _placed(text, context, starts[n] if isinstance(starts, list) else None, where)
            for n, text in enumerate(texts)
        )

    def learn(self, labels: Sequence[tuple[LabelledSpan, ...]]) -> None:
        self.impossible = not all(labels)

    def targets(self, label: tuple[LabelledSpan, ...], aside: AnswerWindows) -> Array:
        return np.array([_tokens(label[0] if label else None, window) for window in aside.encodings])

    @property
    def blank(self) -> Array:
        return np.full((1, 2), IGNORED)

    def losses(self, values: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        from torch.nn import functional

        each = functional.cross_entropy(
            values[:, 0].transpose(1, 2).flatten(0, 1), targets.flatten(), reduction="none", ignore_index=IGNORED
        )
        return each.view(-1, 2).mean(1)

    def scores(self, pairs: Sequence[Pair]) -> dict[str, float]:
        texts = [(answer[0]["answer"] if answer else "", [span.label for span in wanted]) for answer, wanted in pairs]
        return {"f1": _best(texts, _shared), "exact": _best(texts, lambda one, other: _plain(one) == _plain(other))}


def _best(pairs: Sequence[tuple[str, Sequence[str]]], compared: Callable[[str, str], float]) -> float:
    """Return the mean over answers, each compared with the right one that is most like it."""
    return float(np.mean([max((compared(found, one) for one in wanted), default=not found) for found, wanted in pairs]))


def _spans(words: Sequence[str], tags: Sequence[str], where: str) -> tuple[LabelledSpan, ...]:
    """Return the entities of words with tags. A tag that begins none goes on with the same label of the word before."""
    found: list[LabelledSpan] = []
    start, before = 0, _OUTSIDE
    for word, tag in zip(words, tags, strict=True):
        end, type_ = start + len(word), tag[2:] if tag.startswith((*_BEGIN, *_GO_ON)) else tag
        if not type_.strip():
            raise InvalidInput(where, f"has the tag {tag!r}, without a type", "write O, or a type such as B-LOC")
        if tag != _OUTSIDE and found and before == type_ and not tag.startswith(_BEGIN):
            found[-1] = found[-1]._replace(end=end)
        elif tag != _OUTSIDE:
            found.append(LabelledSpan(start, end, type_))
        start, before = end + 1, type_
    return tuple(found)


def _span(given: Any, length: int, where: str) -> LabelledSpan:
    form = '{"start": …, "end": …, "label": …}'
    if not isinstance(given, dict):
        raise InvalidInput(where, f"has {given!r}", f"write each entity as {form}")
    start, end, label = given.get("start"), given.get("end"), given.get("label", given.get("entity_group"))
    if not isinstance(start, int) or not isinstance(end, int) or not isinstance(label, str) or not label:
        raise InvalidInput(where, f"has {given!r}", f"write each entity as {form}")
    if not 0 <= start < end <= length:
        raise InvalidInput(where, f"has an entity from {start} to {end} in a text of {length} characters")
    return LabelledSpan(start, end, label)


def _found(answer: Mapping[str, Any]) -> LabelledSpan:
    return LabelledSpan(answer["start"], answer["end"], answer["entity_group"])


def _placed(text: str, context: str, start: int | None, where: str) -> LabelledSpan:
    if start is None:
        count = context.count(text)
        if count != 1:
            found = "is not in the context" if not count else f"is in the context {count} times"
            raise InvalidInput(where, f"{text[:60]!r} {found}", 'name its place: {"text": …, "start": …}')
        start = context.index(text)
    if start < 0 or context[start : start + len(text)] != text:
        there = context[start : start + len(text)]
        raise InvalidInput(where, f"{text[:60]!r} is not at character {start}, but {there[:60]!r}", "correct the start")
    return LabelledSpan(start, start + len(text), text)


def _tokens(span: LabelledSpan | None, encoding: Encoding) -> tuple[int, int]:
    """Return the first and the last token of an answer; the first token of all if the window has it not, or in part."""
    inside = [
        place
        for place, ((start, end), sequence) in enumerate(zip(encoding.offsets, encoding.sequence_ids, strict=True))
        if span is not None and sequence == 1 and start < span.end and span.start < end
    ]
    if span is None or not inside:
        return 0, 0
    whole = encoding.offsets[inside[0]][0] <= span.start and span.end <= encoding.offsets[inside[-1]][1]
    return (inside[0], inside[-1]) if whole else (0, 0)


def _plain(text: str) -> str:
    """Return an answer as SQuAD compares it: small letters, without punctuation, articles and double spaces."""
    text = "".join(sign for sign in text.lower() if sign not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _shared(found: str, wanted: str) -> float:
    """Return SQuAD's F1 of the words that two answers share."""
    one, other = Counter(_plain(found).split()), Counter(_plain(wanted).split())
    right = (one & other).total()
    return 2 * right / (one.total() + other.total()) if right else float(one == other)
