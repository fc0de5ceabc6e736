"""Train a recipe: rows, steps, the folder that a worker serves, and a card of its scores."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import torch

from producers.wire.atomic_files import write_json
from producers.wire.errors import ArgosyError, ConfigurationError
from producers.wire.fleet_file import known
from workers.models.sources import model_source
from workers.models.sources.model_source import Pulled
from workers.settings import built_in_tables
from workers.training.kinds.labelled_kind import LabelledKind
from workers.training.loop import processes, trainer, training_checkpoint
from workers.training.loop.processes import Process
from workers.training.loop.recipe import Recipe, Split
from workers.training.loop.trainer import LogLine, Work
from workers.training.loop.training_subject import Part
from workers.training.recipes import curves, labelled_rows, served_folder, table_columns
from workers.training.recipes.folder_subject import TrainedFolder
from workers.training.recipes.labelled_rows import LabelledRow, LabelledRows
from workers.training.recipes.measured_subjects import TrainedSeries, TrainedTable
from workers.training.recipes.media_subjects import TrainedClips, TrainedImages, TrainedRecordings
from workers.training.recipes.recipe_file import RecipeFile
from workers.training.recipes.text_subject import TrainedTexts
from workers.training.recipes.written_subjects import TrainedDialogues, TrainedTextToText
from workers.training.splits import layouts
from workers.training.training_batches import by_size

CARD, COMPARED = "card.json", "compare"

_EVALUATIONS = 20
_JUDGED_TOKENS = 8192

#: The subject of each form of input: its rows as the worker reads them, and the network.
SUBJECTS: Mapping[str, type[TrainedFolder]] = {
    "text": TrainedTexts,
    "text to text": TrainedTextToText,
    "dialogue": TrainedDialogues,
    "row": TrainedTable,
    "series": TrainedSeries,
    "image": TrainedImages,
    "video": TrainedClips,
    "audio": TrainedRecordings,
}

#: The settings of the table `train` that only some forms of input have.
_OF_SOME_FORMS = ("backbone", "sharing", "lora_rank", "max_tokens", "hidden")
_NO_BACKBONE = Pulled(Path(), "")
_ALONE = Process()

#: Called with each step and the number of all steps.
Show = Callable[[LogLine, int], None]


class TaskResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """A task's scores on the test part, by metric, the main one first.

    `alone` and `frozen` are the main score of a training of this task alone, and on the frozen backbone.
    """

    kind: str
    train_rows: int
    test_rows: int
    scores: dict[str, float]
    baseline: float | None = None
    alone: float | None = None
    frozen: float | None = None


class TrainingCard(msgspec.Struct, frozen=True):
    """The origin of a folder's weights, and their scores on held-out rows."""

    backbone: str
    best_step: int
    steps: int
    seconds: float
    recipe: Recipe
    tasks: dict[str, TaskResult]


@dataclass(frozen=True, slots=True)
class RecipeTraining:
    """A training of a recipe, or of a part of it, in a folder."""

    recipe: RecipeFile
    rows: LabelledRows
    backbone: Pulled
    out: Path
    process: Process = _ALONE
    split: Split = "rows"

    @property
    def tasks(self) -> list[LabelledKind]:
        return [*self.rows.tasks.values()]


def prepare(recipe: RecipeFile, *, resume: bool, process: Process = _ALONE, split: Split = "rows") -> RecipeTraining:
    """Read the rows, and pull the backbone if it is not there. Raises ConfigurationError before any work is done."""
    served_folder.check_free(recipe, resume=resume)
    subject = _subject(labelled_rows.tasks_of(recipe).values())
    _check_settings(recipe, subject)
    backbone = _backbone(recipe) if subject.has_backbone else _NO_BACKBONE
    shape = subject.shape_of(backbone.folder, recipe.train)
    layouts.check(split, process.count, shape, recipe.train.compression)
    return RecipeTraining(recipe, labelled_rows.read(recipe), backbone, recipe.out, process, split)


def doubts(training: RecipeTraining) -> Iterator[str]:
    """Yield a sentence for each doubtful input column of a table."""
    if _subject(training.tasks) is TrainedTable:
        for name in training.tasks[0].columns:
            cells = [row.columns.get(name) for row in training.rows.train]
            yield from table_columns.doubts(name, cells, "leave it out: data.drop")


