"""Joint training of an encoder with its heads, by real processes that exchange real gradients. The encoder is tiny and its
weights are random; dropout is off where trainings are compared."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import msgspec
import pytest
import torch
from safetensors.torch import load_file

from producers.errors import ConfigurationError
from tests import tiny_checkpoints
from workers import serving, settings
from workers.training.batches import best_labels
from workers.training.data import Example, Split
from workers.training.joint import checkpoint, corpus, processes, result, trainer
from workers.training.joint.corpus import Corpus
from workers.training.joint.processes import Process
from workers.training.joint.recipe import Recipe
from workers.training.joint.trainer import Line, Work

STEPS = 12
RECIPE = Recipe(steps=STEPS, rows=12, max_tokens=32, encoder_rate=1e-3, dropout=False, evaluate_every=6)

#: By how much weights may differ after `STEPS` steps in which the same numbers were added up in another order.
TOLERANCE = 1e-5

WORDS = {
    "mood": {"negative": ("bad", "dull"), "positive": ("good", "fine", "moving")},
    "place": {"berlin": ("berlin",), "london": ("london",), "paris": ("paris",)},
}
_FILLING = ("the", "a", "film", "was", "said", "it", "of", "team", "year")


def split(task: str, count: int) -> Split:
    """Return texts of one telling word among others that are none."""
    random = Random(task)
    found = []
    for number in range(count):
        label = random.choice(sorted(WORDS[task]))
        words = [random.choice(_FILLING) for _ in range(random.randint(2, 12))] + [random.choice(WORDS[task][label])]
        random.shuffle(words)
        found.append(Example(" ".join(words), label, str(number), "made"))
    return Split(found[: count // 2], found[count // 2 : count * 3 // 4], found[count * 3 // 4 :])


@pytest.fixture(scope="module")
def splits() -> dict[str, Split]:
    return {"mood": split("mood", 240), "place": split("place", 120)}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory, splits: Mapping[str, Split]) -> Corpus:
    folder = tiny_checkpoints.bert(tmp_path_factory.mktemp("encoder"), "BertModel", num_hidden_layers=6)
    return corpus.read(folder, splits, RECIPE.max_tokens)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For networks this small, threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def weights(out: Path) -> dict[str, torch.Tensor]:
    """Return all that the last checkpoint has of a training: its weights, and the optimiser's averages."""
    return load_file(out / checkpoint.FILE)


def furthest(some: Mapping[str, torch.Tensor], others: Mapping[str, torch.Tensor]) -> float:
    assert some.keys() == others.keys()
    return max(float((tensor - others[name]).abs().max()) for name, tensor in some.items())


@pytest.fixture(scope="module")
def alone(texts: Corpus, tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Work:
    """A training by this very process."""
    work = Work(corpus=texts, recipe=RECIPE, out=tmp_path_factory.mktemp("alone"))
    trainer.train(Process(), work)
    return work


def one_by_one(process: Process, works: Sequence[Work]) -> None:
    """In one group, as starting processes takes longer than these trainings."""
    for work in works:
        trainer.train(process, work)


@pytest.fixture(scope="module")
def together(alone: Work, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Line]]:
    """The steps of trainings by two processes, by how their gradients were exchanged, with their folders' names."""
    out = tmp_path_factory.mktemp("together")
    works = {
        name: replace(alone, out=out / name, recipe=msgspec.structs.replace(RECIPE, compression=name))
        for name in ("none", "fp16", "bf16", "powersgd", "topk")
    }
    works["accumulated"] = replace(alone, out=out / "accumulated", accumulate=3, bucket_mb=0.05)
    processes.run(one_by_one, list(works.values()), count=2, device="cpu")
    for name, work in works.items():
        (alone.out / name).symlink_to(work.out)
    return {name: list(trainer.read_log(work.out)) for name, work in works.items()}


@pytest.mark.parametrize("name", ["none", "accumulated"])
def test_two_processes_come_to_what_one_comes_to(name: str, alone: Work, together: Mapping[str, object]) -> None:
    """Each has half of every step's rows; the mean of their gradients is the gradient of all rows."""
    assert furthest(weights(alone.out), weights(alone.out / name)) < TOLERANCE


def test_micro_batches_come_to_what_one_batch_comes_to(alone: Work, tmp_path: Path) -> None:
    """Their gradients add up, so a step's rows may be more than memory holds at a time."""
    trainer.train(Process(), replace(alone, out=tmp_path, accumulate=4))
    assert furthest(weights(alone.out), weights(tmp_path)) < TOLERANCE


def test_it_learns(alone: Work) -> None:
    first, *_, last = trainer.read_log(alone.out)
    assert last.accuracies is not None
    assert all(before and after and after < before for before, after in zip(first.losses, last.losses, strict=True))
