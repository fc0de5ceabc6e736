"""Measure a model's backends on this machine and choose one: the process that `workers.tuned` starts.

``python -m workers.training.tuning FILE DEVICE`` reads the model from standard input and writes the decision to FILE.

The fastest candidate wins among those that answer like the reference, torch in fp32: within half a point of its accuracy on
held-out texts, where these are asked for; else within a hair of its outputs on unlabelled ones. Candidates take turns, so
that whatever else the machine does meanwhile slows them alike.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import numpy as np
import torch

from producers.catalogue import Task
from producers.errors import ConfigurationError
from workers.device_process import ModelToLoad
from workers.models import sources
from workers.models.backends.choice import REFERENCE, Backend
from workers.models.model import Array, Prepared
from workers.models.multitask import MultiTaskModel
from workers.training import data
from workers.tuned import Decision, Measured

#: A candidate may lose this much accuracy to the reference.
MOST_LOST = 0.005

#: Without labels: how alike vectors must be, and how little probabilities may differ in the mean.
LEAST_AGREEMENT, MOST_SHIFT = 0.999, 0.005

#: The smallest batch that is this near to the best rate is chosen: shorter batches wait less.
GOOD_ENOUGH = 0.97

SAMPLE, LABELLED_TEXTS, ROUNDS = 60, 500, 3

Outputs = dict[str, Array]


def candidates(device: str, *, labelled: bool) -> Iterator[Backend]:
    """Yield the reference and what may be faster than it on a device.

    int8 moves outputs by more than can be judged without labels, and a worker's first start should not try two of a kind.
    """
    yield REFERENCE
    if device == "cpu":
        yield Backend("torch", "bf16")
        yield from (Backend("openvino", "fp32"), Backend("openvino", "bf16"))
        if labelled or importlib.util.find_spec("openvino") is None:
            yield Backend("onnxruntime", "fp32")
        if labelled:
            yield Backend("onnxruntime", "int8")
    else:
        yield from (Backend("torch", "bf16"), Backend("torch", "fp16"))
        yield from (replace(REFERENCE, compiled=True), Backend("torch", "bf16", compiled=True))


@dataclass(slots=True)
class _Candidate:
    backend: Backend
    model: MultiTaskModel
    fastest_s: float = float("inf")


def tune(wanted: ModelToLoad, device: str, *, labelled: bool) -> Decision:
    """Return the decision for a model. Raises ConfigurationError if not even the reference runs."""
    reference = _load(wanted, REFERENCE, device)
    params = {name: _params(task) for name, task in reference.model.spec.tasks.items()}
    rows = [reference.model.prepare(content, params) for content in reference.model.sample(SAMPLE)]
    loaded = [
        reference,
        *(made for made in map(_loader(wanted, device), candidates(device, labelled=labelled)) if made),
    ]
    batches = list(by_size(rows, reference.model.budgets[len(reference.model.budgets) // 2]))
    _take_turns([(candidate, batches) for candidate in loaded])
    expected = _outputs(reference.model, batches)
    labels = _labelled(wanted) if labelled else {}
    right = {task: _right(reference.model, task, examples) for task, examples in labels.items()}
    measured = [_judged(candidate, batches, expected, labels, right, len(rows)) for candidate in loaded]
    best = max((m for m in measured if not m.refused), key=lambda m: m.items_per_s)
    chosen = next(candidate for candidate in loaded if candidate.backend == best.backend)
    rates = _rates(chosen, rows)
    good = [cost for cost, rate in rates.items() if rate >= GOOD_ENOUGH * max(rates.values())]
    return Decision(
        model=wanted.name,
        revision=reference.model.revision,
        device=device,
        decided_at=time.time(),
        guard="accuracy" if labels else "agreement",
        sample=len(rows),
        candidates=tuple(measured),
        backend=best.backend,
        rates={cost: round(rate, 1) for cost, rate in rates.items()},
        batch_cost=min(good),
    )


def _load(wanted: ModelToLoad, backend: Backend, device: str) -> _Candidate:
    model = msgspec.structs.replace(wanted, backend=backend).build()
    assert isinstance(model, MultiTaskModel)
    model.load(device)
    return _Candidate(backend, model)


def _loader(wanted: ModelToLoad, device: str) -> Callable[[Backend], _Candidate | None]:
    def load(backend: Backend) -> _Candidate | None:
        if backend.is_reference:
            return None
        try:
            return _load(wanted, backend, device)
        except (ConfigurationError, RuntimeError, NotImplementedError) as error:
            print(f"{backend}: does not run here: {error}", file=sys.stderr)  # noqa: T201 - shown by the parent
            return None

    return load


def by_size(rows: Sequence[Prepared], cost: int) -> Iterator[list[Prepared]]:
    """Yield batches of rows of similar size, each within a padded cost."""
    batch: list[Prepared] = []
    for row in sorted(rows, key=lambda row: row.size):
        if batch and (len(batch) + 1) * row.size > cost:
            yield batch
            batch = []
        batch.append(row)
    yield batch


def _take_turns(runs: Sequence[tuple[_Candidate, Sequence[Sequence[Prepared]]]]) -> list[float]:
    """Run every candidate over its batches `ROUNDS` times after a first, uncounted one; return each one's best seconds."""
    best = [float("inf")] * len(runs)
    for round_ in range(ROUNDS + 1):
        for place, (candidate, batches) in enumerate(runs):
            started = time.perf_counter()
            _outputs(candidate.model, batches)
            if round_:
                best[place] = min(best[place], time.perf_counter() - started)
    for (candidate, _), seconds in zip(runs, best, strict=True):
        candidate.fastest_s = min(candidate.fastest_s, seconds)
    return best


