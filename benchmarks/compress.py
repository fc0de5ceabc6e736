"""How much faster and smaller does `argosy compress` make a text model, and how many points does it lose?

A MiniLM with two tasks is fine-tuned on real texts: the teacher. It is then quantised, pruned, and distilled to a
student; combined are the student and the fastest backend at the same accuracy. All variants answer the same held-out
texts in turns, each loaded by the serving code in a process of its own.
"""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import torch

from benchmarks import convention
from producers.wire.errors import ConfigurationError
from workers import settings
from workers.batching.serving import served_models
from workers.device import devices
from workers.device.device_process import ModelToLoad
from workers.models.backends.choice import Backend
from workers.models.sources import model_source
from workers.training import data
from workers.training.compressing import compress_rows, task_networks
from workers.training.compressing.compress_recipe import CompressRecipe, Distill, Export, Int8, Prune, Step
from workers.training.compressing.compression_run import ORIGINAL, CompressionSteps, Reports
from workers.training.compressing.measured_variants import Figures, Measurement, Variant
from workers.training.recipes import recipe_file, training_run

#: The tasks, and their texts to train, to validate and to judge.
TASKS = {"sentiment": (4000, 400, 800), "topic": (1200, 200, 300)}

#: The characters of a text, and the tokens: short texts train in minutes.
CHARS, TOKENS = 400, 64

#: The points that a combination may lose on any task.
MOST_LOST = 2.0

#: The teacher's backends beside torch in fp32; int8 is a step of its own.
BACKENDS = (Backend("torch", "bf16"), Backend("onnxruntime"), Backend("openvino"), Backend("openvino", "bf16"))

#: The combinations: steps after the student, by name.
COMBINED: Mapping[str, Step] = {
    "student on openvino-bf16": Export(backend="openvino", precision="bf16"),
    "student on openvino-int8": Int8(mode="static", backend="openvino"),
    "student on onnxruntime-int8": Int8(),
}


def main() -> None:
    parser = convention.parser(__doc__)
    parser.add_argument("--layers", type=int, default=3, help="of the student (default: %(default)s)")
    parser.add_argument("--inner", type=int, default=1024, help="of the student's layers (default: %(default)s)")
    parser.add_argument("--epochs", type=float, default=3.0, help="of the distillation (default: %(default)s)")
    asked = parser.parse_args()
    torch.set_num_threads(devices.available_cores())
    with tempfile.TemporaryDirectory(prefix="argosy-benchmark-") as folder:
        bench = Bench(Path(folder), layers=asked.layers, inner=asked.inner, epochs=asked.epochs, quick=asked.quick)
        figures = bench.figures()
    convention.report("compress", figures, keep=asked.keep)


