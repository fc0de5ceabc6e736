"""Measure a variant of a model on all backends and batch costs.

``python -m workers.training.pareto.measured_points FILE DEVICE`` reads a `PointsRequest` from standard input and writes
the points to FILE as JSON. Candidates are loaded and timed by the code that measures backends at a worker's start.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from producers.wire.catalogue import Task
from workers.batching.serving.processor_load import ProcessorTimes, others_share
from workers.device import device_memory
from workers.device.device_process import ModelToLoad
from workers.device.devices import Device
from workers.models.backends.choice import Backend
from workers.models.interface.model import Model
from workers.models.interface.sample_inputs import Item
from workers.training import candidates
from workers.training.agreement import Answered, Trial, agreement, answered, run
from workers.training.candidates import COST_TURNS, SAMPLE, Candidate, tell
from workers.training.compressing import compress_rows, measured_variants, task_networks
from workers.training.compressing.compress_rows import CompressRow
from workers.training.kinds.labelled_kind import LabelledKind
from workers.training.pareto.tuned_point import PointsRequest, TunedPoint
from workers.training.training_batches import all_of, by_size


@dataclass(frozen=True, slots=True)
class Judging:
    """The inputs, and the judges of answers: labels where rows were given, and the answers of the original."""

    items: Sequence[Item]
    expected: Sequence[Answered]
    each_s: float
    rows: Sequence[CompressRow] = ()
    kinds: Mapping[str, LabelledKind] = field(default_factory=dict)

    def accuracy(self, model: Model, found: Sequence[Answered]) -> dict[str, float]:
        """Return the accuracy of answers by task."""
        if self.rows:
            own, before = ([one.answers for one in some] for some in (found, self.expected))
            return measured_variants.metrics(self.kinds, self.rows, own, before)
        return {name: _agreed(found, self.expected, task) for name, task in model.spec.tasks.items()}


def _agreed(found: Sequence[Answered], expected: Sequence[Answered], task: Task) -> float:
    """Return the share of equal answers of a task, or of vectors, which are never quite equal, the least cosine."""
    compared = agreement(found, expected, {task.name: task})
    is_vector = task.kind.name.endswith("feature-extraction") or task.kind.name == "sentence-similarity"
    return round(max(0.0, compared.cosine if is_vector else compared.same), 4)


def measure(asked: PointsRequest, device: str) -> list[TunedPoint]:
    """Return the points of a variant, and a point without figures for each backend that does not run."""
    tell(asked.original.build().reference)
    began, on = ProcessorTimes.now(), Device(device, "")
    judging = _judging(asked, on)
    before = judging.accuracy(asked.original.build(), judging.expected)
    loaded: list[tuple[Candidate, Sequence[Trial], dict[str, float], float]] = []
    refused: list[TunedPoint] = []
    for backend in _backends(asked.model, on):
        try:
            if str(backend) in asked.deadly:
                raise RuntimeError(asked.deadly[str(backend)])
            loaded.append(_judged(asked.model, backend, on, judging))
        except Exception as error:  # noqa: BLE001 - tracers, compilers and networks raise errors of every type
            reason = candidates.said(error).removeprefix(f"models.{asked.model.name}").lstrip(":. ")
            refused.append(_point(asked, backend, refused=reason))
    runs = [
        (Candidate(candidate.backend, candidate.model), cost, batches, accuracy, memory_mb)
        for candidate, trials, accuracy, memory_mb in loaded
        for cost, batches in candidates.cut_by_cost(trials, candidates.budgets_of(candidate.model, on)).items()
    ]
    candidates.take_turns([(candidate, batches) for candidate, _, batches, _, _ in runs], COST_TURNS)
    others = round(others_share(began), 3)
    points = [
        _point(
            asked,
            candidate.backend,
            batch_cost=cost,
            accuracy=accuracy,
            accuracy_before=before,
            others=others,
            memory_mb=round(memory_mb, 1),
            **_figures(candidate, batches),
        )
        for candidate, cost, batches, accuracy, memory_mb in runs
    ]
    return [*points, *refused]


def _judging(asked: PointsRequest, on: Device) -> Judging:
    reference = candidates.load(asked.original, asked.original.build().reference, on).model
    if not asked.rows:
        trials, _ = candidates.trials_of(reference, SAMPLE)
        return Judging([trial.item for trial in trials], *_timed_answers(reference, trials))
    model = task_networks.judged(asked.original, "judged by rows")
    found = compress_rows.from_file(Path(asked.rows), model, 0.5)
    # a recipe's training rows have taught the model
    rows = found.judged if asked.rows.endswith(".toml") else [*found.judged, *found.learnt]
    items = [(row.content, {task: found.kinds[task].cut_params for task in row.tasks}) for row in rows]
    expected, each_s = _timed_answers(reference, _prepared(reference, items))
    return Judging(items, expected, each_s, rows, found.kinds)


def _timed_answers(model: Model, trials: Sequence[Trial]) -> tuple[list[Answered], float]:
    """Return the answers in the order of the inputs, and the seconds of an input."""
    batches = list(_places(trials, model.default_cost))
    run(model, [trials[place] for place in batches[0]])  # what sets itself up at its first run does so here
    began = time.perf_counter()
    found = answered(model, [[trials[place] for place in batch] for batch in batches])
    each_s = (time.perf_counter() - began) / len(trials)
    by_place = dict(zip((place for batch in batches for place in batch), found, strict=True))
    return [by_place[place] for place in range(len(trials))], each_s


def _places(trials: Sequence[Trial], cost: int) -> Sequence[list[int]]:
    return list(by_size([trial.row.size for trial in trials], cost))


def _prepared(model: Model, items: Sequence[Item]) -> list[Trial]:
    rows = all_of(model.prepare_many(*zip(*items, strict=True)))
    return [Trial(item, row) for item, row in zip(items, rows, strict=True)]


def _backends(model: ModelToLoad, on: Device) -> list[Backend]:
    """Return the backends to try: the usual ones, and that of the variant's own settings."""
    built = model.build()
    usual = candidates.candidates(on, labelled=True, reference=built.reference)
    if on.pinned is not None:  # the reference judges and does not serve
        usual = (backend for backend in [*usual] if backend.device == on.pinned.device)
    own = [] if model.backend.is_reference or on.pinned is not None else [model.backend]
    return [backend for backend in dict.fromkeys([*usual, *own]) if backend.name in built.backends]


