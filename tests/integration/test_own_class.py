"""A class that an installed package offers: found by its entry point in the worker's parent and in its device
process.
"""

from __future__ import annotations

import os
import queue
from pathlib import Path

import numpy as np
import pytest

from tests.versioned_model import write_version
from workers import settings
from workers.batching.serving import served_models
from workers.device.device_client import DeviceEvent, ProcessDevice
from workers.device.devices import cpu
from workers.models.interface.class_lookup import GROUP

MODULE = "from tests.versioned_model import VersionedModel\n\n\nclass Own(VersionedModel):\n    pass\n"

FLEET = """
[worker]
models = ["mine"]
[models.mine]
class = "own-model"
source = {{ path = "{folder}" }}
[models.mine.tasks.own]
kind = "text-classification"
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as pip leaves it: a module and its metadata, on the path of this process and of those it starts."""
    (tmp_path / "offering.py").write_text(MODULE, encoding="utf-8")
    about = tmp_path / "offering-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: offering\nVersion: 1.0\n", encoding="utf-8")
    (about / "entry_points.txt").write_text(f"[{GROUP}]\nown-model = offering:Own\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{Path(__file__).parents[2]}")
    return tmp_path


def test_an_offered_class_is_served(installed: Path) -> None:
    """From TOML to an answer: its name in the settings is all that says where it is."""
    file = installed / "fleet.toml"
    file.write_text(FLEET.format(folder=write_version(installed / "weights", 7)), encoding="utf-8")
    wanted, served = served_models.serve(settings.load(file), "mine", cpu())
    assert type(served.model).__name__ == "Own"
    row = served.model.prepare("a text", {})
    events: queue.SimpleQueue[DeviceEvent] = queue.SimpleQueue()
    device = ProcessDevice(cpu(), [wanted], events.put, threads=1)
    try:
        device.start()
        assert events.get().header["event"] == "ready"
        device.run("batch", "mine", served.model.collate([row]), {"own": np.array([0])}, urgency=0)
        done = events.get()
    finally:
        device.close()
    task = served.model.spec.tasks["own"]
    answer = served.model.finish(task, done.arrays["own"][0], task.kind.params(), row)
    assert answer["version"] == 7
