"""A single model outside of a fleet: its batches are formed and run as in a worker, in a device process of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from workers.batching.batcher import Batcher, BatcherSettings
from workers.batching.roster import ServedModel
from workers.device.device_client import ProcessDevice
from workers.device.device_process import ModelToLoad
from workers.device.devices import Device
from workers.settings import Settings


@contextmanager
def running(
    settings: Settings, wanted: ModelToLoad, served: ServedModel, device: Device, *, name: str
) -> Iterator[Batcher]:
    """Start the model, wait until it can compute or is out of service, and stop it at the end."""
    worker = settings.worker
    batcher = Batcher(
        {wanted.name: served},
        BatcherSettings(
            worker=name,
            device=device.name,
            load_timeout_s=worker.load_timeout_s,
            batch_timeout_s=worker.batch_timeout_s,
            guaranteed_shares={},
        ),
        on_batch=lambda _: None,
        on_out_of_service=lambda _: None,
    )
    batcher.start(ProcessDevice(device, [wanted], batcher.tell, threads=worker.threads))
    try:
        batcher.came_up.wait()
        yield batcher
    finally:
        batcher.stop()
