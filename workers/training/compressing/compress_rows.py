"""Rows to teach and to judge a compressed model: from a file, from a recipe of `argosy train`, or from a stored job."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from producers.sources import Source
from producers.wire.errors import ConfigurationError, InvalidInput
from producers.wire.messages import QuestionInput, stored_envelope
from results_store.records import ResultState
from results_store.store import Store
from workers.models.huggingface.text.encoder import EncoderModel
from workers.models.huggingface.text.label_heads import Classification
from workers.training.kinds.label_kinds import ClassificationKind, MultiLabelKind, RegressionKind
from workers.training.kinds.labelled_kind import LabelledKind, deviation
from workers.training.kinds.span_kinds import LabelledSpan, TokenLabelKind
from workers.training.kinds.trained_kinds import TRAINED
from workers.training.recipes import labelled_rows, recipe_file
from workers.training.recipes.labelled_rows import BadRows, LabelledRow
from workers.training.recipes.recipe_file import RecipeFile, TaskTable

#: Fewer rows than this neither teach nor judge a model.
LEAST_ROWS = 8

#: A task's kind of training by its function from raw scores to scores.
_OF_LABELS = {"softmax": "classification", "sigmoid": "multi-label", "none": "regression"}


@dataclass(frozen=True, slots=True)
class CompressRow:
    """An input, the tasks that read it, and the labels that some of them have."""

    content: Any
    tasks: tuple[str, ...]
    labels: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CompressRows:
    """The rows that teach and those that judge, with the kinds that read their labels."""

    kinds: Mapping[str, LabelledKind]
    learnt: Sequence[CompressRow]
    judged: Sequence[CompressRow]


def kinds_of(model: EncoderModel) -> dict[str, LabelledKind]:
    """Return the kinds of a model's tasks, with the model's own labels. A task's label is in the column of its name."""
    found = {}
    for task, head in model.heads.items():
        if isinstance(head, Classification):
            name = _OF_LABELS[head.function]
        else:
            name = next(name for name, kind in TRAINED.items() if kind.served == head.task.kind.name)
        labels = head.checkpoint.labels if name in ("classification", "multi-label") else ()
        found[task] = kind = TRAINED[name](task, TaskTable(kind=name, label=task, labels=labels), f"tasks.{task}")
        kind.labels = head.checkpoint.labels
    return found


def from_file(path: Path, model: EncoderModel, held_out: float) -> CompressRows:
    """Return the rows of a file in any form that `argosy submit` reads, or those of a recipe of `argosy train`.

    A recipe's training rows teach, and its test rows judge. Raises ConfigurationError, or BadRows that names each bad
    row by file, line and field.
    """
    if path.suffix == ".toml":
        return _of_recipe(recipe_file.load(path), model)
    kinds = kinds_of(model)
    rows, bad = list[CompressRow](), list[InvalidInput]()
    for origin, columns in Source([str(path)], "text").plain_rows():
        try:
            if isinstance(columns, InvalidInput):
                raise columns
            labels = {name: label for name, kind in kinds.items() if (label := kind.label(columns, origin)) is not None}
            rows += _inputs(kinds, LabelledRow(origin, columns, labels))
        except InvalidInput as error:
            bad.append(error)
    BadRows.raise_for(bad)
    return _parted(kinds, rows, held_out, str(path))


def digest(path: Path) -> str:
    """Return a digest of a file of rows; of a recipe, also of the rows that it names."""
    found = hashlib.blake2b(path.read_bytes())
    if path.suffix == ".toml":
        recipe = recipe_file.load(path)
        for files in (recipe.data.train, recipe.data.validation, recipe.data.test):
            for _, row in labelled_rows.plain_rows(recipe.files(files), recipe.data.format):
                found.update(repr(row).encode())
    return found.hexdigest()


def _of_recipe(recipe: RecipeFile, model: EncoderModel) -> CompressRows:
    if recipe.tasks.keys() != model.heads.keys():
        problem = f"has the tasks {', '.join(recipe.tasks)}, and the model {', '.join(model.heads)}"
        raise recipe.wrong("tasks", problem)
    found = labelled_rows.read(recipe)
    for name, kind in found.tasks.items():
        has_labels = isinstance(kind, ClassificationKind | MultiLabelKind | TokenLabelKind)
        if has_labels and kind.labels != model.heads[name].checkpoint.labels:
            raise recipe.wrong(f"tasks.{name}", f"has the labels {', '.join(kind.labels)}, and the model others")
    learnt, judged = ([one for row in rows for one in _inputs(found.tasks, row)] for rows in (found.train, found.test))
    return CompressRows(found.tasks, learnt, judged)


def _inputs(kinds: Mapping[str, LabelledKind], row: LabelledRow) -> Iterator[CompressRow]:
    """Yield a row's inputs, each with the tasks that read it. A task without label reads a row that has its columns."""
    tasks: dict[Any, list[str]] = {}
    for name, kind in kinds.items():
        if name in row.labels or all(row.columns.get(column) for column in kind.columns):
            tasks.setdefault(kind.content(row.columns, row.origin), []).append(name)
    if not tasks:
        wanted = " or ".join(dict.fromkeys(", ".join(kind.columns) for kind in kinds.values()))
        raise InvalidInput(row.origin, f"has no {wanted}", "name the column of the inputs so")
    for content, own in tasks.items():
        yield CompressRow(content, tuple(own), {name: row.labels[name] for name in own if name in row.labels})


