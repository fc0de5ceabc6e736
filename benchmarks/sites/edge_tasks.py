"""The two tasks of `benchmarks.edge`: their inputs, and the settings of the site's small and the centre's large model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import compress, multitask
from benchmarks.labelled import rows as labelled
from benchmarks.sites.centre import Centre
from benchmarks.tasks.entries import pictures
from workers import settings
from workers.training import toml_text
from workers.training.compressing.compression_run import settings_of

#: The site's model of the text task: a variant of `benchmarks.compress`.
STUDENT = "student on openvino-int8"
STUDENTS = ("student", *compress.COMBINED)

#: The site's model of the image task: MobileNetV2, compressed.
SMALL_VISION = {"backend": "onnxruntime", "precision": "int8"}
LARGE_VISION = {"backend": "torch", "precision": "fp32"}

#: The names of the cascade's tasks: the answers of both, and of the centre alone.
CASCADE, ONLY_CENTRE = "cascade", "centre-alone"


@dataclass(frozen=True, slots=True)
class Question:
    """An input, with its label if there is one; without, the centre's answer is right."""

    value: Any
    label: str | None = None


@dataclass(frozen=True, slots=True)
class EdgeTaskPair:
    """A task by its kind, and its model at the site and at the centre. `chosen` find the threshold, `judged` count."""

    name: str
    kind: str
    model: str
    site: Mapping[str, Any]
    centre: Mapping[str, Any]
    chosen: Sequence[Question]
    judged: Sequence[Question]

    def write_centre(self, folder: Path) -> Path:
        """Write the fleet.toml of the centre; return its path."""
        tables = {"worker": {"models": [self.model], "tune_at_start": False}, "models": {self.model: self.centre}}
        return _written(folder / "centre.toml", tables)

    def write_site(self, folder: Path, centre: Centre, *, threshold: float, share_load: bool) -> Path:
        """Write the fleet.toml of the site; return its path."""
        edge = {
            "site": "small",
            "centre": centre.address,
            "key_file": str(centre.key_file),
            "ca_file": str(centre.ca_file),
            "answer_s": 10.0,
            "share_load": share_load,
            "tasks": {
                CASCADE: {"site": self.name, "centre": self.name, "threshold": threshold},
                ONLY_CENTRE: {"only_at_centre": True, "kind": self.kind, "centre": self.name},
            },
        }
        worker = {"models": [self.model], "tune_at_start": False, "threads": 1}
        tables = {"worker": worker, "models": {self.model: self.site}, "edge": edge}
        return _written(folder / "site.toml", tables)


def _written(path: Path, tables: Mapping[str, Mapping[str, Any]]) -> Path:
    lines: list[str] = []
    for name, table in tables.items():
        lines += [f"[{name}]", *(f"{toml_text.value(key)} = {toml_text.value(own)}" for key, own in table.items())]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def text_task(work: Path, *, student: str, quick: bool) -> EdgeTaskPair:
    """Return sentiment by the teacher of `benchmarks.multitask`, and by its student from `benchmarks.compress`."""
    teacher = multitask.Bench(work, quick=quick, known={}).teacher()
    small = compress.Bench(work, layers=3, inner=1024, epochs=3.0, quick=quick).variant(student)
    folder = Path(small.model.folder).parent
    (folder / "fleet.toml").write_text(settings_of(small.model, folder), encoding="utf-8")
    parts = labelled.read(quick=quick)["sentiment"].parts
    chosen, judged = (
        [Question(row["text"], row["sentiment"]) for row in _distinct(parts[part])] for part in ("validation", "test")
    )
    name = teacher.name
    site, centre = (_model(path, name) for path in (folder / "fleet.toml", teacher.out / "fleet.toml"))
    return EdgeTaskPair("sentiment", "text-classification", name, site, centre, chosen, judged)


def image_task(count: int) -> EdgeTaskPair:
    """Return ImageNet's classes by MobileNetV2, compressed at the site, on `count` parts of photographs."""
    questions = [Question(picture) for picture in dict.fromkeys(pictures(2 * count))]
    half = len(questions) // 2
    return EdgeTaskPair(
        "image-classification", "image-classification", "vision", SMALL_VISION, LARGE_VISION,
        questions[:half], questions[half:],
    )  # fmt: skip


def _distinct(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return list({row["text"]: row for row in rows}.values())


def _model(path: Path, name: str) -> dict[str, Any]:
    """Return a model's table with absolute paths, without its defaults."""
    own = settings.load(path).models[name]
    usual = msgspec.to_builtins(settings.ModelSettings())
    table: dict[str, Any] = msgspec.to_builtins(own)
    return {key: value for key, value in table.items() if value != usual[key]}
