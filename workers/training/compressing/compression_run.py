"""Run the steps of a recipe on a model, measure the model after each, and write the last good one to serve."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch

from producers.wire.atomic_files import atomically, write_json
from producers.wire.errors import ConfigurationError
from workers.device.device_process import ModelToLoad
from workers.models.backends.choice import REFERENCE, Backend
from workers.training import toml_text
from workers.training.compressing import importance, network_files, rounding, smaller_networks, task_networks
from workers.training.compressing.compress_recipe import Adapt, CompressRecipe, Distill, Export, Int8, Prune, Step
from workers.training.compressing.compress_rows import CompressRows
from workers.training.compressing.lessons import TokenizedRows
from workers.training.compressing.measured_variants import Figures, Measurement, Variant
from workers.training.compressing.smaller_networks import Size
from workers.training.compressing.task_networks import TaskNetworks
from workers.training.compressing.teaching import Teaching, Watch, teach
from workers.training.recipes.served_folder import BACKBONE, HEADS

SETTINGS, CARD = "fleet.toml", "card.json"

#: The name of the model as it came.
ORIGINAL = "original"

#: The class of a model that names none; a fleet.toml leaves it out.
_CHECKPOINT = "workers.models.huggingface:model_for"


class CompressionCard(msgspec.Struct, frozen=True, kw_only=True):
    """The origin of a compressed model: revision of the original, recipe, rows, and the figures of each step.

    `refused` has the reason of each step whose result was not accepted.
    """

    original: str
    recipe: CompressRecipe
    learnt_from: int
    judged_by: int
    figures: list[Figures]
    refused: dict[str, str]
    chosen: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reports:
    """Called with a sentence at the start of a step, after each step of a training, and with the figures so far."""

    say: Callable[[str], object]
    watch: Watch | None
    show: Callable[[Sequence[Figures], Mapping[str, str]], object]


def compress(
    wanted: ModelToLoad,
    recipe: CompressRecipe,
    rows: CompressRows,
    out: Path,
    reports: Reports,
    *,
    accept_loss: bool = False,
    threads: int = 1,
) -> CompressionCard:
    """Compress a model into the new folder `out`.

    A step whose result loses too much, or cannot be served, is left out. Raises ConfigurationError for a model that is
    not compressed, for a size that cannot be, and if every step is left out.
    """
    if out.exists() and any(out.iterdir()):
        raise ConfigurationError(f"{out}: is not empty; name a new folder, so that no model is replaced unseen")
    torch.set_num_threads(threads)
    work = CompressionSteps(wanted, rows, out, recipe, reports)
    with Measurement(rows, threads) as measurement:
        measurement.add(work.variant)
        variants, refused, figures = {ORIGINAL: work.variant}, dict[str, str](), list[Figures]()
        for number, step in enumerate(recipe.steps, 1):
            try:
                work.do(number, step)
                measurement.add(work.variant)
            except ConfigurationError as error:  # the network's file differs too much from torch, or does not load
                refused[work.name(number)] = str(error)
                continue
            variants[work.variant.step] = work.variant
            figures = measurement.figures()
            if (reason := lost(figures, recipe.most_lost)) and not accept_loss:
                refused[work.variant.step] = reason
            reports.show(figures, refused)
    chosen = next(name for name in reversed(variants) if name not in refused)
    if chosen == ORIGINAL:
        shutil.rmtree(out, ignore_errors=True)
        reasons = "; ".join(f"{step}: {reason}" for step, reason in refused.items())
        problem = f"every step is left out ({reasons})"
        raise ConfigurationError(f"{wanted.name}: {problem}; train longer, cut less, or pass --accept-loss")
    card = CompressionCard(
        original=work.revision,
        recipe=recipe,
        learnt_from=len(rows.learnt),
        judged_by=len(rows.judged),
        figures=figures,
        refused=refused,
        chosen=chosen,
    )
    _write(out, variants, chosen, card)
    return card


def lost(figures: Sequence[Figures], most: float) -> str:
    """Return the reason against the last variant, or "": the task that lost more than `most` points."""
    original, last = figures[0].metrics, figures[-1].metrics
    points = {task: 100 * (original[task] - last[task]) for task in original}
    worst = max(points, key=lambda task: points[task])
    return f"{worst} lost {points[worst]:.1f} points" if points[worst] > most else ""


class CompressionSteps:
    """The variant that the last step left, and the steps that change it."""

    def __init__(
        self, wanted: ModelToLoad, rows: CompressRows, out: Path, recipe: CompressRecipe, reports: Reports
    ) -> None:
        self._out, self._recipe, self._reports = out, recipe, reports
        model = task_networks.served(wanted)
        self.revision = model.revision
        self._rows = TokenizedRows(model, rows.kinds, rows.learnt)
        self._teacher = task_networks.load(model)
        self.variant = Variant(step=ORIGINAL, model=wanted, size=_size(self._teacher))
        self._served_by: Int8 | Export | None = None
        self._check_sizes()

    def _check_sizes(self) -> None:
        """Raise ConfigurationError for a size that cannot be, before the first step takes its time."""
        config = self._teacher.backbone.config
        steps = [step for step in self._recipe.steps if isinstance(step, Prune | Distill)]
        now = original = Size.of(config) if steps else None
        for step in steps:
            assert now is not None
            assert original is not None
            smaller_networks.check(config, now, wanted := _wanted(step, now, original))
            now = wanted

    def name(self, number: int) -> str:
        """Return the name of the variant that a step makes."""
        return f"{number}-{type(self._recipe.steps[number - 1]).__struct_config__.tag}"

    def do(self, number: int, step: Step) -> None:
        """Run a step. Its result is a variant in a folder of its own.

        Raises ConfigurationError for a network's file that does not answer like torch.
        """
        self._reports.say(f"step {number} of {len(self._recipe.steps)}: {self.name(number)}")
        folder = self._out / self.name(number)
        networks = self._loaded()
        served_by = step if isinstance(step, Int8 | Export) else self._served_by
        if not isinstance(step, Int8 | Export):
            networks = self._trained(networks, step)
        networks.save(Path(self.variant.model.folder), self._rows.kinds, folder)
        heads = {task: str(folder / HEADS / task) for task in networks.heads}
        model = msgspec.structs.replace(
            self.variant.model,
            folder=str(folder / BACKBONE),
            options={**self.variant.model.options, "heads": heads},
            backend=REFERENCE,
        )
        model = msgspec.structs.replace(model, backend=self._written(model, served_by))
        if model.backend.precision == "int8":  # loads compare the network with these, and explanations need them
            networks.backbone.to(torch.bfloat16)
            networks.write_weights(self._rows.kinds, folder)
        self.variant, self._served_by = Variant(step=folder.name, model=model, size=_size(networks)), served_by

    def _loaded(self) -> TaskNetworks:
        model = msgspec.structs.replace(self.variant.model, backend=REFERENCE)
        return task_networks.load(task_networks.served(model))

    def _trained(self, networks: TaskNetworks, step: Prune | Distill | Adapt) -> TaskNetworks:
        if isinstance(step, Adapt):
            with rounding.rounded(networks.backbone):
                self._teach(networks, step)
            return networks
        now = Size.of(networks.backbone.config)
        wanted = _wanted(step, now, Size.of(self._teacher.backbone.config))
        if wanted != now:
            networks = smaller_networks.cut(networks, importance.least_missed(networks, self._rows, wanted))
        self._teach(networks, step)
        return networks

    def _teach(self, networks: TaskNetworks, step: Prune | Distill | Adapt) -> None:
        given = msgspec.structs.asdict(step) | {"seed": self._recipe.seed, "precision": self._recipe.training_precision}
        settings = Teaching(**{name: own for name, own in given.items() if name in Teaching.__struct_fields__})
        if settings.epochs:
            teach(networks, self._teacher, self._rows, settings, self._reports.watch)

    def _written(self, model: ModelToLoad, served_by: Int8 | Export | None) -> Backend:
        """Write the network's file that an `int8` or `export` asked for, and return the backend that reads it."""
        match served_by:
            case Int8(mode="static", backend=backend):
                network_files.write_static(model, self._rows)
                return Backend(backend, "int8")
            case Int8(backend=backend):
                network_files.write(model, found := Backend(backend, "int8"))
                return found
            case Export(backend=backend, precision=precision):
                network_files.write(model, found := Backend(backend, precision))
                return found
        return REFERENCE


