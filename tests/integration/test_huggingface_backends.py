"""Checkpoints on other backends than torch: the same answers, or a refusal by name; and what is chosen is measured."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from producers.wire.errors import ConfigurationError
from tests import tiny_checkpoints as tiny
from tests.serving import Served, assert_alike
from workers.batching.serving.tuned_backend import best_of
from workers.device.device_process import ModelToLoad
from workers.models.backends.choice import Backend
from workers.models.huggingface.exported import Exported
from workers.models.interface import sample_inputs
from workers.models.interface.model import ModelSpec
from workers.training import agreement, tuning

TEXTS = ["a good film", "he said it was fine", "film", "the team was bad and dull and she said it was good " * 3]
OPENVINO, ONNX = Backend("openvino"), Backend("onnxruntime")

#: Another backend sums in another order.
TOLERANCE = 2e-4

LABELS = {0: "contradiction", 1: "neutral", 2: "entailment"}
HEADS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "label": ("text-classification", "BertForSequenceClassification", {"num_labels": 4}),
    "about": ("zero-shot-classification", "BertForSequenceClassification", {"id2label": LABELS}),
    "names": ("token-classification", "BertForTokenClassification", {"num_labels": 3}),
    "answer": ("question-answering", "BertForQuestionAnswering", {}),
    "fill": ("fill-mask", "BertForMaskedLM", {}),
}
ASKED: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "label": (TEXTS, {"top_k": None}),
    "about": (TEXTS[:2], {"candidate_labels": ["film", "team"]}),
    "names": (TEXTS, {"aggregation_strategy": "none", "ignore_labels": []}),
    "answer": ([{"question": "who said it", "context": text} for text in TEXTS], {}),
    "fill": (["a [MASK] film", "he [MASK] it was [MASK]"], {}),
    "vector": (TEXTS, {}),
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What backends make of a network stays out of the user's cache."""
    monkeypatch.setenv("ARGOSY_CACHE", str(tmp_path_factory.getbasetemp() / "networks"))


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT, and under `heads` one of it for each kind that reads texts."""
    import torch
    import transformers

    folder = tiny.bert(tmp_path_factory.mktemp("reader"), "BertModel")
    for name, (_, class_, config) in HEADS.items():
        torch.manual_seed(3)
        head = getattr(transformers, class_).from_pretrained(folder, **config)
        head.save_pretrained(folder / "heads" / name)
    return folder


def served(folder: Path, backend: Backend) -> Served:
    tasks = {name: kind for name, (kind, _, _) in HEADS.items()} | {"vector": "feature-extraction"}
    return Served(folder, tasks, backend, heads={name: str(folder / "heads" / name) for name in HEADS}).load()


@pytest.mark.parametrize("backend", [OPENVINO, ONNX], ids=str)
def test_kinds_of_text_answer_as_on_torch(reader: Path, backend: Backend) -> None:
    """All heads on one traced backbone, texts of other lengths and numbers than it was traced with."""
    reference, other = served(reader, Backend()), served(reader, backend)
    for task, (inputs, params) in ASKED.items():
        for some in (inputs, inputs[:1]):
            found, expected = other.ask(task, some, **params), reference.ask(task, some, **params)
            if task == "vector":
                found, expected = [one.tolist() for one in found], [one.tolist() for one in expected]
            assert_alike(found, expected, TOLERANCE)
    assert other.model.revision == f"{reference.model.revision}+{backend}"


def test_a_lone_head_that_looks_where_the_masks_are_is_served_too(reader: Path) -> None:
    """Its backbone is traced without it: what depends on the values cannot be."""
    folder = reader / "heads" / "fill"
    for file in reader.glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    inputs, params = ASKED["fill"]
    reference, other = (Served(folder, {"fill": "fill-mask"}, backend).load() for backend in (Backend(), OPENVINO))
    assert_alike(other.ask("fill", inputs, **params), reference.ask("fill", inputs, **params), TOLERANCE)


def test_images_of_one_size_answer_as_on_torch(tmp_path: Path) -> None:
    """Alone and several together."""
    folder = tiny.vit(tmp_path, num_labels=5)
    tasks = {"shows": "image-classification", "vector": "image-feature-extraction"}
    reference, other = (Served(folder, tasks, backend).load() for backend in (Backend(), OPENVINO))
    pictures = sample_inputs.images(3)
    for some in (pictures, pictures[:1]):
        assert_alike(other.ask("shows", some), reference.ask("shows", some), TOLERANCE)
        for one, expected in zip(other.ask("vector", some), reference.ask("vector", some), strict=True):
            np.testing.assert_allclose(one, expected, atol=TOLERANCE)


def test_images_of_many_shapes_stay_on_torch(tmp_path: Path) -> None:
    """A trace holds for one shape; the reason is said, and shown by `argosy tune`."""
    folder = tiny.yolos(tmp_path, num_labels=3)
    with pytest.raises(ConfigurationError, match=r"models\.own\.backend: images are scaled to different shapes"):
        Served(folder, {"things": "object-detection"}, OPENVINO).load()


def test_a_trace_that_does_not_hold_is_found_out(tmp_path: Path) -> None:
    """A branch that was taken for the traced shape would be taken for all others, without a word."""
    import torch
    from torch import nn

    class Fickle(nn.Module):
        def forward(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
            values = input_ids.float() * torch.arange(1, 3).sum()
            return {"values": values if input_ids.shape[0] == 2 else -values}

    few, many = ({"input_ids": torch.ones(rows, 4, dtype=torch.long)} for rows in (2, 3))
    with pytest.raises(ConfigurationError, match=r"gives other outputs for this network: values differs"):
        Exported(Fickle().eval(), OPENVINO, few, many, tmp_path / "fickle", "models.own")


@pytest.mark.long
def test_the_fastest_that_agrees_is_chosen(tmp_path: Path) -> None:
    """Without labelled data it is the answers to samples that must be the same; what does not run says why."""
    for folder, tasks, runs in (
        (tiny.yolos(tmp_path / "eyes", num_labels=3), {"things": "object-detection"}, False),
        (tiny.bert(tmp_path / "reader", num_labels=4), {"label": "text-classification"}, True),
    ):
        own = Served(folder, tasks)
        spec = ModelSpec("own", folder, "1", own.catalogue.tasks)
        wanted = ModelToLoad.from_spec("workers.models.huggingface:model_for", spec)
        decision = tuning.tune(wanted, "cpu", labelled=False)
        by_name = {str(one.backend): one for one in decision.candidates}
        assert decision.backend == best_of(decision.candidates).backend
        assert decision.guard == "agreement"
        if runs:
            assert by_name["openvino-fp32"].same == 1
            assert by_name["openvino-fp32"].agreement > 0.9999
        else:
            assert "different shapes" in by_name["openvino-fp32"].refused
            assert by_name["openvino-fp32"].items_per_s == 0


def test_answers_are_compared_as_their_kind_has_it() -> None:
    """A label more or less, a span that is shorter, a mask that is off by a pixel."""
    labels = [{"label": "a", "score": 0.6}, {"label": "b", "score": 0.4}]
    turned = [{"label": "b", "score": 0.55}, {"label": "a", "score": 0.45}]
    assert agreement.compare("text-classification", turned, labels) == (0.0, pytest.approx(0.15))
    entity = {"entity_group": "A", "start": 0, "end": 4, "score": 0.9}
    assert agreement.compare("token-classification", [entity | {"end": 3}], [entity]) == (0.75, 0.0)
    assert agreement.compare("token-classification", [], []) == (1.0, 0.0)
    answer = {"start": 3, "end": 7, "score": 0.5}
    assert agreement.compare("question-answering", [answer | {"end": 8}], [answer]) == (0.0, 0.0)
    mask = {"label": "sky", "score": None, "mask": {"size": (2, 2), "counts": [1, 3]}}
    other = mask | {"mask": {"size": (2, 2), "counts": [2, 2]}}
    assert agreement.compare("image-segmentation", [other], [mask]) == (0.75, 0.0)
    box = {"label": "cat", "score": 0.5, "box": {"xmin": 0, "ymin": 0, "xmax": 9, "ymax": 9}}
    assert agreement.compare("object-detection", [box | {"label": "dog"}], [box]) == (0.0, 0.0)
    assert agreement.compare("object-detection", [], [box]) == (0.0, 0.0)


def test_a_picture_is_a_file(tmp_path: Path) -> None:
    """What image models are measured on are files, as users send them."""
    from PIL import Image

    folder = tiny.vit(tmp_path, num_labels=5)
    model = Served(folder, {"shows": "image-classification"}).model
    for content, params in model.samples(4):
        assert Image.open(io.BytesIO(content)).format == "PNG"
        assert set(params) == {"shows"}
    assert model.budgets[0] == 1  # 32 x 32 pixels are one square
