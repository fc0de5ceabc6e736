"""Discovery, pinning, measuring: what a worker finds out about a GPU before it serves."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny_checkpoints
from workers import settings
from workers.batching.serving import served_models, tuned_backend
from workers.device import devices
from workers.device.device_client import DeviceEvent, ProcessDevice
from workers.device.devices import Device, pinned_environment
from workers.models.backends.choice import Backend


def test_a_gpu_is_found_with_its_memory(gpu: Device) -> None:
    assert gpu.name == "cuda:0"
    assert gpu.memory_bytes is not None
    assert gpu.memory_bytes > 2**30
    assert devices.select("auto")[0] == gpu


@pytest.mark.parametrize(("on", "seen"), [("gpu", "1"), ("cpu", "0")])
def test_a_pinned_process_sees_its_device_alone(gpu: Device, on: str, seen: str) -> None:
    device = gpu if on == "gpu" else devices.cpu()
    counted = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
    ran = subprocess.run(
        counted, env=pinned_environment(device, os.environ), capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == seen


def test_a_gpu_is_measured_with_batches_of_its_size(
    gpu: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half precision is tried, and many more rows than a CPU's batches have."""
    monkeypatch.setenv("ARGOSY_CACHE", str(tmp_path / "cache"))
    model = settings.ModelSettings(
        class_="workers.models.built_in.text.text_model:TextModel",
        source={"path": str(tiny_checkpoints.bert(tmp_path / "bert", "BertModel"))},
        tasks={"vector": "feature-extraction"},
    )
    chosen = settings.Settings(models={"own": model})
    wanted, served = served_models.serve(chosen, "own", gpu)
    decision = tuned_backend.find(served_models.model_to_load(chosen, "own"), gpu)
    assert decision is not None
    assert [one.backend for one in decision.candidates] == [
        Backend("torch", precision) for precision in ("fp32", "bf16", "fp16")
    ]
    assert wanted.backend == decision.backend
    assert max(decision.rates) > 4096
    assert served.budget.rows == 64 * max(1, decision.batch_cost // 4096)


def test_a_device_process_tells_what_it_takes_of_a_gpu(gpu: Device, tmp_path: Path) -> None:
    model = settings.ModelSettings(
        class_="workers.models.built_in.text.text_model:TextModel",
        source={"path": str(tiny_checkpoints.bert(tmp_path / "bert", "BertModel"))},
        tasks={"vector": "feature-extraction"},
        backend="torch",
        batch_cost=512,
    )
    wanted, _ = served_models.serve(settings.Settings(models={"own": model}), "own", gpu)
    events: queue.SimpleQueue[DeviceEvent] = queue.SimpleQueue()
    device = ProcessDevice(gpu, [wanted], events.put, threads=1, measuring=True)
    device.start()
    try:
        header = events.get(timeout=120).header
        assert header["event"] == "ready", header
        assert 0 < header["resident_bytes"] < 2**30
    finally:
        device.close()