class Bench:
    """A teacher, and the variants that steps make of it."""

    def __init__(self, folder: Path, *, layers: int, inner: int, epochs: float, quick: bool) -> None:
        self._folder, self._layers, self._inner, self._quick = folder, layers, inner, quick
        self._epochs = 0.0 if quick else epochs
        convention.progress("reading the texts")
        recipe = recipe_file.load(_written(folder, quick=quick))
        convention.progress("training the teacher")
        card = training_run.run(training_run.prepare(recipe, resume=False), lambda *_: None)
        convention.progress(f"the teacher's scores: {card.tasks}")
        whole = settings.load(recipe.out / "fleet.toml")
        self._teacher = served_models.model_to_load(whole, recipe.name)
        self._rows = compress_rows.from_file(recipe.path, task_networks.served(self._teacher), 0.2)

    def figures(self) -> dict[str, Any]:
        student = self._made("student", [Distill(layers=self._layers, inner=self._inner, epochs=self._epochs)])
        variants = [
            Variant(step=ORIGINAL, model=self._teacher),
            *(Variant(step=f"teacher on {own}", model=_on(self._teacher, own)) for own in self._backends),
            self._made("teacher int8", [Int8()]),
            self._made("pruned", [Prune(layers=self._layers + 1, epochs=self._epochs / 3)]),
            student,
        ]
        convention.progress("measuring")
        with Measurement(self._rows, torch.get_num_threads(), turns=1 if self._quick else 3) as measurement:
            for variant in variants:
                measurement.add(variant)
            for name, step in self._combined.items():
                try:
                    measurement.add(self._made(name, [step], student.model))
                except ConfigurationError as error:  # its network differs too much from torch
                    convention.progress(f"{name} is left out: {error}")
            found = {own.step: own for own in measurement.figures()}
        return _summary(found, [name for name in self._combined if name in found])

    @property
    def _backends(self) -> Sequence[Backend]:
        return BACKENDS[:1] if self._quick else BACKENDS

    @property
    def _combined(self) -> Mapping[str, Step]:
        return dict(list(COMBINED.items())[-1:]) if self._quick else COMBINED

    def _made(self, name: str, steps: Sequence[Step], of: ModelToLoad | None = None) -> Variant:
        recipe = CompressRecipe(steps=tuple(steps), training_precision="bf16")
        work = CompressionSteps(
            of or self._teacher,
            self._rows,
            self._folder / name.replace(" ", "-"),
            recipe,
            Reports(say=lambda text: convention.progress(f"{name}: {text}"), watch=None, show=lambda *_: None),
        )
        for number, step in enumerate(steps, 1):
            work.do(number, step)
        return msgspec.structs.replace(work.variant, step=name)


def _written(folder: Path, *, quick: bool) -> Path:
    """Write the texts and the recipe of the teacher; return the recipe's path."""
    for number, part in enumerate(("train", "validation", "test")):
        with (folder / f"{part}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["text", *TASKS])
            writer.writeheader()
            for task, counts in TASKS.items():
                split = data.split(data.read(task, model_source.cache_folder()), seed=data.SEED)
                examples = list(getattr(split, part))
                count = min(len(examples), 40 if quick else counts[number])
                for example in Random(0).sample(examples, count):
                    writer.writerow({"text": " ".join(example.text.split())[:CHARS], task: example.label})
    recipe = folder / "teacher.toml"
    tasks = "".join(f'[tasks.{task}]\nkind = "classification"\nlabel = "{task}"\n' for task in TASKS)
    files = "".join(f'{part} = "{part}.csv"\n' for part in ("train", "validation", "test"))
    train = f"[train]\nprecision = 'bf16'\nmax_tokens = {TOKENS}\nevaluate_every = 80\n{'steps = 1' if quick else 'epochs = 2'}\n"
    recipe.write_text(f"{train}[data]\n{files}{tasks}", encoding="utf-8")
    return recipe


def _on(model: ModelToLoad, backend: Backend) -> ModelToLoad:
    return msgspec.structs.replace(model, backend=backend)


def _summary(found: Mapping[str, Figures], combined: Sequence[str]) -> dict[str, Any]:
    """Return the figures, with the fastest combination that loses at most `MOST_LOST` points of any task."""
    original, student = found[ORIGINAL], found["student"]
    best = max((own for name, own in found.items() if name.startswith(("original", "teacher on"))), key=_rate)
    good = [found[name] for name in combined if _lost(original, found[name]) <= MOST_LOST]
    fastest = max(good or [found[name] for name in combined], key=_rate)
    return {
        "speedup_student": round(_rate(student) / _rate(original), 2),
        "points_lost_student": _lost(original, student),
        "speedup_combined": round(_rate(fastest) / _rate(original), 2),
        "speedup_combined_over_best": round(_rate(fastest) / _rate(best), 2),
        "points_lost_combined": _lost(original, fastest),
        "combined": fastest.step,
        "best_of_teacher": best.step,
        "variants": {name: msgspec.to_builtins(own) for name, own in found.items()},
    }


def _rate(figures: Figures) -> float:
    return figures.items_per_s


def _lost(original: Figures, other: Figures) -> float:
    """Return the points lost on the worst task."""
    return round(max(100 * (own - other.metrics[task]) for task, own in original.metrics.items()), 2)


if __name__ == "__main__":
    main()
