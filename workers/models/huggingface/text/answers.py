"""Extractive question answering: find the most likely answer in a context, over windows of a long context.

The scores equal those of transformers' former question-answering pipeline. The score of a span is the probability that
the answer begins at its first token times the probability that the answer ends at its last token. In each window, the
softmax covers the context and the first token, which means "no answer".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from producers.wire.errors import InvalidInput
from producers.wire.kinds.text import QuestionAnsweringParams
from producers.wire.messages import QuestionInput
from workers.models.huggingface.text_head import TextHead, rounded, softmax
from workers.models.huggingface.token_sequences import Reading, TokenSequence
from workers.models.interface.model import Array

if TYPE_CHECKING:
    import torch
    from tokenizers import Encoding

#: The largest share of a window that a question may fill. The rest is for the context.
_LONGEST_QUESTION = 0.5


@dataclass(frozen=True, slots=True)
class AnswerWindows:
    """The context of an item, and the tokens of its windows."""

    context: str
    encodings: tuple[Encoding, ...]


class QuestionAnswering(TextHead):
    """Answers with their positions in the context, in characters, extended to whole words."""

    auto = "AutoModelForQuestionAnswering"
    by_token = True

    def read(self, content: Any, params: QuestionAnsweringParams) -> Reading:
        if not isinstance(content, QuestionInput):
            raise InvalidInput("input", "must be an object with question and context")
        self.encode(content.context)
        asked = len(self.encode(content.question).ids)
        if asked > self.max_tokens * _LONGEST_QUESTION:
            raise InvalidInput(
                "input.question", f"has {asked} tokens, too many to leave room for the context", "shorten it"
            )
        windows = [self.encode(content.question, content.context)]
        if len(windows[0].ids) > self.max_tokens:
            room = self.max_tokens - asked
            stride = min(params.doc_stride, room // 2)
            windows = self.tokenizing.windows(content.question, content.context, self.max_tokens, stride, "only_second")
        return Reading(
            tuple(TokenSequence.of(window) for window in windows), AnswerWindows(content.context, tuple(windows))
        )

    def compute(self, output: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        import torch

        return torch.stack([output.start_logits, output.end_logits], dim=-1)

    def finish(self, output: Array, params: QuestionAnsweringParams, aside: AnswerWindows) -> Any:
        found: dict[tuple[int, int], float] = {}
        no_answer = 1.0
        for logits, encoding in zip(output, aside.encodings, strict=False):  # other items may have more
            starts, ends = _probabilities(logits[: len(encoding.ids)], encoding)
            no_answer = min(no_answer, float(starts[0] * ends[0]))
            for first, last, score in _best(starts, ends, params):
                span = _span(encoding, first, last)
                found[span] = max(score, found.get(span, 0.0))
        answers = [(score, start, end, aside.context[start:end]) for (start, end), score in found.items()]
        if params.handle_impossible_answer:
            answers.append((no_answer, 0, 0, ""))
        best = sorted(answers, key=lambda answer: -answer[0])[: params.top_k]
        return [
            {"score": rounded(score), "start": start, "end": end, "answer": text} for score, start, end, text in best
        ]


def _probabilities(logits: Array, encoding: Encoding) -> tuple[Array, Array]:
    """Return, for each token, the probabilities that the answer begins there and that it ends there."""
    allowed = _in_context(encoding)
    allowed[0] = True
    masked = np.where(allowed[:, None], logits, -np.inf)
    return softmax(masked[:, 0]), softmax(masked[:, 1])


def _in_context(encoding: Encoding) -> Array:
    return np.array([sequence == 1 for sequence in encoding.sequence_ids], dtype=np.bool_)


def _best(starts: Array, ends: Array, params: QuestionAnsweringParams) -> Iterator[tuple[int, int, float]]:
    """Yield the window's most likely (first token, last token, score), except "no answer", which is the first token."""
    scores = np.triu(np.outer(starts, ends))
    scores = np.tril(scores, params.max_answer_len - 1)
    scores[0] = scores[:, 0] = 0
    count = min(params.top_k, scores.size)
    flat = np.argpartition(-scores, count - 1, axis=None)[:count]
    for place in flat:
        first, last = np.unravel_index(place, scores.shape)
        if scores[first, last] > 0:
            yield int(first), int(last), float(scores[first, last])


def _span(encoding: Encoding, first: int, last: int) -> tuple[int, int]:
    """Return the character range from the start of the first token's word to the end of the last token's word."""
    words: Sequence[int | None] = encoding.word_ids
    in_context = encoding.sequence_ids
    while (
        first > 0 and in_context[first - 1] == 1 and words[first - 1] is not None and words[first - 1] == words[first]
    ):
        first -= 1
    final = len(words) - 1
    while last < final and in_context[last + 1] == 1 and words[last + 1] is not None and words[last + 1] == words[last]:
        last += 1
    return encoding.offsets[first][0], encoding.offsets[last][1]
