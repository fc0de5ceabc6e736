"""Measure a model's backends on this machine and choose one: the process that `workers.batching.serving.tuned_backend`
starts.

``python -m workers.training.tuning FILE DEVICE`` reads the model from standard input and writes the decision to FILE.

A candidate is admitted if it answers like the reference, torch in fp32: within half a point of its accuracy on held-out
texts, if asked for; else within a small distance of its outputs on unlabelled texts. Candidates take turns, so that
other load on the machine slows all of them; `best_of` compares their medians and extremes. A candidate that raises an
exception is out, with its error as the reason, and the others go on.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from random import Random

import msgspec

from producers.wire.errors import ConfigurationError
from workers.batching.serving.processor_load import ProcessorTimes, others_share
from workers.batching.serving.tuned_backend import BackendDecision, MeasuredBackend, best_of
from workers.device.device_process import ModelToLoad
from workers.device.devices import Device
from workers.models.built_in.text.text_model import TextModel
from workers.models.interface.model import Model
from workers.models.sources import model_source
from workers.training import data
from workers.training.agreement import Agreement, Answered, Trial, agreement, answered
from workers.training.candidates import (
    COST_TURNS,
    GPU_SAMPLE,
    SAMPLE,
    TURNS,
    Candidate,
    all_loaded,
    batches_of,
    budgets_of,
    cut_by_cost,
    load,
    measured_process,
    not_run,
    said,
    take_turns,
    tell,
    trials_of,
)
from workers.training.pareto.tuned_point import GOOD_ENOUGH
from workers.training.training_batches import best_labels

#: A candidate may lose this much accuracy to the reference.
MOST_LOST = 0.005

#: Without labels: the least cosine of vectors, the greatest mean difference of scores, and the least share of equal
#: best answers. Inputs unlike the samples differ more: with this cosine, they stay over 0.999.
LEAST_AGREEMENT, MOST_SHIFT, LEAST_SAME = 0.9995, 0.005, 0.99

LABELLED_TEXTS = 500


def tune(
    wanted: ModelToLoad, device: str, *, labelled: bool, deadly: Mapping[str, str] | None = None
) -> BackendDecision:
    """Return the decision for a model. `deadly` are candidates that killed this process before, with the reason.

    Raises ConfigurationError if not even the reference runs.
    """
    began, on = ProcessorTimes.now(), Device(device, "")
    reference = load(wanted, wanted.build().reference, on)
    trials, timed = trials_of(reference.model, SAMPLE if on.of_torch == "cpu" else GPU_SAMPLE)
    loaded, refused = all_loaded(wanted, reference, on, labelled=labelled, deadly=deadly or {})
    budgets = budgets_of(reference.model, on)
    usual = budgets[len(budgets) // 2]
    take_turns([(candidate, batches_of(timed, usual)) for candidate in loaded], TURNS)
    if reference.problem:
        raise ConfigurationError(f"models.{wanted.name}: {reference.backend} {reference.problem}")
    judged = batches_of(trials[:SAMPLE], usual)
    expected = answered(reference.model, judged)
    labels = _labelled(wanted, reference.model) if labelled else {}
    right = {task: _right(reference.model, task, examples) for task, examples in labels.items()}
    measured = [_judged(candidate, len(timed), judged, expected, labels, right) for candidate in loaded]
    only_judges = f"it only judges here: the node runs on {device}" if on.pinned else ""
    measured[0] = msgspec.structs.replace(measured[0], refused=only_judges)
    if all(one.refused for one in measured):
        reasons = "; ".join(f"{one.backend}: {one.refused}" for one in (*measured[1:], *refused))
        raise ConfigurationError(f"models.{wanted.name}: nothing runs on {device}: {reasons}")
    best = best_of(measured)
    chosen = next(candidate for candidate in loaded if candidate.backend == best.backend)
    rates = _rates(chosen, timed, budgets)
    good = [cost for cost, rate in rates.items() if rate >= GOOD_ENOUGH * max(rates.values())]
    return BackendDecision(
        model=wanted.name,
        revision=reference.model.revision,
        device=device,
        decided_at=time.time(),
        guard="accuracy" if labels else "agreement",
        sample=len(trials),
        candidates=(*measured, *refused),
        backend=best.backend,
        rates={cost: round(rate, 1) for cost, rate in rates.items()},
        batch_cost=min(good),
        others=round(others_share(began), 3),
    )


def _judged(
    candidate: Candidate,
    timed: int,
    batches: Sequence[Sequence[Trial]],
    expected: Sequence[Answered],
    labels: Mapping[str, Sequence[data.Example]],
    reference: Mapping[str, float],
) -> MeasuredBackend:
    if candidate.problem:
        return not_run(candidate.backend, candidate.problem)
    tell(candidate.backend)
    try:
        found = agreement(answered(candidate.model, batches), expected, candidate.model.spec.tasks)
        accuracy = {task: _right(candidate.model, task, examples) for task, examples in labels.items()}
    except Exception as error:  # noqa: BLE001 - answers that cannot be finished have errors of every type
        return not_run(candidate.backend, said(error))
    lost = {task: reference[task] - accuracy[task] for task in labels}
    return MeasuredBackend(
        backend=candidate.backend,
        items_per_s=round(timed / statistics.median(candidate.turns_s), 1),
        slowest=round(timed / max(candidate.turns_s), 1),
        fastest=round(timed / min(candidate.turns_s), 1),
        agreement=round(found.cosine, 6),
        shift=round(found.shift, 6),
        same=round(found.same, 4),
        accuracy={task: round(value, 4) for task, value in accuracy.items()},
        refused=_refusal(found, lost),
    )


def _refusal(found: Agreement, lost: Mapping[str, float]) -> str:
    """Return the reason against a candidate, or "": its lost accuracy, or its answers if there are no labels."""
    if lost:
        worst = max(lost, key=lambda task: lost[task])
        return f"{worst}: {100 * lost[worst]:.1f} points less accurate" if lost[worst] > MOST_LOST else ""
    # not "less than", because NaN is neither more nor less
    agrees = found.cosine >= LEAST_AGREEMENT and found.shift <= MOST_SHIFT and found.same >= LEAST_SAME
    return "" if agrees else "answers differ from torch's in fp32"


def _labelled(wanted: ModelToLoad, model: Model) -> dict[str, list[data.Example]]:
    """Return held-out examples of the built-in tasks among the model's, pulling their data where they are not there."""
    found: dict[str, list[data.Example]] = {}
    if not isinstance(model, TextModel):
        return found  # a checkpoint's task of such a name may have labels of its own
    for task in sorted(set(wanted.tasks) & set(data.READERS)):
        test = data.split(data.read(task, model_source.cache_folder()), seed=data.SEED).test
        found[task] = Random(0).sample(test, min(LABELLED_TEXTS, len(test)))  # noqa: S311 - a sample, not a secret
    return found


