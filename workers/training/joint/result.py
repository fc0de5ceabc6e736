"""The result of a joint training: an encoder and its heads in a folder that a fleet can serve, and a card of its
scores.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from producers.wire.catalogue import Task
from producers.wire.kinds import KINDS
from workers.models.built_in.multitask import head_file
from workers.models.built_in.text.text_model import TextModel
from workers.models.interface.model import ModelSpec
from workers.training import evaluate
from workers.training.data import Example
from workers.training.joint import joint_network
from workers.training.joint.corpus import Corpus
from workers.training.loop import training_checkpoint
from workers.training.loop.recipe import Recipe

ENCODER, HEADS, CARD, SETTINGS = "encoder", "heads", "card.json", "fleet.toml"

_TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


class TaskCard(msgspec.Struct, frozen=True):
    """Held-out accuracies of a task: after joint training, of the head on the frozen encoder, and of its commonest
    label.
    """

    texts: int
    joint: float
    frozen: float
    majority: float


class Card(msgspec.Struct, frozen=True):
    """The origin of a folder's weights, and their scores on held-out texts."""

    encoder: str
    best_step: int
    recipe: Recipe
    tasks: dict[str, TaskCard]


def write(out: Path, corpus: Corpus, recipe: Recipe) -> None:
    """Write the best weights of a training to `out` as encoder, heads, and the ``fleet.toml`` table that serves
    them.
    """
    counts = {task: len(labels) for task, labels in corpus.labels.items()}
    trained = joint_network.build(corpus.encoder, counts, recipe.weights, recipe.seed)
    training_checkpoint.load_best(out, trained)
    trained.encoder.backbone.save_pretrained(out / ENCODER)
    (out / ENCODER / "model.safetensors").chmod(0o644)  # safetensors writes files readable by their owner alone
    for name in _TOKENIZER:
        if (corpus.encoder / name).is_file():
            shutil.copyfile(corpus.encoder / name, out / ENCODER / name)
    for task, module in trained.heads.items():
        about = {"seed": recipe.seed, "step": training_checkpoint.best_step(out)}
        head_file.save(
            module, out / HEADS / task / head_file.FILE, kind="attention", labels=corpus.labels[task], **about
        )
    (out / SETTINGS).write_text(_settings(out.resolve(), list(corpus.labels), recipe.max_tokens), encoding="utf-8")


def _settings(out: Path, tasks: Sequence[str], max_tokens: int) -> str:
    lines = ["[models.joint]", 'class = "text"']
    lines += [f"source = {{ path = {json.dumps(str(out / ENCODER))} }}"]
    lines += [f"options = {{ heads = {json.dumps(str(out / HEADS))}, max_tokens = {max_tokens} }}"]
    lines += ["", "[models.joint.tasks]", *(f'{task} = "text-classification"' for task in tasks)]
    return "\n".join(lines) + "\n"


def model(out: Path, tasks: Sequence[str], max_tokens: int, device: str = "cpu") -> TextModel:
    """Return the written model, loaded as in a worker."""
    served = {task: Task(task, KINDS["text-classification"], "joint", "") for task in tasks}
    options = {"heads": str(out / HEADS), "max_tokens": max_tokens}
    found = TextModel(ModelSpec("joint", out / ENCODER, "", served, options))
    found.load(device)
    return found


def judge(joint: TextModel, frozen: TextModel, test: Mapping[str, Sequence[Example]]) -> dict[str, TaskCard]:
    """Compare two models on the tasks' test parts, both by the serving code."""
    found = {}
    for task, examples in test.items():
        new, old = (evaluate.judge(task, examples, one)[0] for one in (joint, frozen))
        found[task] = TaskCard(new.texts, new.accuracy, old.accuracy, new.majority)
    return found