def follow(process: Process) -> None:
    """Take part in each training that the first process runs, until it ends. The first tells all errors of Argosy."""
    while (work := processes.told()) is not None:
        with suppress(ArgosyError):
            trainer.train(process, work)


def run(training: RecipeTraining, show: Show, stopping: Callable[[], bool] = trainer.never) -> TrainingCard:
    """Train to the end, from the last checkpoint if there is one, and write the folder. Raises ConfigurationError.

    The first of several processes calls this; the others `follow`. See `trainer.steps` for `stopping`.
    """
    recipe = loop_recipe(training)
    training_checkpoint.of_recipe(training.out, recipe)  # before the subject writes its settings beside other weights
    subject = subject_of(training)
    table, device = training.recipe.train, training.process.device
    work = Work(
        corpus=subject, recipe=recipe, out=training.out, accumulate=table.accumulate, split=training.split,
        checkpoint_every=table.checkpoint_every,
    )  # fmt: skip
    processes.tell(work)
    for line in trainer.steps(training.process, work, stopping):
        show(line, recipe.steps)
    log = list(trainer.read_log(training.out))
    curves.draw(training.out, log, {task.name: task.metric for task in training.tasks})
    network = subject.build(recipe)
    training_checkpoint.load_best(training.out, network)
    subject.calibrate(network)
    settle(subject, network.to(device), device)
    scores = subject.all_scores(list(answers(subject, network, device)))
    subject.write(network.cpu())
    served_folder.write_fleet(training.recipe, training.out, training.tasks, subject.served_class)
    card = TrainingCard(
        backbone=training.backbone.revision,
        best_step=training_checkpoint.best_step(training.out),
        steps=log[-1].step,
        seconds=round(sum(line.seconds for line in log), 1),
        recipe=recipe,
        tasks={task.name: _result(training, task, own) for task, own in zip(training.tasks, scores, strict=True)},
    )
    write_json(training.out / CARD, card)
    return card


def compare(
    training: RecipeTraining,
    card: TrainingCard,
    show: Callable[[str], Show],
    stopping: Callable[[], bool] = trainer.never,
) -> TrainingCard:
    """Train each task alone, and all on the frozen backbone, with the same rows and settings; return the whole card."""
    tasks = dict(card.tasks)
    for task in training.tasks:
        alone = run(_alone(training, task.name), show(f"{task.name} alone"), stopping)
        tasks[task.name] = msgspec.structs.replace(tasks[task.name], alone=main(alone.tasks[task.name]))
    has_heads = any(task.head for task in training.tasks) and _subject(training.tasks).has_backbone
    if training.recipe.train.sharing != "frozen" and has_heads:
        frozen = run(_frozen(training), show("frozen backbone"), stopping)
        for name, own in frozen.tasks.items():
            tasks[name] = msgspec.structs.replace(tasks[name], frozen=main(own))
    whole = msgspec.structs.replace(card, tasks=tasks)
    write_json(training.out / CARD, whole)
    return whole


def main(result: TaskResult) -> float:
    """Return a task's main score."""
    return next(iter(result.scores.values()))


def _alone(training: RecipeTraining, name: str) -> RecipeTraining:
    kind = copy.copy(training.rows.tasks[name])
    kind.fusion = ()
    train, validation, test = (
        [replace(row, labels={name: row.labels[name]}) for row in rows if name in row.labels]
        for rows in _parts(training.rows).values()
    )
    rows = replace(training.rows, tasks={name: kind}, train=train, validation=validation, test=test)
    return replace(training, rows=rows, out=training.out / COMPARED / name)


def _frozen(training: RecipeTraining) -> RecipeTraining:
    table = msgspec.structs.replace(training.recipe.train, sharing="frozen")
    recipe = msgspec.structs.replace(training.recipe, train=table)
    split: Split = "rows" if training.split == "stages" else training.split  # stages of a frozen backbone learn nothing
    return replace(training, recipe=recipe, out=training.out / COMPARED / "frozen.backbone", split=split)


def _parts(rows: LabelledRows) -> dict[Part, list[LabelledRow]]:
    return {"train": rows.train, "validation": rows.validation, "test": rows.test}


