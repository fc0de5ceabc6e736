"""The Pareto front of measured ways to serve a model, the choice, and the settings that a worker reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from producers.wire.errors import ConfigurationError
from workers import settings
from workers.models.backends.choice import Backend, Name, Precision
from workers.settings import ModelSettings
from workers.training import toml_text
from workers.training.pareto import front_plot, tuned_settings
from workers.training.pareto.tuned_point import ORIGINAL, Preference, TunedPoint, chosen, front


def point(
    items_per_s: float,
    accuracy: float = 0.9,
    *,
    backend: Name = "torch",
    precision: Precision = "fp32",
    device: str = "",
    **more: Any,
) -> TunedPoint:
    given = {"variant": ORIGINAL, "threads": 1, "latency_ms": 10.0, "memory_mb": 100.0, "batch_cost": 512}
    given |= {"agreement": 1.0, "shift": 0.0, "slowest": 0.95 * items_per_s, "fastest": 1.05 * items_per_s}
    own = Backend(backend, precision, device=device)
    figures = {"accuracy": {"mood": accuracy}, "accuracy_before": {"mood": 0.9}, **given, **more}
    return TunedPoint(backend=own, items_per_s=items_per_s, **figures)


REFERENCE = point(100)


def _of_tasks(items_per_s: float, accuracy: dict[str, float], before: dict[str, float]) -> TunedPoint:
    return msgspec.structs.replace(point(items_per_s), accuracy=accuracy, accuracy_before=before)


def test_the_front_has_the_points_that_none_beats() -> None:
    """Better in one figure is enough, equal points stay both, and what does not run is no point."""
    accurate, fast = point(90, 0.95), point(400, 0.8)
    small, beaten = point(50, 0.9, memory_mb=10.0), point(80, 0.9, latency_ms=11.0)
    broken = point(9000, 1.0, refused="raised MemoryError: none")
    found = front([REFERENCE, fast, accurate, small, beaten, broken, REFERENCE])
    assert found == [accurate, REFERENCE, REFERENCE, small, fast]


@pytest.mark.parametrize(
    ("prefer", "expected"), [("items", 300.0), ("latency", 200.0), ("memory", 150.0)]
)  # fmt: skip
def test_the_choice_is_the_best_that_keeps_the_accuracy(prefer: Preference, expected: float) -> None:
    """A faster one that loses two points is on the front, and not chosen."""
    points = [
        REFERENCE,
        point(300, 0.896),
        point(200, 0.897, latency_ms=2.0),
        point(150, memory_mb=20.0),
        point(900, 0.88, latency_ms=1.0, memory_mb=1.0),
    ]
    assert chosen(points, 0.005, prefer).items_per_s == expected
    assert chosen(points, 0.03, prefer).items_per_s == 900


def test_each_task_keeps_its_accuracy() -> None:
    """A mean would let one task pay for another."""
    before = {"mood": 0.9, "names": 0.9}
    same = _of_tasks(100, before, before)
    other = _of_tasks(500, {"mood": 1.0, "names": 0.8}, before)
    assert other.mean_accuracy == same.mean_accuracy
    assert chosen([same, other], 0.005, "items") is same


def test_less_precision_and_larger_batches_must_pay() -> None:
    """As at a worker's start: noise costs no precision, and a batch that is hardly faster keeps items waiting."""
    large = point(103, batch_cost=2048)
    assert chosen([REFERENCE, point(108, precision="bf16"), large], 0.005, "items") == REFERENCE
    assert chosen([REFERENCE, point(140, precision="bf16"), large], 0.005, "items").items_per_s == 140
    assert chosen([REFERENCE, point(110, batch_cost=2048)], 0.005, "items").batch_cost == 2048


def test_a_node_without_a_point_that_keeps_the_accuracy_says_so() -> None:
    with pytest.raises(ConfigurationError, match=r"no variant keeps the accuracy .*small .*: no memory.*--most-lost"):
        chosen([point(0, 0.0, variant="small", refused="no memory")], 0.005, "items")


def test_a_worker_reads_the_settings_of_the_choice(tmp_path: Path) -> None:
    """Variant, backend, precision, batch and threads; names and texts of any kind come through."""
    own = ModelSettings(
        source={"path": str(tmp_path / "small"), "onnx": "onnx/model.onnx"},
        tasks={"mood": {"kind": "text-classification", "summary": 'it\'s "so" 😀', "params": {"top_k": 2}}},
        options={"function_to_apply": {"mood": "softmax"}, "max_tokens": 64},
        batch_rows=32,
    )
    best = point(1234.5, backend="onnxruntime", precision="int8", variant="small", threads=2, batch_cost=1024)
    tuned_settings.write(tmp_path, "re.views", own, best)
    read = settings.load(tmp_path / "fleet.toml", environment={})
    assert (read.worker.threads, read.worker.models) == (2, ("re.views",))
    found = read.models["re.views"]
    assert (found.backend, found.precision, found.batch_cost) == ("onnxruntime", "int8", 1024)
    for name in ("source", "tasks", "options", "batch_rows"):
        assert getattr(found, name) == getattr(own, name)
    pinned = point(1.0, backend="openvino", device="HETERO:CPU")
    assert "# At a node with --device openvino:HETERO:CPU." in tuned_settings.text("own", own, pinned)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        (0.5, "0.5"),
        ("a\n\"b\"", '"a\\n\\"b\\""'),
        ([1, "x"], '[1, "x"]'),
        ({"a b": {"c": 1}}, '{ "a b" = { "c" = 1 } }'),
    ],
)  # fmt: skip
def test_values_are_written_as_toml(value: Any, text: str) -> None:
    import tomllib

    assert toml_text.value(value) == text
    assert tomllib.loads(f"x = {text}")["x"] == value


def test_the_plot_shows_the_points(tmp_path: Path) -> None:
    from PIL import Image

    points = [REFERENCE, point(300, 0.896, variant="small"), point(0, refused="no memory")]
    front_plot.draw(tmp_path, points, front(points), REFERENCE, model="own")
    with Image.open(tmp_path / "tuned.png") as picture:
        assert picture.size == (1800, 540)
