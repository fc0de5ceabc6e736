"""The candidates of a measurement: backends of a model that are loaded beside each other, and take turns."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import torch

from producers.wire.errors import ConfigurationError
from workers.batching.serving.tuned_backend import TURN_OF, MeasuredBackend
from workers.device import accelerator
from workers.device.device_process import ModelToLoad
from workers.device.devices import Device
from workers.models.backends.choice import REFERENCE, Backend, Precision
from workers.models.interface.model import Model
from workers.training.agreement import Trial, run
from workers.training.training_batches import all_of, by_size

#: The inputs on which a model is judged.
SAMPLE = 60

#: A GPU is timed on more inputs, and on batches larger by this many doublings of a model's largest budget.
GPU_SAMPLE, GPU_DOUBLINGS = 1000, 3

#: A large model is judged on fewer inputs, so that a pass over them takes about this long, but on no fewer than this
#: many.
PASS_S, LEAST_SAMPLE = 3.0, 8

#: A turn that is timed takes about this long, on the first of these inputs: a first start takes some forty turns.
#: Candidates whose turns take `PASS_S` nevertheless get fewer turns.
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
class Candidate:
    """A loaded candidate: the seconds of its turns, and the error that ended them."""

    backend: Backend
    model: Model
    turns_s: list[float] = field(default_factory=list)
    problem: str = ""


def all_loaded(
    wanted: ModelToLoad, reference: Candidate, device: Device, *, labelled: bool, deadly: Mapping[str, str]
) -> tuple[list[Candidate], list[MeasuredBackend]]:
    """Return the candidates that load here, the reference first, and those that do not."""
    loaded, refused = [reference], list[MeasuredBackend]()
    for backend in candidates(device, labelled=labelled, reference=reference.backend):
        if backend == reference.backend or backend.name not in reference.model.backends:
            continue
        if str(backend) in deadly:
            refused.append(not_run(backend, deadly[str(backend)]))
            continue
        try:
            check_memory(Path(wanted.folder), device.of_torch, len(loaded))
            loaded.append(load(wanted, backend, device))
        except Exception as error:  # noqa: BLE001 - tracers, compilers and networks raise errors of every type
            refused.append(not_run(backend, said(error).removeprefix(f"models.{wanted.name}").lstrip(":. ")))
    return loaded, refused


def load(wanted: ModelToLoad, backend: Backend, device: Device) -> Candidate:
    model = msgspec.structs.replace(wanted, backend=backend).build()
    if not model.tunable:
        raise ConfigurationError(f"models.{wanted.name}: {type(model).__name__} has no backends to choose from")
    tell(backend)
    model.load(device.of_torch)
    model.try_out()
    return Candidate(backend, model)


def measured_process(form: type[msgspec.Struct], measure: Callable[[Any, str], object]) -> None:
    """Be a process that measures, ``python -m MODULE FILE DEVICE``: read a request of this form from standard input.

    The result of `measure` goes to FILE as JSON. The last line of an error is for the caller.
    """
    file, device = Path(sys.argv[1]), sys.argv[2]
    asked: Any = msgspec.json.decode(sys.stdin.buffer.read(), type=form)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    accelerator.set_up(Device(device, "").of_torch)
    try:
        found = measure(asked, device)
    except Exception as error:  # noqa: BLE001 - its caller reports the last line
        traceback.print_exc()
        sys.exit(said(error).removeprefix(f"models.{asked.model.name}: "))
    file.write_bytes(msgspec.json.encode(found))


def tell(backend: Backend) -> None:
    """Note the candidate at work, in case it kills this process."""
    print(TURN_OF.format(backend), file=sys.stderr, flush=True)  # noqa: T201 - `decide` reads it


def not_run(backend: Backend, reason: str) -> MeasuredBackend:
    """Return a candidate that does not run here, with its reason."""
    return MeasuredBackend(
        backend=backend, items_per_s=0.0, slowest=0.0, fastest=0.0, agreement=0.0, shift=0.0, same=0.0, refused=reason
    )


def said(error: BaseException) -> str:
    """Return an error in a line, with its class unless it is a refusal of ours."""
    line = (str(error).strip().splitlines() or [""])[0][:300]
    return line if isinstance(error, ConfigurationError) else f"raised {type(error).__name__}: {line}"


def check_memory(folder: Path, device: str, loaded: int) -> None:
    """Raise ConfigurationError unless there is memory for another copy of the weights, and for making it."""
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


def trials_of(model: Model, most: int) -> tuple[list[Trial], list[Trial]]:
    """Return the inputs on which candidates are judged, `most` or fewer, and the first of them, which are timed."""
    few = prepared(model, LEAST_SAMPLE)
    run(model, few[:4])  # what sets itself up at its first run does so here
    started = time.perf_counter()
    run(model, few)
    each_s = (time.perf_counter() - started) / len(few)
    count = min(most, int(PASS_S / each_s))
    trials = few if count <= LEAST_SAMPLE else prepared(model, count)
    return trials, trials[: max(LEAST_SAMPLE, int(TURN_S / each_s))]


def prepared(model: Model, count: int) -> list[Trial]:
    items = model.samples(count)
    return [Trial(*pair) for pair in zip(items, all_of(model.prepare_many(*zip(*items, strict=True))), strict=True)]


def batches_of(trials: Sequence[Trial], cost: int) -> list[list[Trial]]:
    return [[trials[n] for n in places] for places in by_size([trial.row.size for trial in trials], cost)]


def take_turns(runs: Sequence[tuple[Candidate, Sequence[Sequence[Trial]]]], turns: int) -> None:
    """Run every candidate over its batches in turns, and note their seconds. Where turns take long, there are fewer.

    A candidate that raises an exception gets no further turns.
    """
    began = time.perf_counter()
    for round_ in range(1 + turns):
        for candidate, batches in runs:
            if candidate.problem:
                continue
            tell(candidate.backend)
            started = time.perf_counter()
            try:
                for batch in batches:
                    run(candidate.model, batch)
            except Exception as error:  # noqa: BLE001 - networks raise errors of every type
                candidate.problem = said(error)
            else:
                candidate.turns_s += [time.perf_counter() - started] if round_ else []
        if round_ >= LEAST_TURNS and time.perf_counter() - began > (round_ + 1) * PASS_S * len(runs):
            break


def budgets_of(model: Model, device: Device) -> list[int]:
    """Return the batch costs that a model is measured with on a device."""
    more = range(1, 1 + GPU_DOUBLINGS) if device.is_cuda and model.budgets else ()
    return [*model.budgets, *(model.budgets[-1] << doublings for doublings in more)]


def cut_by_cost(trials: Sequence[Trial], budgets: Sequence[int]) -> dict[int, list[list[Trial]]]:
    """Return the batches of each cost, without costs that cut no other batches than a smaller one."""
    cut = {cost: batches_of(trials, cost) for cost in budgets}
    costs = [cost for n, (cost, own) in enumerate(cut.items()) if not n or len(own) < len(list(cut.values())[n - 1])]
    return {cost: cut[cost] for cost in costs}