def _outputs(model: MultiTaskModel, batches: Sequence[Sequence[Prepared]]) -> Outputs:
    """Return all heads' outputs for all rows, in the batches' order."""
    found: dict[str, list[Array]] = {task: [] for task in model.spec.tasks}
    for batch in batches:
        everything = np.arange(len(batch))
        for task, output in model.forward(model.collate(batch), dict.fromkeys(model.spec.tasks, everything)).items():
            found[task].append(output)
    return {task: np.concatenate(outputs) for task, outputs in found.items()}


def _judged(
    candidate: _Candidate,
    batches: Sequence[Sequence[Prepared]],
    expected: Outputs,
    labels: Mapping[str, Sequence[data.Example]],
    reference: Mapping[str, float],
    rows: int,
) -> Measured:
    found = _outputs(candidate.model, batches)
    agreement = min(_least_cosine(found[task], expected[task]) for task in expected)
    classified = [task for task in expected if candidate.model.spec.tasks[task].kind.name.endswith("classification")]
    shift = max((float(np.abs(found[task] - expected[task]).mean()) for task in classified), default=0.0)
    accuracy = {task: _right(candidate.model, task, examples) for task, examples in labels.items()}
    lost = {task: reference[task] - accuracy[task] for task in labels}
    refused = ""
    if lost and max(lost.values()) > MOST_LOST:
        worst = max(lost, key=lambda task: lost[task])
        refused = f"{worst}: {100 * lost[worst]:.1f} points less accurate"
    elif not lost and (agreement < LEAST_AGREEMENT or shift > MOST_SHIFT):
        refused = "answers differ; labelled texts could admit it: argosy tune"
    return Measured(
        backend=candidate.backend,
        items_per_s=round(rows / candidate.fastest_s, 1),
        agreement=round(agreement, 6),
        shift=round(shift, 6),
        accuracy={task: round(value, 4) for task, value in accuracy.items()},
        refused=refused,
    )


def _least_cosine(found: Array, expected: Array) -> float:
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    lengths = np.linalg.norm(found, axis=-1) * np.linalg.norm(expected, axis=-1)
    return float(((found * expected).sum(-1) / np.maximum(lengths, 1e-12)).min())


def _labelled(wanted: ModelToLoad) -> dict[str, list[data.Example]]:
    """Return held-out examples of the built-in tasks among the model's, pulling their data where they are not there."""
    found: dict[str, list[data.Example]] = {}
    for task in sorted(set(wanted.tasks) & set(data.READERS)):
        test = data.split(data.read(task, sources.cache_folder()), seed=data.SEED).test
        found[task] = Random(0).sample(test, min(LABELLED_TEXTS, len(test)))  # noqa: S311 - a sample, not a secret
    return found


def _right(model: MultiTaskModel, task: str, examples: Sequence[data.Example]) -> float:
    """Return the share of examples whose best label is theirs."""
    params = _params(model.spec.tasks[task])
    rows = [model.prepare(example.text, {task: params}) for example in examples]
    answer = {id(row): example.label for row, example in zip(rows, examples, strict=True)}
    right = 0
    for batch in by_size(rows, 2048):
        for row, output in zip(
            batch, model.forward(model.collate(batch), {task: np.arange(len(batch))})[task], strict=True
        ):
            right += model.finish(model.spec.tasks[task], output, params)[0]["label"] == answer[id(row)]
    return right / len(examples)


def _params(task: Task) -> msgspec.Struct:
    """Return a task's usual parameters; what is too long is cut."""
    cuts = "truncation" in task.kind.params.__struct_fields__
    return msgspec.convert({"truncation": True} if cuts else {}, task.kind.params)


def _rates(candidate: _Candidate, rows: Sequence[Prepared]) -> dict[int, float]:
    """Return the items/s of a candidate by batch cost."""
    costs = candidate.model.budgets
    seconds = _take_turns([(candidate, list(by_size(rows, cost))) for cost in costs])
    return {cost: len(rows) / took for cost, took in zip(costs, seconds, strict=True)}


class _Asked(msgspec.Struct, frozen=True):
    model: ModelToLoad
    labelled: bool


def main() -> None:
    file, device = Path(sys.argv[1]), sys.argv[2]
    asked: Any = msgspec.json.decode(sys.stdin.buffer.read(), type=_Asked)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    decision = tune(asked.model, "cuda:0" if device.startswith("cuda") else device, labelled=asked.labelled)
    file.write_bytes(msgspec.json.encode(decision))


if __name__ == "__main__":
    main()
