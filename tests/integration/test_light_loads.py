"""A backbone on another runtime is compared with its weights once; later loads take its file alone."""

from __future__ import annotations

import os
import queue
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests import tiny_checkpoints as tiny
from tests.serving import Served, assert_alike
from workers.device import fork_client
from workers.device.device_client import DeviceEvent, ProcessDevice
from workers.device.device_process import ModelToLoad
from workers.device.devices import cpu
from workers.models.backends.choice import Backend
from workers.models.huggingface import checkpoint_networks
from workers.models.huggingface.text import compared_network

TEXTS = ["a good film", "he said it was fine", "the team was bad and dull and she said it was good " * 3]
ONNX = Backend("onnxruntime")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARGOSY_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.bert(tmp_path / "model", "BertModel")


def served(folder: Path) -> Served:
    return Served(folder, {"vector": "feature-extraction"}, ONNX)


def vectors(model: Served) -> list[list[float]]:
    return [one.tolist() for one in model.ask("vector", TEXTS)]


def test_the_second_load_reads_no_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answers are those of the first one. Where the network's file changed or is gone, the weights are read again."""
    first = served(folder).load()
    assert first.model.loads_lighter

    with monkeypatch.context() as without:
        without.delattr(checkpoint_networks.CheckpointNetworks, "_load")
        second = served(folder).load()
    assert not second.model.loads_lighter
    assert vectors(second) == vectors(first)

    changes: tuple[Callable[[Path], object], ...] = (os.utime, Path.unlink)
    for change in changes:
        for file in Path(folder.parent / "cache" / "networks").iterdir():
            change(file)
        third = served(folder).load()
        assert third.model.loads_lighter
        assert vectors(third) == vectors(first)


@pytest.mark.parametrize("head", ["BertForTokenClassification", "BertForSequenceClassification"])
def test_a_head_that_is_a_matrix_needs_no_weights_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: str
) -> None:
    """BERT's heads for tokens and for texts read other outputs of the backbone."""
    folder = tiny.bert(tmp_path / "model", head, num_labels=3)
    kind = "token-classification" if "Token" in head else "text-classification"
    asked = {"aggregation_strategy": "none", "ignore_labels": []} if "Token" in head else {"top_k": None}
    first = Served(folder, {"label": kind}, ONNX).load()
    assert first.model.loads_lighter
    monkeypatch.delattr(checkpoint_networks.CheckpointNetworks, "_load")
    second = Served(folder, {"label": kind}, ONNX).load()
    assert_alike(second.ask("label", TEXTS, **asked), first.ask("label", TEXTS, **asked), 1e-5)


def test_a_kept_head_is_its_tasks_own(tmp_path: Path) -> None:
    """Folders that are given to other tasks, or to tasks of other names, are compared anew."""
    folders = [tiny.bert(tmp_path / "model", num_labels=3), tmp_path / "one", tmp_path / "two"]
    weights = load_file(folders[0] / "model.safetensors")
    for factor, folder in zip((-1, 0.5), folders[1:], strict=True):
        shutil.copytree(folders[0], folder)
        changed = {name: tensor * (factor if "classifier" in name else 1) for name, tensor in weights.items()}
        save_file(changed, folder / "model.safetensors", {"format": "pt"})
    one, two = map(str, folders[1:])

    def scores(first: str, second: str, *tasks: str) -> list[list[Any]]:
        heads = dict(zip(tasks, (first, second), strict=True))
        kinds = dict.fromkeys(tasks, "text-classification")
        model = Served(folders[0], kinds, ONNX, heads=heads).load()
        return [model.ask(task, TEXTS, top_k=None) for task in tasks]

    expected = scores(one, two, "a", "b")
    assert_alike(scores(two, one, "b", "a"), expected[::-1], 1e-5)
    assert_alike(scores(one, two, "b", "a"), expected, 1e-5)
    assert_alike(scores(one, two, "a", "c"), expected, 1e-5)


def test_a_head_of_another_kind_is_loaded_with_its_weights(tmp_path: Path) -> None:
    folder = tiny.distilbert(tmp_path / "model", "DistilBertForSequenceClassification")
    assert not Served(folder, {"label": "text-classification"}, ONNX).load().model.loads_lighter


def test_other_weights_are_compared_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And so are those whose tokenizer is another file, since transformers told which tokens have types."""
    model = served(folder).load().model
    tokenizer = folder / "tokenizer.json"
    assert compared_network.read(model._outcome, tokenizer)
    assert compared_network.read(model._outcome, tokenizer.with_name("another.json")) is None
    model.spec = replace(model.spec, revision="2")
    assert compared_network.read(model._outcome, tokenizer) is None


@pytest.mark.edge
@pytest.mark.timeout(180)
def test_a_process_of_its_own_keeps_no_library_of_the_first_load(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a site no server shares them: the device process begins again once its networks are compared."""
    monkeypatch.setenv(fork_client.VARIABLE, fork_client.NONE)
    events: queue.SimpleQueue[DeviceEvent] = queue.SimpleQueue()
    tasks = {"vector": ("feature-extraction", "")}
    wanted = ModelToLoad("workers.models.huggingface:model_for", "own", str(folder), "1", tasks, {}, ONNX)
    device = ProcessDevice(cpu(), [wanted], events.put, threads=1)
    try:
        for _ in range(2):  # the second life has nothing to compare
            device.start()
            while (event := events.get(timeout=120)).life < device.life:
                pass  # the end of the life before
            assert event.header["event"] == "ready"
            imported = {name.partition(".")[0] for name in device._libraries}
            assert imported == {"torch"}
    finally:
        device.close()