def of_job(store: Store, job: str, model: EncoderModel, held_out: float) -> CompressRows:
    """Return the inputs of a stored job with the fleet's own answers as labels.

    Raises UnknownJob, or ConfigurationError if the job has too few texts with answers of the model's tasks.
    """
    id_, kinds = store.job_id(job), kinds_of(model)
    inputs: dict[int, str | QuestionInput] = {}
    labels: dict[int, dict[str, Any]] = {}
    envelopes: set[str] = set()
    after: tuple[int, str] | None = None
    while page := store.results(id_, after=after):
        after = (page[-1].seq, page[-1].task)
        kept = store.inputs({row.envelope for row in page} - envelopes)
        envelopes |= kept.keys()
        items = chain.from_iterable(stored_envelope(*payload)[0].items for payload in kept.values())
        inputs |= {item.seq: item.input for item in items if isinstance(item.input, str | QuestionInput)}
        for row in page:
            if row.state is ResultState.SUCCEEDED and row.task in kinds and row.output:
                _check_whole(kinds[row.task], row.output, f"job {id_}: tasks.{row.task}")
                labels.setdefault(row.seq, {})[row.task] = label_of(kinds[row.task], row.output)
    rows = [CompressRow(inputs[seq], tuple(own), own) for seq, own in labels.items() if seq in inputs]
    return _parted(kinds, rows, held_out, f"job {id_}")


def _check_whole(kind: LabelledKind, answer: Any, where: str) -> None:
    """Raise ConfigurationError for an answer without all labels over 0.5: the others would be taught as wrong."""
    if isinstance(kind, MultiLabelKind) and len(answer) < len(kind.labels) and answer[-1]["score"] > 0.5:
        problem = f"has answers with {len(answer)} of {len(kind.labels)} labels, and more may apply"
        raise ConfigurationError(f'{where}: {problem}; submit it with the parameter "top_k": null')


def label_of(kind: LabelledKind, answer: Any) -> Any:
    """Return the label that an answer gives."""
    if isinstance(kind, RegressionKind):
        return float(answer[0]["score"])
    if isinstance(kind, ClassificationKind):
        return answer[0]["label"]
    if isinstance(kind, MultiLabelKind):
        return tuple(sorted(one["label"] for one in answer if one["score"] > 0.5))
    name = "entity_group" if isinstance(kind, TokenLabelKind) else "answer"
    return tuple(LabelledSpan(one["start"], one["end"], one.get(name, "")) for one in answer)


def _parted(
    kinds: Mapping[str, LabelledKind], rows: Sequence[CompressRow], held_out: float, where: str
) -> CompressRows:
    """Let every n-th row judge. Equal inputs stay on one side.

    Raises InvalidInput for a label without a place, and ConfigurationError for a task that no row reads.
    """
    if len(rows) < LEAST_ROWS:
        problem = f"has {len(rows)} rows of use, fewer than {LEAST_ROWS}"
        raise ConfigurationError(f"{where}: {problem}; take a file, or a job with kept inputs, that has more")
    for name, kind in kinds.items():
        if isinstance(kind, TokenLabelKind):
            _check_scheme(kind, [row.labels[name] for row in rows if name in row.labels], f"{where}: {name}")
    for row in rows:
        for name, label in row.labels.items():
            kinds[name].check(label, f"{where}: {name}")
    every = max(2, round(1 / held_out))
    places = {content: n for n, content in enumerate(dict.fromkeys(row.content for row in rows))}
    judged = [row for row in rows if places[row.content] % every == 0]
    for name, kind in kinds.items():
        if isinstance(kind, RegressionKind) and (own := [row.labels[name] for row in rows if name in row.labels]):
            kind.units = deviation(own), float(np.mean(own))
    found = CompressRows(kinds, [row for row in rows if places[row.content] % every], judged)
    _check_tasks(found, where)
    return found


def _check_tasks(rows: CompressRows, where: str) -> None:
    """Raise ConfigurationError for a task that no row to teach, or none to judge, reads."""
    for name in rows.kinds:
        for own, use in ((rows.learnt, "teach"), (rows.judged, "judge")):
            if not any(name in row.tasks for row in own):
                problem = f"has no row to {use} the model's task {name!r}"
                raise ConfigurationError(f"{where}: {problem}; take a file, or a job, with rows of all its tasks")


def _check_scheme(kind: TokenLabelKind, labels: Sequence[Sequence[LabelledSpan]], where: str) -> None:
    """Raise ConfigurationError unless the model labels tokens as entities are taught: B-, then I-, and O outside."""
    used = {span.label for label in labels for span in label}
    used = used & {label[2:] for label in kind.labels if label.startswith(("B-", "I-"))} or used
    needed = ["O", *(f"{prefix}-{type_}" for type_ in sorted(used) for prefix in "BI")] if labels else []
    if lacking := [label for label in needed if label not in kind.labels]:
        problem = f"the model's labels ({', '.join(kind.labels)}) have no {lacking[0]!r}, by which entities are taught"
        raise ConfigurationError(f"{where}: {problem}; take a file without labels of this task")
