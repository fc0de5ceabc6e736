"""Nodes that are pinned to a device of ONNX Runtime or OpenVINO: here the CPU, alone and through HETERO and AUTO."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from producers.wire.errors import ConfigurationError
from tests import tiny_checkpoints as tiny
from tests.serving import Served, assert_alike
from workers.batching.serving import served_models
from workers.device import devices
from workers.models.backends.build import build
from workers.models.backends.choice import Backend
from workers.models.backends.compiled_network import Source
from workers.settings import ModelSettings, Settings, WorkerSettings

TEXTS = ["a good film", "film", "the team was bad and dull and she said it was good"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARGOSY_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("name", "found", "words"),
    [
        ("ort:cpu", "ort:CPU", "provider CPU"),
        ("ort:CPUExecutionProvider", "ort:CPU", "provider CPU"),
        ("openvino:CPU", "openvino:CPU", "OpenVINO on "),
        ("openvino:hetero:CPU", "openvino:HETERO:CPU", "OpenVINO on "),
        ("openvino:AUTO", "openvino:AUTO", "OpenVINO on "),
    ],
)
def test_devices_of_other_runtimes_are_found(name: str, found: str, words: str) -> None:
    """Case and the long names of providers do not matter; the process sees the GPUs that a provider may want."""
    [device] = devices.select("auto", (name,))
    assert device.name == found
    assert words in device.description
    assert device.of_torch == "cpu"
    assert "CUDA_VISIBLE_DEVICES" not in devices.pinned_environment(device, {})


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("ort:CUDA", r"lacks CUDA; here are .*ort:CPU; install the package of ONNX Runtime that has it"),
        ("ort:DirectML", r"lacks Dml; here are .*ort:CPU"),
        ("ort:FPGA", r"knows no provider 'FPGA'; here are .*ort:CPU; it knows .*VitisAI"),
        ("openvino:NPU", r"finds no device 'NPU'; here are openvino:CPU; install the device's driver"),
        ("openvino:AUTO:NPU,CPU", r"finds no device 'NPU'"),  # OpenVINO itself would take the CPU without a word
        ("openvino:HETERO", r"'HETERO' is not supported; here are openvino:CPU; name a device, HETERO:DEVICE,DEVICE"),
        ("tpu:0", r"no device 'tpu:0'; this machine has .*cpu; also ort:PROVIDER and openvino:DEVICE"),
    ],
)
def test_a_device_that_is_not_here_is_refused_with_those_that_are(name: str, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"^worker\.devices: .*{reason}"):
        devices.select("auto", (name,))


def test_a_provider_that_takes_no_operator_is_refused(tmp_path: Path) -> None:
    """ONNX Runtime would compute all of the network on the CPU. Azure is in each of its packages, and computes nothing
    here.
    """
    source = Source(lambda: nn.Sequential(_Doubled()).eval()[0], {"values": torch.ones(2, 3)}, tmp_path / "own")
    with pytest.raises(ConfigurationError, match=r"^device: ONNX Runtime's provider Azure has none of"):
        build(Backend("onnxruntime", device="Azure"), source, "cpu")
    with pytest.raises(ConfigurationError, match=r"^device: this installation of ONNX Runtime lacks the provider CUDA"):
        build(Backend("onnxruntime", device="CUDA"), source, "cpu")
    with pytest.raises(ConfigurationError, match=r"^device: OpenVINO cannot compile this network for GPU: \w"):
        build(Backend("openvino", device="GPU"), source, "cpu")


class _Doubled(nn.Module):
    def forward(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"doubled": values * 2}


@pytest.mark.parametrize("name", ["ort:CPU", "openvino:HETERO:CPU", "openvino:AUTO:CPU"])
def test_a_pinned_node_runs_its_models_there(tmp_path: Path, name: str) -> None:
    """It is the only backend, and results say so; answers are those of torch."""
    folder = tiny.bert(tmp_path / "model", num_labels=4)
    [device] = devices.select("auto", (name,))
    wanted, served = served_models.serve(_settings(folder), "own", device)
    assert wanted.backend == device.pinned
    assert served.revision.endswith(f"+{device.pinned}")
    assert str(device.pinned).endswith(f"@{name.partition(':')[2]}")
    tasks = {"mood": "text-classification"}
    expected = Served(folder, tasks).load().ask("mood", TEXTS, top_k=None)
    assert_alike(Served(folder, tasks, wanted.backend).load().ask("mood", TEXTS, top_k=None), expected, 2e-4)


def test_the_precision_reaches_the_devices_of_a_spread(tmp_path: Path) -> None:
    """HETERO takes it from the core: bf16 keeps 8 bits of a number."""
    source = Source(lambda: _Product().eval(), {"values": torch.ones(2, 64)}, tmp_path / "own")
    values = torch.rand(4, 64, generator=torch.Generator().manual_seed(0))
    found = {
        (device, precision): build(Backend("openvino", precision, device=device), source, "cpu")({"values": values})["sums"]
        for device in ("CPU", "HETERO:CPU", "AUTO:CPU")
        for precision in ("fp32", "bf16")
    }  # fmt: skip
    for device in ("HETERO:CPU", "AUTO:CPU"):
        torch.testing.assert_close(found[device, "fp32"], found["CPU", "fp32"])
        torch.testing.assert_close(found[device, "bf16"], found["CPU", "bf16"])


class _Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.rand(64, 64, generator=torch.Generator().manual_seed(1)))

    def forward(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"sums": values @ self.weights}


def test_a_model_without_the_runtime_is_refused_at_a_pinned_node(tmp_path: Path) -> None:
    """By the worker, before anything is loaded."""
    folder = tiny.t5(tmp_path / "model")
    [device] = devices.select("auto", ("openvino:CPU",))
    chosen = _settings(folder, "summarization")
    with pytest.raises(
        ConfigurationError, match=r"^models\.own: Seq2SeqModel runs on torch, not on openvino:CPU; serve"
    ):
        served_models.serve(chosen, "own", device)
    other = _settings(tiny.bert(tmp_path / "bert", num_labels=4), backend="onnxruntime")
    with pytest.raises(ConfigurationError, match=r"^models\.own\.backend: is 'onnxruntime', and the node's device"):
        served_models.serve(other, "own", device)


@pytest.mark.long
def test_what_a_pinned_node_measures_is_its_device(tmp_path: Path) -> None:
    """torch judges, and is not chosen."""
    folder = tiny.bert(tmp_path / "model", num_labels=4)
    [device] = devices.select("auto", ("openvino:HETERO:CPU",))
    decision = tuned(folder, device)
    assert decision.backend.device == "HETERO:CPU"
    assert decision.candidates[0].refused == "it only judges here: the node runs on openvino:HETERO:CPU"
    assert {str(one.backend) for one in decision.candidates[1:]} == {
        "openvino-fp32@HETERO:CPU",
        "openvino-fp16@HETERO:CPU",
        "openvino-bf16@HETERO:CPU",
    }


def tuned(folder: Path, device: devices.Device):
    from workers.training import tuning

    return tuning.tune(served_models.model_to_load(_settings(folder), "own"), device.name, labelled=False)


def _settings(folder: Path, kind: str = "text-classification", **more: str) -> Settings:
    own = ModelSettings(source={"path": str(folder)}, tasks={"mood": kind}, batch_cost=512, **more)  # type: ignore[arg-type]
    return Settings(models={"own": own}, worker=WorkerSettings(models=("own",), tune_at_start=False))
