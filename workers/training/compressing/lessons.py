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
from workers.models.interface.model import Array
from workers.training.compressing.compress_rows import CompressRow
from workers.training.kinds.labelled_kind import LabelledKind
from workers.training.kinds.span_kinds import TokenLabelKind
from workers.training.training_batches import all_of, by_size

Inputs = dict[str, torch.Tensor]

#: The raw score of a place without a token.
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
    """Padded sequences, and for each task the sequences that it reads, those with labels, and the labels' targets."""

    inputs: Inputs
    reads: Mapping[str, torch.Tensor]
    labelled: Mapping[str, torch.Tensor]
    targets: Mapping[str, torch.Tensor]

    @property
    def mask(self) -> torch.Tensor:
        """Whether a place has a token, `(sequences, tokens)`."""
        return self.inputs["attention_mask"].bool()


class TokenizedRows:
    """The distinct token sequences of rows, as the served model reads them."""

    def __init__(self, model: EncoderModel, kinds: Mapping[str, LabelledKind], rows: Sequence[CompressRow]) -> None:
        params = [{task: kinds[task].cut_params for task in row.tasks} for row in rows]
        prepared = all_of(model.prepare_many([row.content for row in rows], params))
        self._batch = Batch(model.collate(prepared), model.checkpoint.pad_id)
        typed = Tokenizing(model.checkpoint).check() and model.checkpoint.config.get("type_vocab_size", 2) > 1
        self._names = {"input_ids": "ids", "attention_mask": "mask"} | ({"token_type_ids": "types"} if typed else {})
        self.kinds = kinds
        #: The form of each task's raw scores.
        self.forms = {task: form_of(head) for task, head in model.heads.items()}
        self._reads = {task: np.zeros(len(self), dtype=np.bool_) for task in kinds}
        self._targets: dict[str, dict[int, Array]] = {task: {} for task in kinds}
        for task, kind in kinds.items():
            every = self._batch.of(task, np.arange(len(rows)))
            for row, own, places in zip(rows, prepared, every, strict=True):
                self._reads[task][places] = True
                if task in row.labels and task not in own.refused:
                    targets = kind.targets(row.labels[task], own.aside[task])
                    self._targets[task] |= {int(place): targets[n] for n, place in enumerate(places)}

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

    def unlike(
        self, task: str, found: torch.Tensor, expected: torch.Tensor, lessons: Lessons, temperature: float
    ) -> torch.Tensor:
        """Return how much a student's raw scores differ from its teacher's on a task's sequences, as a mean.

        Classes are compared by the Kullback-Leibler divergence of the softened probabilities (Hinton, Vinyals and Dean,
        2015), times the square of the temperature; independent labels by their cross-entropy; numbers by the squared
        error, in units of the labels' deviation.
        """
        rows, form = lessons.reads[task], self.forms[task]
        if not rows.any():
            return torch.zeros(())
        own, other = (_rows(scores[rows], lessons.mask[rows], form) for scores in (found, expected))
        if form == "none":
            return functional.mse_loss(own, other) / self.kinds[task].units[0] ** 2
        if form == "sigmoid":
            return functional.binary_cross_entropy_with_logits(own, other.sigmoid())
        soft, target = (own / temperature).log_softmax(-1), (other / temperature).log_softmax(-1)
        return functional.kl_div(soft, target, log_target=True, reduction="batchmean") * temperature**2

    def _lessons(self, places: Sequence[int]) -> Lessons:
        padded = self._batch.padded(places)
        known = {task: [place in own for place in places] for task, own in self._targets.items()}
        return Lessons(
            {name: torch.from_numpy(padded[own]) for name, own in self._names.items()},
            {task: torch.from_numpy(own[places]) for task, own in self._reads.items()},
            {task: torch.tensor(own) for task, own in known.items()},
            {task: self._joined(task, places, padded["ids"].shape[1]) for task in self.kinds},
        )

    def _joined(self, task: str, places: Sequence[int], tokens: int) -> torch.Tensor:
        """Return the targets of the sequences that have any. Tokens are padded."""
        found = [own for place in places if (own := self._targets[task].get(place)) is not None]
        blank = self.kinds[task].blank
        if isinstance(self.kinds[task], TokenLabelKind):
            found = [np.concatenate([own, np.repeat(blank[0], tokens)])[:tokens] for own in found]
        return torch.from_numpy(np.stack(found) if found else blank[:0])


def _rows(scores: torch.Tensor, mask: torch.Tensor, form: str) -> torch.Tensor:
    """Return scores as rows of choices: a row for each token if tokens are labelled, or for each end of an answer."""
    if form == PLACES:
        return scores.transpose(1, 2).masked_fill(~mask.unsqueeze(1), _NOWHERE).flatten(0, 1)
    return scores[mask] if scores.ndim == 3 else scores


def surprise(scores: torch.Tensor, lessons: Lessons, task: str, form: str) -> torch.Tensor:
    """Return the mean cross-entropy of a task's sequences with the network's own best answers."""
    rows = lessons.reads[task]
    if not rows.any():
        return torch.zeros(())
    own = _rows(scores[rows], lessons.mask[rows], form)
    if form == "none":
        return own.square().mean()
    if form == "sigmoid":
        return functional.binary_cross_entropy_with_logits(own, (own.detach() > 0).to(own.dtype))
    return functional.cross_entropy(own, own.detach().argmax(-1))


def wrong(scores: torch.Tensor, lessons: Lessons, task: str, kind: LabelledKind) -> torch.Tensor:
    """Return the mean loss of a task's labels, as `argosy train` has it; 0 without any."""
    rows, targets = lessons.labelled[task], lessons.targets[task]
    if not rows.any():
        return torch.zeros(())
    return kind.losses(scores[rows].unsqueeze(1), targets).sum() / kind.terms(targets).sum().clamp(min=1)