def _backbone(recipe: RecipeFile) -> Pulled:
    given = recipe.train.backbone
    where = f"{recipe.path}: train.backbone"
    if isinstance(given, str):
        models = {name: table for name, table in built_in_tables()["models"].items() if "source" in table}
        if given not in models:
            raise ConfigurationError(f"{where}: no built-in model {given!r}; {known(given, models)}")
        given = models[given]["source"]
    elif isinstance(path := given.get("path"), str):
        given = {**given, "path": str(recipe.found(path))}
    return model_source.pull(model_source.parse(given, where=where), model_source.cache_folder())


def subject_of(training: RecipeTraining) -> TrainedFolder:
    """Return the subject of a training, by the form of its tasks' inputs."""
    rows = _parts(training.rows)
    subject = _subject(training.tasks)
    return subject(training.backbone.folder, training.out, training.recipe.train, training.tasks, rows)


def _subject(tasks: Iterable[LabelledKind]) -> type[TrainedFolder]:
    return SUBJECTS[next(iter(tasks)).modality]


def _check_settings(recipe: RecipeFile, subject: type[TrainedFolder]) -> None:
    """Raise ConfigurationError for a setting that the form of the inputs has not."""
    usual = {one.name: one.default for one in msgspec.structs.fields(recipe.train)}
    for name in _OF_SOME_FORMS:
        if name not in subject.settings and getattr(recipe.train, name) != usual[name]:
            raise recipe.wrong(f"train.{name}", "is of other kinds than these tasks; take it out")
    if subject.has_backbone and not subject.usual_backbone and recipe.train.backbone == usual["backbone"]:
        raise recipe.wrong("train.backbone", "is missing; name a folder of Hugging Face: { path = … } or { hub = … }")


def loop_recipe(training: RecipeTraining) -> Recipe:
    table, tasks = training.recipe.train, training.tasks
    steps = table.steps or max(1, math.ceil(table.epochs * len(training.rows.train) / table.rows))
    weights = None if isinstance(table.weights, str) else {task.name: table.weights[task.name] for task in tasks}
    return Recipe(
        steps=steps,
        rows=table.rows,
        max_tokens=table.max_tokens,
        encoder_rate=table.rate,
        head_rate=table.head_rate,
        temperature=table.temperature,
        weights=weights,
        dropout=table.dropout,
        precision=table.precision,
        compression=table.compression,
        evaluate_every=table.evaluate_every or max(1, steps // _EVALUATIONS),
        patience=table.patience,
        seed=table.seed,
        subject=_digest(training),
    )


def _digest(training: RecipeTraining) -> str:
    """Return a digest of the rows, the tasks and the backbone, and one of the settings of their inputs and layers."""
    digest = hashlib.blake2b(repr((training.backbone.revision, training.recipe.train.sharing)).encode(), digest_size=8)
    for task in training.tasks:
        digest.update(repr((task.name, type(task).__name__, task.head, task.fusion, task.config)).encode())
    for part, rows in _parts(training.rows).items():
        for row in rows:
            digest.update(repr((part, row.columns, row.labels)).encode())
    table = training.recipe.train
    inputs = [(task.columns, task.table.prefix, task.table.negatives) for task in training.tasks]
    settings = hashlib.blake2b(repr((inputs, table.hidden, table.lora_rank)).encode(), digest_size=8)
    return f"{digest.hexdigest()}.{settings.hexdigest()}"


def settle(subject: TrainedFolder, network: Any, device: str = "cpu") -> None:
    """Let tasks choose their thresholds on the validation part, with the best weights."""
    if any(kind.settles for kind in subject.kinds):
        subject.settle(network, list(answers(subject, network, device, "validation")))


def answers(
    subject: TrainedFolder, network: Any, device: str = "cpu", part: Part = "test"
) -> Iterator[list[tuple[int, Any, Any]]]:
    """Yield the task's number, answer and label of a part's rows, a batch at a time."""
    examples = subject.examples(part, device)
    places = examples.places()
    network.eval()
    with torch.inference_mode():
        for batch in by_size(examples.lengths(places), _JUDGED_TOKENS):
            yield examples.judged(network, [places[place] for place in batch])


def _result(training: RecipeTraining, task: LabelledKind, scores: dict[str, float]) -> TaskResult:
    parts = (training.rows.train, training.rows.test)
    train, test = ([row.labels[task.name] for row in part if task.name in row.labels] for part in parts)
    kind = training.recipe.tasks[task.name].kind
    return TaskResult(kind, len(train), len(test), scores, task.baseline(train, test))
