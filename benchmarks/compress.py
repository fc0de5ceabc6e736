"""How much faster and smaller does `argosy compress` make a text model, and how many points does it lose?

The teacher is the model of five tasks that benchmarks/multitask.py trains with all labels. It is quantised, pruned, and
distilled to a student; combined are the student and the fastest backend at the same accuracy. All variants answer the
same held-out texts in turns, each loaded by the serving code in a process of its own.

With `--work`, a later run takes the teacher and the variants that are there. `--keep` writes each variant's scores as
soon as it has answered; sizes and speeds come at the end, from one run of all.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch

from benchmarks import convention, multitask
from producers.wire.errors import ConfigurationError
from workers import settings
from workers.batching.serving import served_models
from workers.device import devices
from workers.device.device_process import ModelToLoad
from workers.models.backends.choice import Backend
from workers.training.compressing import compress_rows, task_networks
from workers.training.compressing.compress_recipe import CompressRecipe, Distill, Export, Int8, Prune, Step
from workers.training.compressing.compression_run import ORIGINAL, CompressionSteps, Reports
from workers.training.compressing.measured_variants import Figures, Measurement, Variant

NAME = "compress"

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

#: Written into a variant's folder when it is complete.
_VARIANT = "variant.json"

#: The scores of each task, by variant.
Scores = Mapping[str, Mapping[str, float]]


def main() -> None:
    parser = convention.parser(__doc__)
    parser.add_argument("--layers", type=int, default=3, help="of the student (default: %(default)s)")
    parser.add_argument("--inner", type=int, default=1024, help="of the student's layers (default: %(default)s)")
    parser.add_argument("--epochs", type=float, default=3.0, help="of the distillation (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=devices.available_cores(), help="(default: %(default)s)")
    parser.add_argument(
        "--work", type=Path, help="folder of the teacher and the variants: that of benchmarks.multitask"
    )
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    with tempfile.TemporaryDirectory(prefix="argosy-benchmark-") as folder:
        work = asked.work or Path(folder)
        bench = Bench(work, layers=asked.layers, inner=asked.inner, epochs=asked.epochs, quick=asked.quick)
        figures = bench.figures(keep=asked.keep)
    convention.report(NAME, figures, keep=asked.keep)


class Bench:
    """A teacher, and the variants that steps make of it."""

    def __init__(self, work: Path, *, layers: int, inner: int, epochs: float, quick: bool) -> None:
        self._layers, self._inner, self._quick = layers, inner, quick
        self._epochs = 0.0 if quick else epochs
        self._folder = work / f"compress-{layers}-{inner}-{self._epochs:g}"
        recipe = multitask.Bench(work, quick=quick, known={}).teacher()
        whole = settings.load(recipe.out / "fleet.toml")
        self._teacher = served_models.model_to_load(whole, recipe.name)
        self._rows = compress_rows.from_file(recipe.path, task_networks.served(self._teacher), 0.2)

    def figures(self, *, keep: bool) -> dict[str, Any]:
        with Measurement(self._rows, torch.get_num_threads(), turns=1 if self._quick else 3) as measurement:
            for variant in self._variants():
                try:
                    measurement.add(variant)
                except ConfigurationError as error:  # its network differs too much from torch
                    convention.progress(f"{variant.step} is left out: {error}")
                    continue
                scores = measurement.metrics()
                convention.progress(f"{variant.step}: {scores[variant.step]}")
                if keep:
                    convention.keep_part(NAME, {"partial": True, **_lost_points(scores), "scores": scores})
            convention.progress("measuring")
            found = {own.step: own for own in measurement.figures()}
        return _summary(found)

    @property
    def _distillation(self) -> Distill:
        return Distill(layers=self._layers, inner=self._inner, epochs=self._epochs)

    def variant(self, name: str) -> Variant:
        """Return the student, or a combination with it, which is made if it is not there.

        Raises ConfigurationError if its network differs too much from torch.
        """
        original = Variant(step=ORIGINAL, model=self._teacher)
        student = self._made("student", self._distillation, original)
        return student if name == student.step else self._made(name, COMBINED[name], student)

    def _variants(self) -> Iterator[Variant]:
        """Yield the variants, those of the claims first."""
        original = Variant(step=ORIGINAL, model=self._teacher)
        yield original
        student = self._made("student", self._distillation, original)
        yield student
        for name, step in list(COMBINED.items())[-1 if self._quick else 0 :]:
            yield from self._tried(name, step, student)
        for backend in BACKENDS[: 1 if self._quick else None]:
            yield Variant(step=f"teacher on {backend}", model=_on(self._teacher, backend))
        yield from self._tried("teacher int8", Int8(), original)
        yield from self._tried("pruned", Prune(layers=self._layers + 1, epochs=self._epochs / 3), original)

    def _tried(self, name: str, step: Step, of: Variant) -> Iterator[Variant]:
        """Yield the variant, unless its network differs too much from torch."""
        try:
            made = self._made(name, step, of)
        except ConfigurationError as error:
            convention.progress(f"{name} is left out: {error}")
        else:
            yield made

    def _made(self, name: str, step: Step, of: Variant) -> Variant:
        folder = self._folder / name.replace(" ", "-")
        if (folder / _VARIANT).is_file():
            return msgspec.json.decode((folder / _VARIANT).read_bytes(), type=Variant)
        shutil.rmtree(folder, ignore_errors=True)
        recipe = CompressRecipe(steps=(step,), training_precision="bf16")
        reports = Reports(say=lambda text: convention.progress(f"{name}: {text}"), watch=_watch, show=lambda *_: None)
        work = CompressionSteps(of.model, self._rows, folder, recipe, reports)
        work.do(1, step)
        variant = msgspec.structs.replace(work.variant, step=name)
        (folder / _VARIANT).write_bytes(msgspec.json.encode(variant))
        return variant


def _watch(step: int, steps: int, loss: float) -> None:
    if step % 100 == 0:
        convention.progress(f"step {step} of {steps}: loss {loss:.3f}")


def _on(model: ModelToLoad, backend: Backend) -> ModelToLoad:
    return msgspec.structs.replace(model, backend=backend)


def _summary(found: Mapping[str, Figures]) -> dict[str, Any]:
    """Return the figures, with the fastest combination that loses at most `MOST_LOST` points of any task."""
    scores = {name: own.metrics for name, own in found.items()}
    original, student = found[ORIGINAL], found["student"]
    best = max((own for name, own in found.items() if name.startswith((ORIGINAL, "teacher on"))), key=_rate)
    combined = [found[name] for name in COMBINED if name in found]
    good = [own for own in combined if _lost(scores, own.step) <= MOST_LOST]
    fastest = max(good or combined, key=_rate)
    return {
        "speedup_student": round(_rate(student) / _rate(original), 2),
        "speedup_combined": round(_rate(fastest) / _rate(original), 2),
        "speedup_combined_over_best": round(_rate(fastest) / _rate(best), 2),
        "points_lost_combined": _lost(scores, fastest.step),
        "combined": fastest.step,
        "best_of_teacher": best.step,
        **_lost_points(scores),
        "variants": {name: msgspec.to_builtins(own) for name, own in found.items()},
    }


def _rate(figures: Figures) -> float:
    return figures.items_per_s


def _lost_points(scores: Scores) -> dict[str, Any]:
    """Return the points that each variant loses on its worst task."""
    lost = {name: _lost(scores, name) for name in scores}
    return {"points_lost_student": lost.get("student"), "points_lost": lost}


def _lost(scores: Scores, name: str) -> float:
    return round(max(100 * (own - scores[name][task]) for task, own in scores[ORIGINAL].items()), 2)


if __name__ == "__main__":
    main()
