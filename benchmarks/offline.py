"""The bare loop that a fleet is measured against: one process, texts sorted by length, nothing stored."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import msgspec

from benchmarks import plain_celery
from workers import settings
from workers.batching.planning.policy import Budget
from workers.batching.serving import served_models
from workers.device import accelerator, devices
from workers.device.device_process import ModelToLoad
from workers.models.backends.choice import Backend
from workers.training.training_batches import by_size


def device(config: settings.Settings) -> devices.Device:
    """Return the (first) device that a fleet of these settings uses on this machine."""
    return devices.select(config.worker.profile, config.worker.devices)[0]


def as_served(config: settings.Settings) -> tuple[ModelToLoad, Budget]:
    """Return the text model on the backend, and its budget, that a fleet of these settings uses on this machine."""
    wanted, served = served_models.serve(config, "text", device(config))
    return wanted, served.budget


def loaded(wanted: ModelToLoad, backend: Backend, on: devices.Device) -> Any:
    """Return the model on a backend, loaded into this process, on a GPU or all cores."""
    import torch

    torch.set_num_threads(devices.available_cores())
    accelerator.set_up(on.name)
    model = msgspec.structs.replace(wanted, backend=backend).build()
    model.load(on.name)
    return model


def run(model: Any, texts: Sequence[str], budget: Budget, tasks: tuple[str, ...]) -> float:
    """Run the loop that one writes for a folder of texts: sort, fill batches up to the budget, run. Returns texts/s."""
    started = time.monotonic()
    sizes = [model.prepare(text, {}).size for text in texts]
    for places in by_size(sizes, budget.cost, most_rows=budget.rows):
        plain_celery.forward(model, [texts[place] for place in places], tasks)
    return len(texts) / (time.monotonic() - started)
