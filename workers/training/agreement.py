"""Compares the answers of two backends: the answers that users get, and the numbers behind them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from producers.wire.catalogue import Task
from workers.models.interface.model import Array, Model, Prepared
from workers.models.interface.sample_inputs import Item
from workers.training.training_batches import all_of

#: The correct part of an answer (0 to 1), and the mean difference of its scores.
Compared: TypeAlias = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Trial:
    """A prepared input for measuring candidates."""

    item: Item
    row: Prepared


@dataclass(frozen=True, slots=True)
class Answered:
    """A model's outputs for one trial, by task: the head's output, and the answer."""

    outputs: Mapping[str, Array]
    answers: Mapping[str, Any]


def answered(model: Model, batches: Iterable[Sequence[Trial]]) -> list[Answered]:
    """Return a model's outputs for the trials, in the order of the batches."""
    return [one for batch in batches for one in _answered(model, batch)]


def run(model: Model, batch: Sequence[Trial]) -> dict[str, tuple[Array, Array]]:
    """Run a batch; return by task its rows, and their outputs."""
    wanted = {
        task: np.array([n for n, trial in enumerate(batch) if task in trial.item[1]], dtype=np.int64)
        for task in model.spec.tasks
    }
    wanted = {task: rows for task, rows in wanted.items() if len(rows)}
    outputs = model.forward(model.collate([trial.row for trial in batch]), wanted)
    return {task: (rows, outputs[task]) for task, rows in wanted.items()}


def _answered(model: Model, batch: Sequence[Trial]) -> list[Answered]:
    found = [Answered({}, {}) for _ in batch]
    for task, (rows, outputs) in run(model, batch).items():
        trials = [batch[row] for row in rows]
        params = [trial.item[1][task] for trial in trials]
        answers = all_of(model.finish_many(model.spec.tasks[task], outputs, params, [trial.row for trial in trials]))
        for row, output, answer in zip(rows.tolist(), outputs, answers, strict=True):
            found[row] = Answered({**found[row].outputs, task: output.copy()}, {**found[row].answers, task: answer})
    return found


@dataclass(frozen=True, slots=True)
class Agreement:
    """`same` is the least share over the tasks of equal answers, `shift` the greatest mean difference of their
    scores, `cosine` the least cosine between vectors, or between other numeric outputs.
    """

    same: float
    shift: float
    cosine: float


def agreement(found: Sequence[Answered], expected: Sequence[Answered], tasks: Mapping[str, Task]) -> Agreement:
    """Compare the outputs of two candidates for the same trials."""
    same, shift, cosine = 1.0, 0.0, 1.0
    for name, task in tasks.items():
        pairs = [(one, other) for one, other in zip(found, expected, strict=True) if name in other.answers]
        compared = [compare(task.kind.name, one.answers[name], other.answers[name]) for one, other in pairs]
        if compared:
            right, shifts = zip(*compared, strict=True)
            # NumPy's maximum, unlike Python's, is NaN if a value is
            same, shift = min(same, float(np.mean(right))), float(np.maximum(shift, np.mean(shifts)))
        numbers = [(one.outputs[name], other.outputs[name]) for one, other in pairs]
        cosines = [_cosine(one, other) for one, other in numbers if other.dtype != np.uint8]  # bytes are packed values
        cosine = min([cosine, *cosines])
    return Agreement(same, shift, cosine)


def compare(kind: str, found: Any, expected: Any) -> Compared:
    """Return the correct part of an answer, and the mean difference of its scores."""
    if isinstance(expected, np.ndarray):
        return 1.0, 0.0  # a vector is compared by its cosine alone
    return _COMPARE.get(kind, _labels)(found, expected)


def _labels(found: Any, expected: Any) -> Compared:
    """Compare the best labels, or answers; scores are compared label by label."""
    name = "label" if "label" in expected[0] else "answer"
    scores = {one[name]: one["score"] for one in found}
    shifts = [abs(scores[one[name]] - one["score"]) for one in expected if one[name] in scores]
    return float(found[0][name] == expected[0][name]), _mean(shifts)


