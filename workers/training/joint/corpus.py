"""The labelled texts of a joint training, tokenised once, by the serving code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from producers.wire.kinds.text import TextClassificationParams
from workers.models.built_in.text.text_model import TextModel
from workers.models.interface.model import ModelSpec, Prepared
from workers.training.data import Example, Split, texts_as_served
from workers.training.joint import joint_network
from workers.training.loop.recipe import Recipe
from workers.training.loop.schedule import Place
from workers.training.loop.training_subject import Examples, Part, TrainingSubject
from workers.training.splits.layouts import NetworkShape
from workers.training.training_batches import all_of


@dataclass(frozen=True, slots=True)
class Texts:
    """One task's texts, tokenised, with the numbers of their labels."""

    rows: list[Prepared]
    labels: list[int]


@dataclass(frozen=True, slots=True)
class Corpus(TrainingSubject):
    """The tasks, with their labels in the order of their scores, and the texts of each."""

    encoder: Path
    labels: dict[str, tuple[str, ...]]
    train: list[Texts]
    validation: list[Texts]

    @property
    def tasks(self) -> Sequence[str]:
        return list(self.labels)

    @property
    def stream_sizes(self) -> tuple[int, ...]:
        return tuple(len(texts.rows) for texts in self.train)

    @property
    def shape(self) -> NetworkShape:
        return NetworkShape.of(self.encoder, lower_layers=True)

    def build(self, recipe: Recipe) -> nn.Module:
        counts = {task: len(labels) for task, labels in self.labels.items()}
        return joint_network.build(self.encoder, counts, recipe.weights, recipe.seed)

    def examples(self, part: Part, device: str) -> Batches:
        return Batches(self.encoder, self.train if part == "train" else self.validation, device)

    def scores(self, judged: Sequence[torch.Tensor]) -> list[float]:
        return [right / rows for rows, _, right in torch.stack([*judged]).sum(0).tolist()]


def read(encoder: Path, splits: Mapping[str, Split], max_tokens: int) -> Corpus:
    """Tokenise each task's training and validation part for the encoder in that folder, cut at `max_tokens`."""
    model = TextModel(ModelSpec("text", encoder, "", {}, {"max_tokens": max_tokens}))
    labels = {task: tuple(sorted({example.label for example in split.train})) for task, split in splits.items()}
    train = [_texts(model, task, split.train, labels[task]) for task, split in splits.items()]
    validation = [_texts(model, task, split.validation, labels[task]) for task, split in splits.items()]
    return Corpus(encoder, labels, train, validation)


def _texts(model: TextModel, task: str, examples: Sequence[Example], labels: tuple[str, ...]) -> Texts:
    params = {task: TextClassificationParams(truncation=True)}
    texts = texts_as_served(examples, task)
    rows = all_of(model.prepare_many(texts, [params] * len(texts)))
    return Texts(rows, [labels.index(example.label) for example in examples])


class Batches(Examples):
    """Tensors of the network's arguments, from examples by their places."""

    def __init__(self, encoder: Path, texts: Sequence[Texts], device: str) -> None:
        self._collate = TextModel(ModelSpec("text", encoder, "", {})).collate
        self._texts = texts
        self._device = device

    def lengths(self, places: Sequence[Place]) -> list[int]:
        return [self._texts[task].rows[number].size for task, number in places]

    def batch(self, places: Sequence[Place]) -> dict[str, torch.Tensor]:
        arrays = self._collate([self._texts[task].rows[number] for task, number in places])
        arrays["tasks"] = np.array([task for task, _ in places])
        arrays["labels"] = np.array([self._texts[task].labels[number] for task, number in places])
        return {name: torch.from_numpy(array).to(self._device) for name, array in arrays.items()}

    def judged(self, network: joint_network.JointNetwork, places: Sequence[Place]) -> torch.Tensor:
        """Return each task's rows, loss and right rows."""
        tallies: torch.Tensor = network(**self.batch(places))[1]
        return tallies.cpu()

    def places(self) -> list[Place]:
        return [(task, number) for task, texts in enumerate(self._texts) for number in range(len(texts.rows))]