def _judged(
    wanted: ModelToLoad, backend: Backend, on: Device, judging: Judging
) -> tuple[Candidate, Sequence[Trial], dict[str, float], float]:
    """Load a candidate; return it with the inputs of a turn, its accuracy by task, and its memory in 10^6 bytes.

    It is loaded twice, since the first time counts libraries, and the making of a network's file.
    """
    candidates.check_memory(Path(wanted.folder), on.of_torch, 1)
    candidates.load(wanted, backend, on)
    device_memory.give_back(on.of_torch)
    before = device_memory.resident_bytes(on.of_torch)
    candidate = candidates.load(wanted, backend, on)
    trials = _prepared(candidate.model, judging.items)
    run(candidate.model, trials[:4])
    device_memory.give_back(on.of_torch)
    memory_mb = max(0, device_memory.resident_bytes(on.of_torch) - before) / 1e6
    found, _ = _timed_answers(candidate.model, trials)
    timed = trials[: max(candidates.LEAST_SAMPLE, int(candidates.TURN_S / judging.each_s))]
    return candidate, timed, judging.accuracy(candidate.model, found), memory_mb


def _figures(candidate: Candidate, batches: Sequence[Sequence[Trial]]) -> dict[str, Any]:
    if candidate.problem:
        return {"refused": candidate.problem}
    count, turns_s = sum(map(len, batches)), candidate.turns_s
    return {
        "items_per_s": round(count / statistics.median(turns_s), 1),
        "slowest": round(count / max(turns_s), 1),
        "fastest": round(count / min(turns_s), 1),
        "latency_ms": round(1000 * statistics.median(turns_s) / len(batches), 3),
    }


def _point(asked: PointsRequest, backend: Backend, **figures: Any) -> TunedPoint:
    none = {"items_per_s": 0.0, "slowest": 0.0, "fastest": 0.0, "agreement": 0.0, "shift": 0.0, "same": 0.0}
    return TunedPoint(variant=asked.variant, threads=asked.cores, backend=backend, **{**none, **figures})


if __name__ == "__main__":
    candidates.measured_process(PointsRequest, measure)
