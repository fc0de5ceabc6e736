"""Rows as token sequences with their labels, and the loss of a student that is to answer like its teacher."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from workers.models.huggingface.text.encoder import EncoderModel
from workers.models.huggingface.text.label_heads import Classification
from workers.models.huggingface.token_sequences import Batch
from workers.models.huggingface.tokenizing import Tokenizing
from workers.models.interface.sample_inputs import usual_params
from workers.training.compressing.labelled_rows import LabelledRow
from workers.training.training_batches import all_of, by_size

Inputs = dict[str, torch.Tensor]

#: The number of a missing label, which the loss ignores.
NO_LABEL = -100

#: The logit of a place without a token.
_NOWHERE = -1e4


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


class Corpus:
    """The distinct token sequences of rows, as the served model reads them."""

    def __init__(self, model: EncoderModel, rows: Sequence[LabelledRow]) -> None:
        tasks = model.spec.tasks
        params = [{task: usual_params(tasks[task]) for task in tasks}] * len(rows)
        prepared = all_of(model.prepare_many([row.content for row in rows], params))
        self._batch = Batch(model.collate(prepared), model.checkpoint.pad_id)
        typed = Tokenizing(model.checkpoint).check() and model.checkpoint.config.get("type_vocab_size", 2) > 1
        self._names = {"input_ids": "ids", "attention_mask": "mask"} | ({"token_type_ids": "types"} if typed else {})
        #: The function of each task from logits to scores.
        self.functions = {
            task: head.function if isinstance(head, Classification) else "softmax" for task, head in model.heads.items()
        }
        count = len(self._batch.sequences)
        self._belongs = {task: np.zeros(count, dtype=np.bool_) for task in tasks}
        self._labels = {task: np.full(count, NO_LABEL) for task in tasks}
        for task, head in model.heads.items():
            numbers = {name: number for number, name in enumerate(head.checkpoint.labels)}
            for row, places in zip(rows, self._batch.of(task, np.arange(len(rows))), strict=True):
                self._belongs[task][places] = True
                if isinstance(head, Classification) and self.functions[task] == "softmax":
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


def logits(output: Any) -> list[torch.Tensor]:
    """Return the logits of a head's output: of labels, or of an answer's first and last token."""
    return [output[name] for name in ("logits", "start_logits", "end_logits") if name in output]


def unlike(student: Any, teacher: Any, lessons: Lessons, task: str, function: str, temperature: float) -> torch.Tensor:
    """Return how much a student's output differs from its teacher's on a task's sequences, as a mean over them.

    `function` turns logits into scores. Classes are compared by the Kullback-Leibler divergence of the softened
    probabilities (Hinton, Vinyals and Dean, 2015), times the square of the temperature; independent labels by their
    cross-entropy; numbers by the squared error.
    """
    rows = lessons.belongs[task]
    if not rows.any():
        return torch.zeros(())
    mask = lessons.mask[rows]
    parts = []
    for own, other in zip(logits(student), logits(teacher), strict=True):
        mine, theirs = own[rows], other[rows]
        if mine.ndim == 3:  # labels of tokens
            mine, theirs = mine[mask], theirs[mask]
        elif "start_logits" in student:  # places in the text
            mine, theirs = mine.masked_fill(~mask, _NOWHERE), theirs.masked_fill(~mask, _NOWHERE)
        parts.append(_distance(mine, theirs, function, temperature))
    return torch.stack(parts).mean()


def _distance(own: torch.Tensor, other: torch.Tensor, function: str, temperature: float) -> torch.Tensor:
    if function == "none":
        return functional.mse_loss(own, other)
    if function == "sigmoid":
        return functional.binary_cross_entropy_with_logits(own, other.sigmoid())
    soft, target = (own / temperature).log_softmax(-1), (other / temperature).log_softmax(-1)
    return functional.kl_div(soft, target, log_target=True, reduction="batchmean") * temperature**2


def wrong(output: Any, lessons: Lessons, task: str) -> torch.Tensor:
    """Return the mean cross-entropy of a classification's labelled sequences; 0 without any."""
    labels = lessons.labels[task]
    if not (labels != NO_LABEL).any():
        return torch.zeros(())
    return functional.cross_entropy(logits(output)[0], labels, ignore_index=NO_LABEL)
