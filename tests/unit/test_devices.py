"""Discovery and pinning, on nvidia-smi's words as recorded: there is no GPU where these tests run."""

from __future__ import annotations

import pytest

from producers.wire.errors import ConfigurationError
from workers.device import devices
from workers.device.devices import Device

ANSWER = "0, NVIDIA H100 80GB HBM3, 81559\n1, NVIDIA H100 80GB HBM3, 81559\n2, NVIDIA L4, [N/A]\n"


def test_gpus_are_counted_as_this_process_sees_them():
    """CUDA_VISIBLE_DEVICES restricts and orders; our cuda:0 is the first of those."""
    assert [gpu.name for gpu in devices.visible_gpus(ANSWER, None)] == ["cuda:0", "cuda:1", "cuda:2"]
    restricted = devices.visible_gpus(ANSWER, "2,0")
    assert [(gpu.name, gpu.description) for gpu in restricted] == [
        ("cuda:0", "NVIDIA L4"),
        ("cuda:1", "NVIDIA H100 80GB HBM3"),
    ]
    assert restricted[1].memory_bytes == 81559 * 2**20
    assert restricted[0].memory_bytes is None
    assert devices.visible_gpus(ANSWER, "") == []


def test_a_process_sees_only_the_gpu_it_is_pinned_to():
    """Pinning is by environment, before Python starts, in the bus order that nvidia-smi counts in."""
    gpu = Device("cuda:1", "x")
    assert devices.pinned_environment(gpu, {})["CUDA_VISIBLE_DEVICES"] == "1"
    assert devices.pinned_environment(gpu, {"CUDA_VISIBLE_DEVICES": "5,7"})["CUDA_VISIBLE_DEVICES"] == "7"
    assert devices.pinned_environment(gpu, {})["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_the_cpu_s_process_sees_no_gpu():
    """And uses as many threads as it is told."""
    pinned = devices.pinned_environment(devices.cpu(), {"CUDA_VISIBLE_DEVICES": "0", "HOME": "/h"}, threads=3)
    assert (pinned["CUDA_VISIBLE_DEVICES"], pinned["OMP_NUM_THREADS"], pinned["HOME"]) == ("", "3", "/h")


def test_a_process_that_runs_models_gets_no_secrets():
    """A model's folder or class may be a stranger's. All other variables stay, for the class."""
    secrets = {
        "ARGOSY_BROKER_URL",
        "ARGOSY_STORE_URL",
        "ARGOSY_STORE_PASSWORD_FILE",
        "ARGOSY_BLOB_URL",
        "CELERY_BROKER_URL",
    }
    given = dict.fromkeys({*secrets, "ARGOSY_FLEET", "AWS_REGION", "PATH"}, "x")
    pinned = devices.pinned_environment(devices.cpu(), given)
    assert secrets.isdisjoint(pinned)
    assert {"ARGOSY_FLEET", "AWS_REGION", "PATH"} <= set(pinned)


def test_profiles(monkeypatch):
    """`auto` prefers GPUs, `cpu` ignores them, a missing device is named with what there is."""
    gpu = Device("cuda:0", "x")
    monkeypatch.setattr(devices, "_gpus", lambda: [gpu])
    assert devices.select("auto") == [gpu]
    assert devices.select("gpu") == [gpu]
    assert [device.name for device in devices.select("cpu")] == ["cpu"]
    with pytest.raises(ConfigurationError, match="no device 'cuda:4'; this machine has cuda:0, cpu"):
        devices.select("auto", ("cuda:4",))
    monkeypatch.setattr(devices, "_gpus", list)
    assert [device.name for device in devices.select("auto")] == ["cpu"]
    with pytest.raises(ConfigurationError, match="no GPU"):
        devices.select("gpu")
