"""Rows as token sequences with their labels, and the loss of a student that is to answer like its teacher."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from torch.nn import functional

from workers.models.huggingface.text.answers import QuestionAnswering
from workers.models.huggingface.text.encoder import EncoderModel
from workers.models.huggingface.text.label_heads import Classification
from workers.models.huggingface.text_head import TextHead
from workers.models.huggingface.token_sequences import Batch
from workers.models.huggingface.tokenizing import Tokenizing
from workers.models.interface.sample_inputs import usual_params
from workers.training.compressing.answered_rows import AnsweredRow
from workers.training.training_batches import all_of, by_size

Inputs = dict[str, torch.Tensor]

#: The number of a missing label, which the loss ignores.
NO_LABEL = -100

#: The logit of a place without a token.
_NOWHERE = -1e4


#: The form of scores that choose a place in the text for each end of an answer.
PLACES = "places"


def form_of(head: TextHead) -> str:
    """Return the form of a head's raw scores: PLACES, or the function that turns them into scores."""
    if isinstance(head, QuestionAnswering):
        return PLACES
    return head.function if isinstance(head, Classification) else "softmax"


@dataclass(frozen=True, slots=True)
class Lessons:
    """Padded sequences. For each task: whether a sequence belongs to it, and the number of its label, or NO_LABEL."""

    inputs: Inputs
    belongs: Mapping[str, torch.Tensor]
    labels: Mapping[str, torch.Tensor]

    @property
    def mask(self) -> torch.Tensor:
        """Whether a place has a token, `(sequences, tokens)`."""
        return self.inputs["attention_mask"].bool()


class TokenizedRows:
    """The distinct token sequences of rows, as the served model reads them."""

    def __init__(self, model: EncoderModel, rows: Sequence[AnsweredRow]) -> None:
        tasks = model.spec.tasks
        params = [{task: usual_params(tasks[task]) for task in tasks}] * len(rows)
        prepared = all_of(model.prepare_many([row.content for row in rows], params))
        self._batch = Batch(model.collate(prepared), model.checkpoint.pad_id)
        typed = Tokenizing(model.checkpoint).check() and model.checkpoint.config.get("type_vocab_size", 2) > 1
        self._names = {"input_ids": "ids", "attention_mask": "mask"} | ({"token_type_ids": "types"} if typed else {})
        #: The form of each task's raw scores.
        self.forms = {task: form_of(head) for task, head in model.heads.items()}
        count = len(self._batch.sequences)
        self._belongs = {task: np.zeros(count, dtype=np.bool_) for task in tasks}
        self._labels = {task: np.full(count, NO_LABEL) for task in tasks}
        for task, head in model.heads.items():
            numbers = {name: number for number, name in enumerate(head.checkpoint.labels)}
            for row, places in zip(rows, self._batch.of(task, np.arange(len(rows))), strict=True):
                self._belongs[task][places] = True
                if isinstance(head, Classification) and self.forms[task] == "softmax":
                    self._labels[task][places] = numbers.get(row.best_label(task), NO_LABEL)

    def __len__(self) -> int:
        return len(self._batch.sequences)

    def batches(self, rows: int, seed: int) -> Iterator[Lessons]:
        """Yield all sequences once, at random, those of a batch of similar length."""
        random = Random(seed)  # noqa: S311 - a repeatable order, no secret
        order = random.sample(range(len(self)), len(self))
        lengths = [len(self._batch.sequences[place].ids) for place in order]
        chosen = list(by_size(lengths, rows * max(lengths), most_rows=rows))
        random.shuffle(chosen)
        for own in chosen:
            yield self._lessons([order[n] for n in own])

    def some(self, most: int, rows: int = 16) -> list[Lessons]:
        """Return the same `most` sequences at every call, in batches of similar length."""
        places = Random(0).sample(range(len(self)), min(most, len(self)))  # noqa: S311 - a sample, no secret
        lengths = [len(self._batch.sequences[place].ids) for place in places]
        groups = by_size(lengths, rows * max(lengths), most_rows=rows)
        return [self._lessons([places[n] for n in own]) for own in groups]

    def _lessons(self, places: Sequence[int]) -> Lessons:
        padded = self._batch.padded(places)
        return Lessons(
            {name: torch.from_numpy(padded[own]) for name, own in self._names.items()},
            {task: torch.from_numpy(own[places]) for task, own in self._belongs.items()},
            {task: torch.from_numpy(own[places]) for task, own in self._labels.items()},
        )


def unlike(
    found: torch.Tensor, expected: torch.Tensor, lessons: Lessons, task: str, form: str, temperature: float
) -> torch.Tensor:
    """Return how much a student's raw scores differ from its teacher's on a task's sequences, as a mean.

    `form` is that of the scores (`form_of`). Classes are compared by the Kullback-Leibler divergence of the softened
    probabilities (Hinton, Vinyals and Dean, 2015), times the square of the temperature; independent labels by their
    cross-entropy; numbers by the squared error, as a share of their variance.
    """
    rows = lessons.belongs[task]
    if not rows.any():
        return torch.zeros(())
    own, other = _rows(found[rows], lessons.mask[rows], form), _rows(expected[rows], lessons.mask[rows], form)
    if form == "none":
        return functional.mse_loss(own, other) / (other.var(correction=0) + 1e-6)
    if form == "sigmoid":
        return functional.binary_cross_entropy_with_logits(own, other.sigmoid())
    soft, target = (own / temperature).log_softmax(-1), (other / temperature).log_softmax(-1)
    return functional.kl_div(soft, target, log_target=True, reduction="batchmean") * temperature**2


def _rows(scores: torch.Tensor, mask: torch.Tensor, form: str) -> torch.Tensor:
    """Return scores as rows of choices: a row for each token if tokens are labelled, or for each end of an answer."""
    if form == PLACES:
        return scores.transpose(1, 2).masked_fill(~mask.unsqueeze(1), _NOWHERE).flatten(0, 1)
    return scores[mask] if scores.ndim == 3 else scores


def surprise(scores: torch.Tensor, lessons: Lessons, task: str, form: str) -> torch.Tensor:
    """Return the mean cross-entropy of a task's sequences with their labels, or with the network's own best answers."""
    rows = lessons.belongs[task]
    if not rows.any():
        return torch.zeros(())
    own = _rows(scores[rows], lessons.mask[rows], form)
    if form == "none":
        return own.square().mean()
    wanted = own.detach().argmax(-1)
    if form == "softmax" and scores.ndim == 2:
        labels = lessons.labels[task][rows]
        wanted = torch.where(labels == NO_LABEL, wanted, labels)
    return functional.cross_entropy(own, wanted)


def wrong(scores: torch.Tensor, lessons: Lessons, task: str) -> torch.Tensor:
    """Return the mean cross-entropy of a classification's labelled sequences; 0 without any."""
    labels = lessons.labels[task]
    if not (labels != NO_LABEL).any():
        return torch.zeros(())
    return functional.cross_entropy(scores, labels, ignore_index=NO_LABEL)
