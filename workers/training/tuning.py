"""Measure a model's backends on this machine and choose one: the process that `workers.batching.serving.tuned_backend`
starts.

``python -m workers.training.tuning FILE DEVICE`` reads the model from standard input and writes the decision to FILE.

A candidate is admitted if it answers like the reference, torch in fp32: within half a point of its accuracy on held-out
texts, if asked for; else within a small distance of its outputs on unlabelled texts. Candidates take turns, so that
other load on the machine slows all of them; `best_of` compares their medians and extremes. A candidate that raises an
exception is out, with its error as the reason, and the others go on.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import torch

from producers.wire.errors import ConfigurationError
from workers.batching.serving.processor_load import ProcessorTimes, others_share
from workers.batching.serving.tuned_backend import TURN_OF, BackendDecision, MeasuredBackend, best_of
from workers.device import accelerator
from workers.device.device_process import ModelToLoad
from workers.device.devices import Device
from workers.models.backends.choice import REFERENCE, Backend, Precision
from workers.models.built_in.text.text_model import TextModel
from workers.models.interface.model import Model
from workers.models.sources import model_source
from workers.training import data
from workers.training.agreement import Agreement, Answered, Trial, agreement, answered, run
from workers.training.training_batches import all_of, best_labels, by_size

#: A candidate may lose this much accuracy to the reference.
MOST_LOST = 0.005

#: Without labels: the least cosine of vectors, the greatest mean difference of scores, and the least share of equal
#: best answers. Inputs unlike the samples differ more: with this cosine, they stay over 0.999.
LEAST_AGREEMENT, MOST_SHIFT, LEAST_SAME = 0.9995, 0.005, 0.99

#: The smallest batch this near to the best rate is chosen: shorter batches wait less.
GOOD_ENOUGH = 0.97

SAMPLE, LABELLED_TEXTS = 60, 500

#: A GPU is timed on more inputs, and on batches larger by this many doublings of a model's largest budget.
GPU_SAMPLE, GPU_DOUBLINGS = 1000, 3

#: A large model is judged on fewer inputs, so that a pass over them takes about this long, but on no fewer than this
#: many.
PASS_S, LEAST_SAMPLE = 3.0, 8

#: A turn that is timed takes about this long, on the first of these inputs: a first start takes some forty turns.
#: Candidates whose turns take `PASS_S` all the same get the least number of them.
TURN_S = 1.0

#: The turns of each candidate after a first, uncounted one. Two are the least that show noise.
TURNS, LEAST_TURNS = 5, 2

#: The turns of each batch cost after a first, uncounted one: neighbouring costs are nearly as good as each other.
COST_TURNS = 2


def candidates(device: Device, *, labelled: bool, reference: Backend = REFERENCE) -> Iterator[Backend]:
    """Yield the reference and possibly faster candidates on a device. A device of another runtime has its own alone.

    int8 changes outputs by more than can be judged without labels, and a worker's first start should neither try two
    candidates of a kind nor compile for half a minute.
    """
    yield reference
    if device.pinned is not None:
        yield from (replace(device.pinned, precision=one) for one in _precisions(device.pinned, labelled, reference))
    elif reference.name != "torch":  # an ONNX file
        yield from (Backend("openvino", one) for one in _precisions(Backend("openvino"), labelled, reference))
    elif device.name == "cpu":
        yield Backend("torch", "bf16")
        yield from (Backend("openvino", "fp32"), Backend("openvino", "bf16"))
        if labelled or importlib.util.find_spec("openvino") is None:
            yield Backend("onnxruntime", "fp32")
        if labelled:
            yield Backend("onnxruntime", "int8")
    else:
        yield from (Backend("torch", "bf16"), Backend("torch", "fp16"))
        if labelled:
            yield from (Backend("torch", "bf16", compiled=True), Backend("torch", "fp16", compiled=True))


def _precisions(runtime: Backend, labelled: bool, reference: Backend) -> tuple[Precision, ...]:
    """Return the precisions of a runtime to try. An ONNX file has its own; OpenVINO rounds fp32 further."""
    if reference.name != "torch" and (reference.precision != "fp32" or runtime.name == "onnxruntime"):
        return (reference.precision,)
    if runtime.name == "onnxruntime":
        return ("fp32", "int8") if labelled else ("fp32",)
    return ("fp32", "bf16") if runtime.device in ("", "CPU") else ("fp32", "fp16", "bf16")


@dataclass(slots=True)
class _Candidate:
    """A loaded candidate: the seconds of its turns, and the error that ended them."""

    backend: Backend
    model: Model
    turns_s: list[float] = field(default_factory=list)
    problem: str = ""


def tune(
    wanted: ModelToLoad, device: str, *, labelled: bool, deadly: Mapping[str, str] | None = None
) -> BackendDecision:
    """Return the decision for a model. `deadly` are candidates that killed this process before, with the reason.

    Raises ConfigurationError if not even the reference runs.
    """
    began, on = ProcessorTimes.now(), Device(device, "")
    reference = _load(wanted, wanted.build().reference, on)
    trials, timed = _trials(reference.model, SAMPLE if on.of_torch == "cpu" else GPU_SAMPLE)
    loaded, refused = _all_loaded(wanted, reference, on, labelled=labelled, deadly=deadly or {})
    budgets = _budgets(reference.model, on)
    usual = budgets[len(budgets) // 2]
    _take_turns([(candidate, _batches(timed, usual)) for candidate in loaded], TURNS)
    if reference.problem:
        raise ConfigurationError(f"models.{wanted.name}: {reference.backend} {reference.problem}")
    judged = _batches(trials[:SAMPLE], usual)
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


def _all_loaded(
    wanted: ModelToLoad, reference: _Candidate, device: Device, *, labelled: bool, deadly: Mapping[str, str]
) -> tuple[list[_Candidate], list[MeasuredBackend]]:
    """Return the candidates that load here, the reference first, and those that do not."""
    loaded, refused = [reference], list[MeasuredBackend]()
    for backend in candidates(device, labelled=labelled, reference=reference.backend):
        if backend == reference.backend or backend.name not in reference.model.backends:
            continue
        if str(backend) in deadly:
            refused.append(_not_run(backend, deadly[str(backend)]))
            continue
        try:
            _check_memory(Path(wanted.folder), device.of_torch, len(loaded))
            loaded.append(_load(wanted, backend, device))
        except Exception as error:  # noqa: BLE001 - tracers, compilers and networks raise errors of every type
            refused.append(_not_run(backend, _said(error).removeprefix(f"models.{wanted.name}").lstrip(":. ")))
    return loaded, refused


def _load(wanted: ModelToLoad, backend: Backend, device: Device) -> _Candidate:
    model = msgspec.structs.replace(wanted, backend=backend).build()
    if not model.tunable:
        raise ConfigurationError(f"models.{wanted.name}: {type(model).__name__} has no backends to choose from")
    _tell(backend)
    model.load(device.of_torch)
    model.try_out()
    return _Candidate(backend, model)


def _tell(backend: Backend) -> None:
    """Note the candidate at work, in case it kills this process."""
    print(TURN_OF.format(backend), file=sys.stderr, flush=True)  # noqa: T201 - `decide` reads it


def _not_run(backend: Backend, reason: str) -> MeasuredBackend:
    """Return a candidate that does not run here, with its reason."""
    return MeasuredBackend(
        backend=backend, items_per_s=0.0, slowest=0.0, fastest=0.0, agreement=0.0, shift=0.0, same=0.0, refused=reason
    )


def _said(error: BaseException) -> str:
    """Return an error in a line, with its class unless it is a refusal of ours."""
    line = (str(error).strip().splitlines() or [""])[0][:300]
    return line if isinstance(error, ConfigurationError) else f"raised {type(error).__name__}: {line}"


def _check_memory(folder: Path, device: str, loaded: int) -> None:
    """Raise ConfigurationError if another copy of the weights, with what making it takes, is not to be had beside the
    others.
    """
    weights = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    free = torch.cuda.mem_get_info()[0] if device.startswith("cuda") else _free_bytes()
    if 3 * weights > free:
        raise ConfigurationError(f"{loaded} candidates are loaded, and there is no memory for another")


def _free_bytes() -> float:
    try:
        lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
    except OSError:  # not Linux
        return float("inf")
    return float(next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))) * 1024


def _trials(model: Model, most: int) -> tuple[list[Trial], list[Trial]]:
    """Return the inputs on which candidates are judged, `most` or fewer, and the first of them, which are timed."""
    few = _prepared(model, LEAST_SAMPLE)
    run(model, few[:4])  # what sets itself up at its first run does so here
    started = time.perf_counter()
    run(model, few)
    each_s = (time.perf_counter() - started) / len(few)
    count = min(most, int(PASS_S / each_s))
    trials = few if count <= LEAST_SAMPLE else _prepared(model, count)
    return trials, trials[: max(LEAST_SAMPLE, int(TURN_S / each_s))]


def _prepared(model: Model, count: int) -> list[Trial]:
    items = model.samples(count)
    return [Trial(*pair) for pair in zip(items, all_of(model.prepare_many(*zip(*items, strict=True))), strict=True)]


def _batches(trials: Sequence[Trial], cost: int) -> list[list[Trial]]:
    return [[trials[n] for n in places] for places in by_size([trial.row.size for trial in trials], cost)]


def _take_turns(runs: Sequence[tuple[_Candidate, Sequence[Sequence[Trial]]]], turns: int) -> None:
    """Run every candidate over its batches in turns, and note their seconds. Where turns take long, there are fewer.

    A candidate that raises an exception gets no further turns.
    """
    began = time.perf_counter()
    for round_ in range(1 + turns):
        for candidate, batches in runs:
            if candidate.problem:
                continue
            _tell(candidate.backend)
            started = time.perf_counter()
            try:
                for batch in batches:
                    run(candidate.model, batch)
            except Exception as error:  # noqa: BLE001 - networks raise errors of every type
                candidate.problem = _said(error)
            else:
                candidate.turns_s += [time.perf_counter() - started] if round_ else []
        if round_ >= LEAST_TURNS and time.perf_counter() - began > (round_ + 1) * PASS_S * len(runs):
            break


def _judged(
    candidate: _Candidate,
    timed: int,
    batches: Sequence[Sequence[Trial]],
    expected: Sequence[Answered],
    labels: Mapping[str, Sequence[data.Example]],
    reference: Mapping[str, float],
) -> MeasuredBackend:
    if candidate.problem:
        return _not_run(candidate.backend, candidate.problem)
    _tell(candidate.backend)
    try:
        found = agreement(answered(candidate.model, batches), expected, candidate.model.spec.tasks)
        accuracy = {task: _right(candidate.model, task, examples) for task, examples in labels.items()}
    except Exception as error:  # noqa: BLE001 - answers that cannot be finished have errors of every type
        return _not_run(candidate.backend, _said(error))
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


def _budgets(model: Model, device: Device) -> list[int]:
    """Return the batch costs that a model is measured with on a device."""
    more = range(1, 1 + GPU_DOUBLINGS) if device.is_cuda and model.budgets else ()
    return [*model.budgets, *(model.budgets[-1] << doublings for doublings in more)]


def _rates(chosen: _Candidate, trials: Sequence[Trial], budgets: Sequence[int]) -> dict[int, float]:
    """Return the items/s of a candidate by batch cost, without costs at which it raises an exception."""
    cut = {cost: _batches(trials, cost) for cost in budgets}
    # what is not cut into other batches than by a smaller cost needs no measuring
    costs = [cost for n, (cost, own) in enumerate(cut.items()) if not n or len(own) < len(list(cut.values())[n - 1])]
    runs = {cost: _Candidate(chosen.backend, chosen.model) for cost in costs}
    _take_turns([(runs[cost], cut[cost]) for cost in costs], COST_TURNS)
    rates = {cost: len(trials) / statistics.median(run_.turns_s) for cost, run_ in runs.items() if not run_.problem}
    if not rates:
        raise ConfigurationError(f"models.{chosen.model.spec.name}: {chosen.backend} {runs[costs[0]].problem}")
    return rates


class _Asked(msgspec.Struct, frozen=True):
    model: ModelToLoad
    labelled: bool
    deadly: dict[str, str]


def main() -> None:
    file, device = Path(sys.argv[1]), sys.argv[2]
    asked: Any = msgspec.json.decode(sys.stdin.buffer.read(), type=_Asked)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    accelerator.set_up(Device(device, "").of_torch)
    try:
        decision = tune(asked.model, device, labelled=asked.labelled, deadly=asked.deadly)
    except Exception as error:  # noqa: BLE001 - its caller reports the last line
        traceback.print_exc()
        sys.exit(_said(error).removeprefix(f"models.{asked.model.name}: "))
    file.write_bytes(msgspec.json.encode(decision))


if __name__ == "__main__":
    main()
