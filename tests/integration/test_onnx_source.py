"""ONNX files as a source of models: answers are those of the torch weights, and anything left open is refused by name."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from producers.wire.errors import ConfigurationError
from tests import tiny_checkpoints as tiny
from tests.serving import Served, assert_alike
from workers.batching.serving import served_explainers, served_models
from workers.device import devices
from workers.models.backends.choice import Backend
from workers.models.interface import sample_inputs
from workers.models.sources import model_source
from workers.settings import ModelSettings, Settings, WorkerSettings

TEXTS = ["a good film", "film", "the team was bad and dull and she said it was good"]
ASKED = [{"question": "who said it", "context": text} for text in TEXTS]
TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
TOLERANCE = 2e-4


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARGOSY_CACHE", str(tmp_path / "cache"))


def exported(
    folder: Path,
    auto: str,
    outputs: Sequence[str],
    *,
    file: str = "onnx/model.onnx",
    inputs: Sequence[str] = TEXT_INPUTS,
    named: Mapping[str, str] | None = None,
    fixed: bool = False,
) -> Path:
    """Export a folder's network as optimum does; `named` gives outputs other names, `fixed` leaves no axis free."""

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = getattr(transformers, auto).from_pretrained(folder).eval()

        def forward(self, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
            found = self.network(**dict(zip(inputs, given, strict=True)))
            return tuple(found[name] for name in outputs)

    is_text = inputs[0] == "input_ids"
    example = torch.ones(2, 7, dtype=torch.long) if is_text else torch.rand(2, 3, 32, 32)
    axes = {0: "batch_size", 1: "sequence_length"} if is_text else {0: "batch_size"}
    results = [(named or {}).get(name, name) for name in outputs]
    by_token = [name for name, own in zip(results, outputs, strict=True) if is_text and own != "logits"]
    free = dict.fromkeys((*inputs, *by_token), axes) | {
        name: {0: "batch_size"} for name in results if name not in by_token
    }
    if auto == "AutoModelForTokenClassification":
        free["logits"] = axes
    (folder / file).parent.mkdir(exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Flat(), (example,) * len(inputs), str(folder / file), input_names=list(inputs), output_names=results,
            dynamic_axes={} if fixed else free, opset_version=17, dynamo=False,
        )  # fmt: skip
    return folder


KINDS: list[tuple[str, str, str, tuple[str, ...], list[Any], dict[str, Any]]] = [
    ("text-classification", "BertForSequenceClassification", "AutoModelForSequenceClassification", ("logits",), TEXTS, {"top_k": None}),
    ("token-classification", "BertForTokenClassification", "AutoModelForTokenClassification", ("logits",), TEXTS, {"aggregation_strategy": "none", "ignore_labels": []}),
    ("question-answering", "BertForQuestionAnswering", "AutoModelForQuestionAnswering", ("start_logits", "end_logits"), ASKED, {}),
    ("feature-extraction", "BertModel", "AutoModel", ("last_hidden_state",), TEXTS, {}),
]  # fmt: skip


@pytest.mark.parametrize("case", KINDS, ids=[case[0] for case in KINDS])
def test_kinds_of_text_answer_as_the_torch_weights(tmp_path: Path, case: tuple[Any, ...]) -> None:
    """On both runtimes, without the torch weights, alone and with neighbours."""
    kind, class_, auto, outputs, inputs, params = case
    folder = tiny.bert(tmp_path / "model", class_)
    reference = Served(folder, {"own": kind}).load()
    exported(folder, auto, outputs)
    (folder / "model.safetensors").unlink()
    given, other = (Served(folder, {"own": kind}, own).load() for own in (Backend(), Backend("openvino")))
    for some in (inputs, inputs[:1]):
        expected = [_plain(one) for one in reference.ask("own", some, **params)]
        for served in (given, other):
            assert_alike([_plain(one) for one in served.ask("own", some, **params)], expected, TOLERANCE)
    assert given.model.revision == "1/onnx/model.onnx"
    assert other.model.revision == "1/onnx/model.onnx+openvino-fp32"


def _plain(answer: Any) -> Any:
    return answer.tolist() if hasattr(answer, "tolist") else answer


def test_images_answer_as_the_torch_weights(tmp_path: Path) -> None:
    """A vector needs to be told how it is made, since transformers' networks pool inside."""
    folder = tiny.vit(tmp_path / "model", num_labels=5)
    exported(folder, "AutoModelForImageClassification", ("logits",), file="model.onnx", inputs=("pixel_values",))
    shown = {"shows": "image-classification"}
    pictures = sample_inputs.images(3)
    expected = Served(folder, shown).load().ask("shows", pictures)
    assert_alike(Served(folder, shown, onnx="model.onnx").load().ask("shows", pictures), expected, TOLERANCE)
    exported(folder, "AutoModel", ("last_hidden_state",), file="features.onnx", inputs=("pixel_values",))
    vector = {"vector": "image-feature-extraction"}
    with pytest.raises(ConfigurationError, match=r"has no pooler_output, .* set options\.pooling"):
        Served(folder, vector, onnx="features.onnx").load()
    served, expected = (
        Served(folder, vector, pooling="mean", **own).load().ask("vector", pictures)
        for own in ({"onnx": "features.onnx"}, {})
    )
    assert_alike([one.tolist() for one in served], [one.tolist() for one in expected], TOLERANCE)


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    """A BERT with weights, and with its network as an ONNX file."""
    return exported(tiny.bert(tmp_path / "model", num_labels=4), "AutoModelForSequenceClassification", ("logits",))


def load(folder: Path, kind: str = "text-classification", backend: Backend = Backend(), **options: Any) -> Served:  # noqa: B008
    return Served(folder, {"own": kind}, backend, **({"onnx": "onnx/model.onnx"} | options)).load()


def test_a_file_is_compared_with_the_torch_weights_beside_it(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older export answers otherwise, without a word. It is refused with the difference."""
    load(classifier)
    other = tiny.bert(tmp_path / "other", num_labels=4, seed=1)
    shutil.copy(other / "model.safetensors", classifier / "model.safetensors")
    monkeypatch.setenv("ARGOSY_CACHE", str(tmp_path / "new"))  # a source's revision would be another one, too
    with pytest.raises(ConfigurationError, match=r"/onnx/model\.onnx: its outputs for 'own' differ .* by [\d.]+ of"):
        Served(classifier, {"own": "text-classification"}, onnx="onnx/model.onnx").load()


def test_a_quantised_file_says_so(classifier: Path) -> None:
    """Its precision is that of the results, and no other can be asked for."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    made = classifier / "onnx" / "model_quantized.onnx"
    quantize_dynamic(classifier / "onnx" / "model.onnx", made, weight_type=QuantType.QInt8)
    served = load(classifier, onnx="onnx/model_quantized.onnx")
    assert str(served.model.reference) == "onnxruntime-int8"
    expected = load(classifier).ask("own", TEXTS, top_k=None)
    assert_alike(
        [{one["label"]: one["score"] for one in own} for own in served.ask("own", TEXTS, top_k=None)],
        [{one["label"]: one["score"] for one in own} for own in expected],
        0.05,
    )
    with pytest.raises(ConfigurationError, match=r"precision: .*model_quantized\.onnx is in int8, not fp32; set it to"):
        load(classifier, backend=Backend("onnxruntime"), onnx="onnx/model_quantized.onnx")
    with pytest.raises(
        ConfigurationError, match="finds the ranges of activations at run time, which OpenVINO does not"
    ):
        load(classifier, backend=Backend("openvino", "int8"), onnx="onnx/model_quantized.onnx")


def _without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _with_labels(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    names = {str(number): f"L{number}" for number in range(6)}
    config |= {"id2label": names, "label2id": {name: number for number, name in names.items()}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").unlink()


def _damaged(folder: Path) -> None:
    (folder / "onnx" / "model.onnx").write_bytes(b"\x08\x07network")


def _pointer(folder: Path) -> None:
    (folder / "onnx" / "model.onnx").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")


def _nothing(folder: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("change", "kind", "options", "reason"),
    [
        (_without_config, "text-classification", {}, r"config\.json"),
        (_with_labels, "text-classification", {}, r"has scores of 4 labels for 'own', and config\.json names 6"),
        (_damaged, "text-classification", {}, r"model\.onnx cannot be read: .*; export or pull it again"),
        (_pointer, "text-classification", {}, "is a Git LFS pointer"),
        (
            _nothing,
            "token-classification",
            {},
            r"has 2 axes in logits, and token-classification \(the task 'own'\) needs 3",
        ),
        (_nothing, "question-answering", {}, "has the outputs logits, and question-answering .* needs start_logits"),
        (
            _nothing,
            "feature-extraction",
            {},
            "has the outputs logits, and feature-extraction .* needs last_hidden_state",
        ),
        (_nothing, "fill-mask", {}, "is not served for fill-mask .*, which needs more than a network's outputs"),
        (_nothing, "image-classification", {}, "has the inputs .*, and image-classification .* needs pixel_values"),
        (_nothing, "summarization", {}, r"source\.onnx: summarization is not served from an ONNX file"),
        (_nothing, "text-classification", {"onnx": "model_q4.onnx"}, r"is not there; the folder has onnx/model\.onnx"),
        (_nothing, "text-classification", {"heads": {"own": "heads"}}, r"options\.heads: .* has a single network"),
    ],
)
def test_what_cannot_be_told_is_refused_by_name(
    classifier: Path, change: Callable[[Path], None], kind: str, options: dict[str, Any], reason: str
) -> None:
    """When the worker starts."""
    change(classifier)
    if kind == "image-classification":
        tiny.vit(classifier.parent / "eyes")
        shutil.copy(classifier.parent / "eyes" / "preprocessor_config.json", classifier)
    with pytest.raises(ConfigurationError, match=reason):
        load(classifier, kind, **options)


def test_names_and_axes_of_other_exporters_are_refused(classifier: Path) -> None:
    """A guess would be right as a rule, and wrong without a word."""
    auto = "AutoModelForSequenceClassification"
    exported(classifier, auto, ("logits",), file="a.onnx", named={"logits": "output_0"})
    with pytest.raises(ConfigurationError, match=r"has the outputs output_0, and text-classification .* needs logits"):
        load(classifier, onnx="a.onnx")
    exported(classifier, auto, ("logits",), file="b.onnx", fixed=True)
    with pytest.raises(ConfigurationError, match=r"has the fixed shape \(2, 7\) of input_ids: rows must be free"):
        load(classifier, onnx="b.onnx")
    exported(classifier, auto, ("logits",), file="c.onnx", inputs=("input_ids", "attention_mask", "position_ids"))
    with pytest.raises(ConfigurationError, match="wants the input 'position_ids', which no served kind has"):
        load(classifier, onnx="c.onnx")


def test_a_worker_serves_a_file_by_its_path(classifier: Path) -> None:
    """The folder is the one above `onnx/`. Explanations need gradients, so there are none."""
    path = classifier / "onnx" / "model.onnx"
    settings = Settings(
        models={"own": ModelSettings(source={"path": str(path)}, tasks={"own": "text-classification"})},
        worker=WorkerSettings(tune_at_start=False),
    )
    wanted, served = served_models.serve(settings, "own", devices.cpu())
    assert wanted.options == {"onnx": "onnx/model.onnx"}
    assert (wanted.folder, str(wanted.backend), served.precision) == (str(classifier), "onnxruntime-fp32", "fp32")
    assert served_explainers.side(settings, wanted, served) is None
    torch_settings = Settings(models={"own": ModelSettings(**{**_fields(settings), "backend": "torch"})})
    with pytest.raises(ConfigurationError, match=r"^models\.own\.backend: .* has onnxruntime, openvino"):
        served_models.serve(torch_settings, "own", devices.cpu())


def _fields(settings: Settings) -> dict[str, Any]:
    own = settings.models["own"]
    return {"source": own.source, "tasks": own.tasks}


def test_its_backends_are_measured(classifier: Path) -> None:
    """The file itself is the reference."""
    from workers.training import tuning

    settings = Settings(
        models={"own": ModelSettings(source={"path": str(classifier), "onnx": "onnx/model.onnx"}, tasks={"own": "text-classification"})}
    )  # fmt: skip
    decision = tuning.tune(served_models.model_to_load(settings, "own"), "cpu", labelled=False)
    assert [str(one.backend) for one in decision.candidates][:2] == ["onnxruntime-fp32", "openvino-fp32"]
    assert decision.candidates[1].same == 1
    assert decision.backend.name != "torch"


@pytest.mark.parametrize("name", ["../model.onnx", "/srv/model.onnx", "model.bin"])
def test_a_file_outside_of_the_folder_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^x\.onnx: must be a file within the folder"):
        model_source.parse({"path": "models/x", "onnx": name}, where="x")
    with pytest.raises(ConfigurationError, match="the path is an ONNX file already"):
        model_source.parse({"path": "models/x.onnx", "onnx": "model.onnx"}, where="x")