def _right(model: Model, task: str, examples: Sequence[data.Example]) -> float:
    """Return the share of examples whose best label is theirs."""
    found = best_labels(model, task, [example.text for example in examples])
    return sum(label == example.label for label, example in zip(found, examples, strict=True)) / len(examples)


def _rates(chosen: Candidate, trials: Sequence[Trial], budgets: Sequence[int]) -> dict[int, float]:
    """Return the items/s of a candidate by batch cost, without costs at which it raises an exception."""
    cut = cut_by_cost(trials, budgets)
    runs = {cost: Candidate(chosen.backend, chosen.model) for cost in cut}
    take_turns([(runs[cost], cut[cost]) for cost in cut], COST_TURNS)
    rates = {cost: len(trials) / statistics.median(run_.turns_s) for cost, run_ in runs.items() if not run_.problem}
    if not rates:
        raise ConfigurationError(
            f"models.{chosen.model.spec.name}: {chosen.backend} {next(iter(runs.values())).problem}"
        )
    return rates


class _Asked(msgspec.Struct, frozen=True):
    model: ModelToLoad
    labelled: bool
    deadly: dict[str, str]


if __name__ == "__main__":
    measured_process(
        _Asked, lambda asked, device: tune(asked.model, device, labelled=asked.labelled, deadly=asked.deadly)
    )
