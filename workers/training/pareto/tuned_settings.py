"""The settings of a chosen point, as a `fleet.toml` that a worker obeys."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from producers.wire.atomic_files import atomically
from workers.settings import ModelSettings
from workers.training import toml_text
from workers.training.pareto.tuned_point import TunedPoint

FILE = "fleet.toml"


def write(out: Path, name: str, model: ModelSettings, point: TunedPoint) -> None:
    """Write the settings of the model `name`, served as the point says, into `out`."""
    with atomically(out / FILE) as part:
        part.write_text(text(name, model, point), encoding="utf-8")


def text(name: str, model: ModelSettings, point: TunedPoint) -> str:
    """Return the settings. A device of another runtime is the node's: it is named in a comment."""
    table = f"models.{json.dumps(name)}"
    own = {
        **_changed(model),
        "backend": point.backend.name,
        "precision": point.backend.precision,
        **({"compile": True} if point.backend.compiled else {}),
        "batch_cost": point.batch_cost,
    }
    lines = [
        f"# Measured by `argosy tune`: the variant {point.variant}, {point.items_per_s:,.0f} items/s,",
        f"# {point.latency_ms:,.1f} ms a pass, {point.memory_mb:,.0f} MB; tuned.json has all points.",
        *([f"# At a node with --device {_node(point)}."] if point.backend.device else []),
        "[worker]",
        f"models = [{json.dumps(name)}]",
        f"threads = {point.threads}",
        "",
        f"[{table}]",
        *(f"{key} = {toml_text.value(value)}" for key, value in own.items() if not isinstance(value, dict)),
        *(f"{key} = {toml_text.value(value)}" for key, value in own.items() if isinstance(value, dict)),
    ]
    return "\n".join(lines) + "\n"


def _node(point: TunedPoint) -> str:
    return f"{'ort' if point.backend.name == 'onnxruntime' else point.backend.name}:{point.backend.device}"


def _changed(model: ModelSettings) -> dict[str, object]:
    """Return the settings of a model that are not the defaults, by their names in the file."""
    changed = {}
    for field in msgspec.structs.fields(ModelSettings):
        given = getattr(model, field.name)
        factory = field.default_factory
        default = factory() if callable(factory) else field.default
        if given != default:
            changed[field.encode_name] = given
    return changed
