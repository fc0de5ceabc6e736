"""Discovery and pinning, on nvidia-smi's words as recorded: there is no GPU where these tests run."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from producers.wire.errors import ConfigurationError
from workers.device import devices
from workers.device.devices import Device

#: `nvidia-smi -L`, of machines with eight GPUs, and with slices of a GPU beside a whole one.
EIGHT = "".join(
    f"GPU {n}: NVIDIA H100 80GB HBM3 (UUID: GPU-{n}a4f0c1e-0000-4c1b-8000-00000000000{n})\n" for n in range(8)
)
SLICED = """GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-6f0c1e2a-9d1b-4a53-b1f0-6a2c3d4e5f60)
  MIG 3g.40gb     Device  0: (UUID: MIG-1a2b3c4d-0000-5e6f-8000-000000000001)
  MIG 1g.10gb     Device  1: (UUID: MIG-2a2b3c4d-0000-5e6f-8000-000000000002)
GPU 1: NVIDIA L4 (UUID: GPU-77777777-9d1b-4a53-b1f0-6a2c3d4e5f61)
"""
MEMORY = "GPU-6f0c1e2a-9d1b-4a53-b1f0-6a2c3d4e5f60, 81559\nGPU-77777777-9d1b-4a53-b1f0-6a2c3d4e5f61, [N/A]\n"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Device]]:
    """Gives the devices of a machine whose nvidia-smi says this, in a process with this CUDA_VISIBLE_DEVICES."""

    def found(listing: str, memory: str = "", visible: str | None = None) -> list[Device]:
        (tmp_path / "listing").write_text(listing)
        (tmp_path / "memory").write_text(memory)
        command = tmp_path / "nvidia-smi"
        command.write_text(f'#!/bin/sh\ncd {tmp_path}\n[ "$1" = -L ] && exec cat listing\nexec cat memory\n')
        command.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        return [device for device in devices.discover() if device.is_cuda]

    return found


def seen(found: list[Device]) -> list[str]:
    """What a process that is pinned to each device sees."""
    return [devices.pinned_environment(device, os.environ)["CUDA_VISIBLE_DEVICES"] for device in found]


def test_each_of_eight_gpus_is_seen_by_one_process(machine: Callable[..., list[Device]]) -> None:
    found = machine(EIGHT)
    assert [device.name for device in found] == [f"cuda:{n}" for n in range(8)]
    assert seen(found) == re.findall(r"GPU-[^)]*", EIGHT)
    assert {devices.pinned_environment(one, {})["CUDA_DEVICE_ORDER"] for one in found} == {"PCI_BUS_ID"}


def test_a_driver_that_fails_is_said(
    machine: Callable[..., list[Device]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Else a machine with GPUs would compute on its CPU without a word."""
    assert len(machine(EIGHT)) == 8
    said = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
    (tmp_path / "nvidia-smi").write_text(f'#!/bin/sh\necho "{said}"\nexit 9\n')
    assert [device.name for device in devices.discover()] == ["cpu"]
    assert caplog.messages == [f"no GPU is used, since nvidia-smi failed: {said}"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert [device.name for device in devices.discover()] == ["cpu"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(ConfigurationError, match=f"is '0', but nvidia-smi failed: {said[:20]}.*set it to -1"):
        devices.discover()
    assert len(caplog.messages) == 1


def test_slices_of_a_gpu_are_devices_of_their_own(machine: Callable[..., list[Device]]) -> None:
    """The whole one is none: its slices would be used twice."""
    found = machine(SLICED, MEMORY)
    assert [device.description for device in found] == [
        "NVIDIA H100 80GB HBM3 MIG 3g.40gb",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA L4",
    ]
    assert [name[:12] for name in seen(found)] == ["MIG-1a2b3c4d", "MIG-2a2b3c4d", "GPU-77777777"]
    assert found[0].memory_bytes == pytest.approx(40 * 2**30, rel=0.05)
    assert found[2].memory_bytes is None


def test_a_whole_gpu_has_the_memory_that_is_said(machine: Callable[..., list[Device]]) -> None:
    whole, _ = machine("".join(line for line in SLICED.splitlines(keepends=True) if "MIG" not in line), MEMORY)
    assert whole.memory_bytes == 81559 * 2**20


@pytest.mark.parametrize(
    ("visible", "numbers"),
    [
        ("5,2,7", [5, 2, 7]),
        (" 6 , 1", [6, 1]),
        ("GPU-3a4f0c1e,GPU-0a4f", [3, 0]),
        ("GPU-4a4f0c1e-0000-4c1b-8000-000000000004", [4]),
        ("3,-1,4", [3]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
    ],
)
def test_the_variable_restricts_and_orders(
    machine: Callable[..., list[Device]], visible: str, numbers: list[int]
) -> None:
    """By numbers with gaps, and by UUIDs or their beginnings, as Slurm, Ray and Kubernetes write it."""
    found = machine(EIGHT, visible=visible)
    assert [device.name for device in found] == [f"cuda:{place}" for place in range(len(numbers))]
    assert [name[:5] for name in seen(found)] == [f"GPU-{number}" for number in numbers]


@pytest.mark.parametrize("visible", ["MIG-2a2b3c4d", "MIG-2a2b3c4d-0000-5e6f-8000-000000000002"])
def test_a_slice_may_be_named(machine: Callable[..., list[Device]], visible: str) -> None:
    assert [device.description[-7:] for device in machine(SLICED, MEMORY, visible)] == ["1g.10gb"]


def test_the_number_of_a_sliced_gpu_is_its_first_slice(machine: Callable[..., list[Device]]) -> None:
    """As CUDA takes it."""
    assert [name[:12] for name in seen(machine(SLICED, MEMORY, "1,0"))] == ["GPU-77777777", "MIG-1a2b3c4d"]


@pytest.mark.parametrize(
    ("visible", "problem"),
    [
        ("9", r"no GPU '9'; nvidia-smi lists 0 \(GPU-0a4f"),
        ("0,GPU-9", "no GPU 'GPU-9'"),
        ("GPU-", "no GPU 'GPU-'"),
        ("1,1", "'1' is there twice"),
    ],
)
def test_an_entry_that_is_no_gpu_is_refused(machine: Callable[..., list[Device]], visible: str, problem: str) -> None:
    """CUDA would use fewer GPUs, or none, without a word."""
    with pytest.raises(ConfigurationError, match=f"CUDA_VISIBLE_DEVICES: {problem}"):
        machine(EIGHT, visible=visible)


def test_a_board_without_uuids_is_pinned_by_its_number(machine: Callable[..., list[Device]]) -> None:
    assert seen(machine("GPU 0: Orin (nvgpu) (UUID: 1a2b3c4d-0000-5e6f)\n")) == ["0"]


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
