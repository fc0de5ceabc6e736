"""Replayed passes answer like passes, whatever came before; what cannot be captured runs as it is."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from producers.wire.catalogue import KINDS, Task
from tests import tiny_checkpoints
from tests.serving import DEVICE
from workers.models.backends import cuda_graphs
from workers.models.backends.choice import REFERENCE, Backend
from workers.models.backends.compiled_network import Tensors
from workers.models.backends.cuda_graphs import CapturedPasses
from workers.models.backends.torch_network import TorchNetwork
from workers.models.built_in.text.text_model import TextModel
from workers.models.interface import sample_inputs
from workers.models.interface.model import Array, ModelSpec

TASKS = {"embedding": Task("embedding", KINDS["feature-extraction"], "text", "a vector")}


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes are captured when they come the third time."""
    monkeypatch.setattr(cuda_graphs, "_PASSES_BEFORE_CAPTURE", 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoints.bert(tmp_path_factory.mktemp("bert"), "BertModel")


@pytest.fixture(scope="module")
def model_on(folder: Path) -> Callable[[str, Backend], TextModel]:
    def load(device: str, backend: Backend = REFERENCE) -> TextModel:
        model = TextModel(ModelSpec("text", folder, "1", TASKS, {}, backend))
        model.load(device)
        return model

    return load


def vectors(model: TextModel, texts: Sequence[str]) -> Array:
    rows = [model.prepare(text, {"embedding": KINDS["feature-extraction"].params(truncation=True)}) for text in texts]
    return model.forward(model.collate(rows), {"embedding": np.arange(len(rows))})["embedding"].copy()


def captured(model: TextModel) -> int:
    network = model._backbone
    assert isinstance(network, TorchNetwork)
    return network.captured


#: The backend, and how far a number of its vectors may be from the CPU's in fp32. These vectors' numbers are about 1.
BACKENDS = [
    (Backend("torch", "fp32"), 1e-4),
    (Backend("torch", "bf16"), 0.1),
    (Backend("torch", "fp16"), 0.02),
    (Backend("torch", "fp32", compiled=True), 1e-4),
    (Backend("torch", "bf16", compiled=True), 0.1),
]


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::UserWarning:torch")
@pytest.mark.parametrize(("backend", "tolerance"), BACKENDS, ids=[str(backend) for backend, _ in BACKENDS])
def test_batches_of_all_shapes_are_answered_as_on_a_cpu(
    model_on: Callable[[str, Backend], TextModel], backend: Backend, tolerance: float
) -> None:
    """In random order, most of them several times: as they are, captured, and replayed between others."""
    reference, model = model_on("cpu", REFERENCE), model_on(DEVICE, backend)
    texts = sample_inputs.texts(40)
    batches = [texts[:1], texts[1:2], texts[:7], texts[3:12], texts, texts[5:9], texts[10:27]] * 5
    random.Random(1).shuffle(batches)
    for batch in batches:
        np.testing.assert_allclose(vectors(model, batch), vectors(reference, batch), atol=tolerance)
    assert captured(model) >= 3


def test_only_so_many_shapes_are_remembered(
    model_on: Callable[[str, Backend], TextModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that were not used for longest are captured anew if they come again."""
    monkeypatch.setattr(cuda_graphs, "_MOST_SHAPES", 3)
    monkeypatch.setattr(cuda_graphs, "_LAUNCH_SHARE", 0.0)
    reference, model = model_on("cpu", REFERENCE), model_on(DEVICE, REFERENCE)
    texts = sample_inputs.texts(12)
    for rows in (1, 3, 4, 5, 6, 7, 8) * 4:
        np.testing.assert_allclose(vectors(model, texts[:rows]), vectors(reference, texts[:rows]), atol=1e-4)
        assert captured(model) <= 3
    for _ in range(4):
        vectors(model, texts[:5])
    assert captured(model) >= 1


def test_a_network_that_asks_for_a_number_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be asked of a device while a pass is captured."""
    monkeypatch.setattr(cuda_graphs, "_LAUNCH_SHARE", 0.0)

    def branching(inputs: Tensors) -> dict[str, torch.Tensor]:
        found = inputs["x"] * 2
        return {"y": found + 1 if float(found.sum()) > 0 else found - 1}

    passes = CapturedPasses(branching)
    with torch.inference_mode():
        for sign in (1, -1) * 4:
            found = passes({"x": torch.full((4, 3), float(sign), device=DEVICE)})["y"]
            assert found[:4, :3].tolist() == [[3.0 * sign] * 3] * 4
    assert passes.captured == 0
    # what the attempt had begun is over: random numbers are drawn, memory is given back
    torch.rand(3, device=DEVICE)
    torch.cuda.empty_cache()


def test_gradients_are_had_of_passes_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a replayed one there would be none; explanations need them."""
    monkeypatch.setattr(cuda_graphs, "_LAUNCH_SHARE", 0.0)
    passes = CapturedPasses(lambda inputs: {"y": inputs["x"] ** 2})
    with torch.inference_mode():
        for _ in range(4):
            passes({"x": torch.ones(4, 1, 3, device=DEVICE)})
    assert passes.captured == 1
    given = torch.full((4, 1, 3), 5.0, device=DEVICE, requires_grad=True)
    passes({"x": given})["y"].sum().backward()
    assert given.grad is not None
    assert given.grad.unique().tolist() == [10.0]


def test_a_model_is_loaded_while_passes_are_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread may allocate, copy and compute meanwhile: `argosy models reload` does."""
    monkeypatch.setattr(cuda_graphs, "_LAUNCH_SHARE", 0.0)
    network = nn.Sequential(*(nn.Linear(64, 64) for _ in range(20))).to(DEVICE).eval()
    passes = CapturedPasses(lambda inputs: {"y": network(inputs["x"])})
    stop, errors, loads = threading.Event(), [], []

    def load() -> None:
        while not stop.is_set():
            try:
                other = nn.Linear(512, 512).to(DEVICE)
                loads.append(other(torch.ones(1, 512, device=DEVICE)).sum().item())
            except RuntimeError as error:
                errors.append(error)

    thread = threading.Thread(target=load)
    thread.start()
    try:
        with torch.inference_mode():
            for rows in [*range(2, 18)] * 4:
                given = torch.rand(rows, 64, 1, device=DEVICE)[:, :, 0].unsqueeze(1)  # rows, one thing, 64 numbers
                torch.testing.assert_close(passes({"x": given})["y"][:rows], network(given), atol=1e-4, rtol=0)
    finally:
        stop.set()
        thread.join()
    assert not errors
    assert loads
    assert passes.captured >= 10