def _spans(found: Any, expected: Any) -> Compared:
    """Compare entities by the characters that they cover, so that a shorter one is not all wrong."""
    ours, theirs = _covered(found), _covered(expected)
    right = sum(
        theirs.get(place, ("", 0.0))[0] == ours.get(place, ("", 0.0))[0] for place in ours.keys() | theirs.keys()
    )
    shifts = [abs(ours[place][1] - theirs[place][1]) for place in ours.keys() & theirs.keys()]
    return right / max(len(ours.keys() | theirs.keys()), 1) if theirs or ours else 1.0, _mean(shifts)


def _covered(entities: Any) -> dict[int, tuple[str, float]]:
    return {
        place: (one.get("entity_group", one.get("entity")), one["score"])
        for one in entities
        for place in range(one["start"], one["end"])
    }


def _answer(found: Any, expected: Any) -> Compared:
    if not found or not expected:
        return float(not found and not expected), 0.0
    own, other = found[0], expected[0]
    return float((own["start"], own["end"]) == (other["start"], other["end"])), abs(own["score"] - other["score"])


def _fillings(found: Any, expected: Any) -> Compared:
    if expected and isinstance(expected[0], list):  # several masks
        return _over([_fillings(own, other) for own, other in zip(found, expected, strict=True)])
    scores = {one["token"]: one["score"] for one in found}
    shifts = [abs(scores[one["token"]] - one["score"]) for one in expected if one["token"] in scores]
    return float(found[0]["token"] == expected[0]["token"]), _mean(shifts)


def _cosines(found: Any, expected: Any) -> Compared:
    return 1.0, _mean([abs(own - other) for own, other in zip(found, expected, strict=True)])


def _boxes(found: Any, expected: Any) -> Compared:
    """Compare objects in the order of their scores: label, and corners within two pixels."""
    if len(found) != len(expected):
        return 0.0, 0.0
    right = [
        own["label"] == other["label"] and all(abs(own["box"][side] - other["box"][side]) <= 2 for side in other["box"])
        for own, other in zip(found, expected, strict=True)
    ]
    shifts = [abs(own["score"] - other["score"]) for own, other in zip(found, expected, strict=True)]
    return float(np.mean(right)) if right else 1.0, _mean(shifts)


def _masks(found: Any, expected: Any) -> Compared:
    """The share of pixels with equal labels."""
    if not found or not expected:
        return float(not found and not expected), 0.0
    ours, theirs = _pixels(found), _pixels(expected)
    return float((ours == theirs).mean()), 0.0


def _pixels(segments: Any) -> Array:
    size = segments[0]["mask"]["size"]
    labels = np.full(size[0] * size[1], "", dtype=object)
    for one in segments:
        inside = np.zeros(len(one["mask"]["counts"]), dtype=np.bool_)
        inside[1::2] = True
        labels[np.repeat(inside, one["mask"]["counts"])] = one["label"]
    return labels


_COMPARE: Mapping[str, Callable[[Any, Any], Compared]] = {
    "token-classification": _spans,
    "question-answering": _answer,
    "fill-mask": _fillings,
    "sentence-similarity": _cosines,
    "object-detection": _boxes,
    "image-segmentation": _masks,
}


def _over(compared: Sequence[Compared]) -> Compared:
    right, shifts = zip(*compared, strict=True)
    return float(np.mean(right)), float(np.mean(shifts))


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0


def _cosine(found: Array, expected: Array) -> float:
    """Return the cosine of the finite values; 0 if other places than in `expected` are infinite or NaN."""
    finite = np.isfinite(expected)
    if not np.array_equal(np.isfinite(found), finite):
        return 0.0
    one, other = found[finite].astype(np.float64), expected[finite].astype(np.float64)
    lengths = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / lengths if lengths else float(not one.any() and not other.any())
