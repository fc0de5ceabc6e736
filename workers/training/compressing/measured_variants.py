"""Measure variants of a model in turns, each loaded by the serving code in a process of its own.

All variants answer the same rows in one run. Turns alternate, so that other load on the machine slows all of them.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from workers.device import device_memory
from workers.device.device_process import ModelToLoad
from workers.models.backends.compiled_network import NETWORK
from workers.models.interface.model import Model
from workers.models.interface.sample_inputs import Item
from workers.training.agreement import Trial, answered, run
from workers.training.compressing.compress_rows import CompressRow, CompressRows, label_of
from workers.training.kinds.labelled_kind import LabelledKind
from workers.training.training_batches import all_of, by_size

#: The padded tokens of a batch.
BATCH_COST = 1024

#: Modules that take seconds to import, once for the processes of all variants.
_PRELOADED = ["torch", "transformers.modeling_utils", __name__]

#: Timed turns of each variant, after a first one that is not counted.
TURNS = 3


class Variant(msgspec.Struct, frozen=True, kw_only=True):
    """A model as a step left it, and the size of its encoder in words."""

    step: str
    model: ModelToLoad
    size: str = ""


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """The measured figures of a variant. `metrics` are by task, 0 to 1; `disk_mb` and `memory_mb` are 10^6 bytes.

    `slowest` and `fastest` are the items/s of the extreme turns.
    """

    step: str
    backend: str
    size: str
    metrics: dict[str, float]
    disk_mb: float
    memory_mb: float
    items_per_s: float
    slowest: float
    fastest: float


class Loaded:
    """A variant that is loaded in a process of its own."""

    def __init__(self, variant: Variant, items: Sequence[Item], threads: int) -> None:
        self.variant = variant
        # forked from a server that has imported the libraries: this process has run torch's threads
        processes = multiprocessing.get_context("forkserver")
        processes.set_forkserver_preload(_PRELOADED)
        self._process = ProcessPoolExecutor(1, processes, _set_up, (threads,))
        try:
            self.memory_mb: float = self._process.submit(_load, variant.model, items).result() / 1e6
            self.answers: list[dict[str, Any]] = self._process.submit(_answers).result()
        except BaseException:
            self.close()
            raise

    def turn(self) -> float:
        """Run all rows; return the seconds."""
        return self._process.submit(_turn).result()

    def close(self) -> None:
        self._process.shutdown()


class Measurement:
    """The variants measured so far, the original first. `close` ends their processes."""

    def __init__(self, rows: CompressRows, threads: int, turns: int = TURNS) -> None:
        self._rows, self._kinds = rows.judged, rows.kinds
        self._items = [(row.content, {task: rows.kinds[task].cut_params for task in row.tasks}) for row in rows.judged]
        self._threads = threads
        self._turns = turns
        self._loaded: list[Loaded] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for loaded in self._loaded:
            loaded.close()

    def add(self, variant: Variant) -> None:
        """Load a variant and compute its answers. Raises ConfigurationError if it cannot be served."""
        self._loaded.append(Loaded(variant, self._items, self._threads))

    def metrics(self) -> dict[str, dict[str, float]]:
        """Return the scores of each variant so far, by task."""
        before = self._loaded[0].answers
        return {own.variant.step: metrics(self._kinds, self._rows, own.answers, before) for own in self._loaded}

    def figures(self) -> list[Figures]:
        """Return the figures of all variants, timed in turns."""
        turns: dict[str, list[float]] = {loaded.variant.step: [] for loaded in self._loaded}
        for number in range(1 + self._turns):
            for loaded in self._loaded:
                seconds = loaded.turn()
                if number:
                    turns[loaded.variant.step].append(seconds)
        return [self._figures(loaded, turns[loaded.variant.step]) for loaded in self._loaded]

    def _figures(self, loaded: Loaded, turns_s: Sequence[float]) -> Figures:
        variant, count = loaded.variant, len(self._rows)
        return Figures(
            step=variant.step,
            backend=str(variant.model.backend),
            size=variant.size,
            metrics=metrics(self._kinds, self._rows, loaded.answers, self._loaded[0].answers),
            disk_mb=round(disk_bytes(variant) / 1e6, 1),
            memory_mb=round(loaded.memory_mb, 1),
            items_per_s=round(count / statistics.median(turns_s), 1),
            slowest=round(count / max(turns_s), 1),
            fastest=round(count / min(turns_s), 1),
        )


def metrics(
    kinds: Mapping[str, LabelledKind],
    rows: Sequence[CompressRow],
    answers: Sequence[Mapping[str, Any]],
    original: Sequence[Mapping[str, Any]],
) -> dict[str, float]:
    """Return each task's score on its labelled rows; without labels, beside the original's answers."""
    found = {}
    for task, kind in kinds.items():
        labelled = any(task in row.labels for row in rows)
        pairs = [
            (own[task], row.labels[task] if labelled else label_of(kind, before[task]))
            for own, before, row in zip(answers, original, rows, strict=True)
            if task in (row.labels if labelled else own)
        ]
        found[task] = round(kind.scores(pairs)[kind.metric], 4)
    return found


def disk_bytes(variant: Variant) -> int:
    """Return the bytes of the weights that a variant is served from."""
    backend = variant.model.backend
    suffix = {"onnxruntime": f"-{backend.precision}.onnx", "openvino": ".*"}.get(backend.name)
    if (backend.name, backend.precision) == ("openvino", "int8"):
        suffix = "-int8.onnx"
    folders = {variant.model.folder, *variant.model.options.get("heads", {}).values()}
    files = [file for folder in folders for file in Path(folder).glob("*.safetensors")]
    files += Path(variant.model.folder).glob(f"{NETWORK}{suffix}") if suffix else []
    return sum(file.stat().st_size for file in files)


# --- in the variant's process ---


class _State:
    """The model of this process, its prepared rows, and their batches."""

    model: Model
    batches: list[list[Trial]]
    places: list[int]


def _set_up(threads: int) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import torch

    torch.set_num_threads(threads)


def _load(wanted: ModelToLoad, items: Sequence[Item]) -> int:
    """Load the model, prepare the items, and return the bytes that the loaded model takes.

    It is loaded twice, since the first time counts the memory of the libraries too.
    """
    wanted.build().load("cpu")
    device_memory.give_back("cpu")
    model = wanted.build()
    prepared = all_of(model.prepare_many(*zip(*items, strict=True)))
    trials = [Trial(item, own) for item, own in zip(items, prepared, strict=True)]
    before = device_memory.resident_bytes("cpu")
    model.load("cpu")
    model.try_out()  # a worker does, too: a model that it would refuse is no result
    chosen = list(by_size([own.size for own in prepared], BATCH_COST))
    _State.model, _State.batches = model, [[trials[place] for place in own] for own in chosen]
    _State.places = [place for own in chosen for place in own]
    run(model, _State.batches[-1])
    device_memory.give_back("cpu")
    return max(0, device_memory.resident_bytes("cpu") - before)


def _answers() -> list[dict[str, Any]]:
    """Return each row's answers by task, in the order of the rows."""
    found = answered(_State.model, _State.batches)
    by_place = {place: dict(own.answers) for place, own in zip(_State.places, found, strict=True)}
    return [by_place[place] for place in range(len(by_place))]


def _turn() -> float:
    began = time.perf_counter()
    for batch in _State.batches:
        run(_State.model, batch)
    return time.perf_counter() - began