def _size(networks: TaskNetworks) -> str:
    config = networks.backbone.config
    return str(Size.of(config)) if config.model_type in smaller_networks.LAYOUTS else ""


def _wanted(step: Prune | Distill, now: Size, original: Size) -> Size:
    """Return the size that a step asks for. A step that names none halves the layers, unless they are fewer already."""
    names = ("layers", "heads", "inner", "width")
    given = {name: own for name in names if (own := getattr(step, name)) is not None}
    if not given and now == original:
        given = {"layers": max(1, now.layers // 2)}
    return Size(**{name: given.get(name, getattr(now, name)) for name in names})


def _write(out: Path, variants: Mapping[str, Variant], chosen: str, card: CompressionCard) -> None:
    """Keep the folder of the chosen variant, and write its settings last: they mark the output as complete."""
    for folder in out.iterdir():
        if folder.name != chosen:
            shutil.rmtree(folder)
    write_json(out / CARD, card)
    with atomically(out / SETTINGS) as part:
        part.write_text(settings_of(variants[chosen].model, out), encoding="utf-8")


def settings_of(model: ModelToLoad, out: Path) -> str:
    """Return the fleet.toml of a model below `out`, with paths that count from it."""

    def relative(path: str) -> str:
        return str(Path(path).relative_to(out))

    table: dict[str, Any] = {} if model.class_ == _CHECKPOINT else {"class": model.class_}
    table["source"] = {"path": relative(model.folder)}
    if not model.backend.is_reference:
        table |= {"backend": model.backend.name, "precision": model.backend.precision}
    heads = {task: relative(path) for task, path in model.options["heads"].items()}
    kinds = {task: kind for task, (kind, _) in model.tasks.items()}
    return toml_text.served_alone(model.name, table, {**model.options, "heads": heads}, kinds, command="compress")
