"""Every backend answers like torch, whatever the batch's shape; and what is chosen for a machine is measured once."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from producers.wire.catalogue import KINDS, Task
from producers.wire.errors import ConfigurationError
from tests import tiny_checkpoints
from tests.serving import DEVICE
from workers import settings
from workers.batching.planning.policy import Budget
from workers.batching.roster import ServedModel
from workers.batching.serving import served_models, tuned_backend
from workers.batching.serving.processor_load import ProcessorTimes, others_share
from workers.device import devices
from workers.device.device_process import ModelToLoad
from workers.models.backends import kept
from workers.models.backends.build import build
from workers.models.backends.choice import REFERENCE, Backend
from workers.models.backends.compiled_network import Source
from workers.models.backends.cuda_graphs import bucket
from workers.models.built_in.tables.tabular import TabularModel
from workers.models.built_in.text.text_model import TextModel
from workers.models.interface import sample_inputs
from workers.models.interface.model import Array, ModelSpec
from workers.training import tuning
from workers.training.agreement import Answered, agreement

TASKS = {"embedding": Task("embedding", KINDS["feature-extraction"], "text", "a vector")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoints.bert(tmp_path_factory.mktemp("bert"), "BertModel")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What backends make of a network stays out of the user's cache."""
    monkeypatch.setenv("ARGOSY_CACHE", str(cache))


def text_model(folder: Path, backend: Backend = REFERENCE) -> TextModel:
    model = TextModel(ModelSpec("text", folder, "1", TASKS, {}, backend))
    model.load(DEVICE)
    return model


def vectors(model: TextModel, texts: list[str]) -> Array:
    rows = [model.prepare(text, {"embedding": KINDS["feature-extraction"].params(truncation=True)}) for text in texts]
    return model.forward(model.collate(rows), {"embedding": np.arange(len(rows))})["embedding"]


def alike(found: Array, expected: Array) -> float:
    cosines = (found * expected).sum(-1) / (np.linalg.norm(found, axis=-1) * np.linalg.norm(expected, axis=-1))
    return float(cosines.min())


#: The backend, and how alike its vectors must be to torch's in fp32 (cosine). bf16 keeps 8 bits of a number, int8
#: fewer.
BACKENDS = [
    (Backend("torch", "bf16"), 0.999),
    (Backend("openvino", "fp32"), 0.999999),
    (Backend("openvino", "bf16"), 0.999),
    (Backend("onnxruntime", "fp32"), 0.999999),
    (Backend("onnxruntime", "int8"), 0.99),
]


@pytest.mark.parametrize(("backend", "least"), BACKENDS, ids=[str(backend) for backend, _ in BACKENDS])
def test_a_backend_answers_like_torch_whatever_the_shape(folder: Path, backend: Backend, least: float) -> None:
    """It was traced with one shape: others, among them a single row and a full length, must not be cut or mixed up."""
    reference, model = text_model(folder), text_model(folder, backend)
    texts = sample_inputs.texts(12)
    for batch in (texts[:1], texts[1:2], texts[:7], texts, texts[5:9]):
        assert alike(vectors(model, batch), vectors(reference, batch)) >= least
    # the second load finds what the first one kept, and answers the same
    np.testing.assert_array_equal(vectors(text_model(folder, backend), texts), vectors(model, texts))


def test_int8_answers_do_not_depend_on_the_other_texts_of_a_batch(folder: Path) -> None:
    """Each token's features have a range of their own: a single range of all would be that of the largest neighbour."""
    model = text_model(folder, Backend("onnxruntime", "int8"))
    texts = sample_inputs.texts(12)
    together = vectors(model, texts)
    for place, text in enumerate(texts):
        np.testing.assert_allclose(vectors(model, [text])[0], together[place], atol=1e-5)


def test_results_say_what_computed_them(folder: Path) -> None:
    """Two backends of one fleet answer a little differently: a result's revision tells them apart."""
    spec = ModelSpec("text", folder, "1", TASKS, {})
    other = TextModel(replace(spec, backend=Backend("openvino", "bf16")))
    assert other.revision == f"{TextModel(spec).revision}+openvino-bf16"
    assert ServedModel(other, other.revision, Budget(64, 8)).precision == "bf16"
    tabular = TabularModel(replace(spec, tasks={}))  # torch in fp32, without a choice
    assert ServedModel(tabular, "1", Budget(64, 8)).precision == "fp32"


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # its compiler uses what it deprecates
@pytest.mark.skipif(not shutil.which("g++") and not shutil.which("clang++"), reason="torch's compiler needs a C++ one")
def test_compiled_torch_compiles_once_for_all_shapes(tmp_path: Path) -> None:
    """With the model, before any batch; a lone row, and a lone token, are no other shape."""
    import torch
    from torch import nn

    class Network(nn.Module):
        def forward(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"sum": ids.float().sum(1, keepdim=True), "tokens.0": ids.float().unsqueeze(-1) * 2}

    example = {"ids": torch.ones(2, 3, dtype=torch.int32)}
    compiled = torch._dynamo.utils.counters["stats"]
    before = compiled["unique_graphs"]
    network = build(Backend(compiled=True), Source(lambda: Network().eval(), example, tmp_path / "none"), "cpu")
    assert compiled["unique_graphs"] == before + 1
    with torch.inference_mode():
        for rows, tokens in ((3, 5), (1, 32), (4, 1)):
            ids = torch.arange(rows * tokens, dtype=torch.int32).reshape(rows, tokens)
            found = network({"ids": ids})
            torch.testing.assert_close(found["sum"], ids.float().sum(1, keepdim=True))
            torch.testing.assert_close(found["tokens.0"], ids.float().unsqueeze(-1) * 2)
    assert compiled["unique_graphs"] == before + 1


def test_captured_passes_see_few_shapes_that_are_hardly_larger() -> None:
    """A graph is made for a shape: eight to each doubling, so that at most an eighth of the work is padding."""
    assert bucket(1, 3) == (2, 8)
    assert bucket(37, 100) == (40, 104)
    assert bucket(5, 0) == (5, 0)  # images have no tokens
    for count in range(2, 3000):
        rows, tokens = bucket(count, count)
        assert count <= rows <= count * 9 / 8
        assert count <= tokens <= max(count * 9 / 8, count + 7)
    assert len({bucket(rows, 8)[0] for rows in range(1, 1025)}) < 72


def test_older_networks_of_a_model_go_and_those_that_run_go_on(tmp_path: Path) -> None:
    """Each change of weights, code or libraries makes another network: they must not fill the disk."""
    import torch
    from torch import nn

    class Network(nn.Module):
        def __init__(self, factor: int) -> None:
            super().__init__()
            self.weights = nn.Parameter(torch.full((64, 64), float(factor)))

        def forward(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"sums": rows @ self.weights}

    def network(number: int) -> Callable[..., dict[str, torch.Tensor]]:
        cache = tmp_path / f"own.model-{number:016x}"
        example = {"rows": torch.ones(2, 64)}
        return build(Backend("openvino"), Source(lambda: Network(number).eval(), example, cache), "cpu")

    running = [network(number) for number in range(1, kept.MOST + 3)]
    assert len(list(tmp_path.glob("*.xml"))) == len(list(tmp_path.glob("*.bin"))) == kept.MOST
    assert not list(tmp_path.glob("*-0000000000000001.*"))
    for number, one in enumerate(running, start=1):
        assert float(one({"rows": torch.ones(3, 64)})["sums"][2, 5]) == 64 * number
    again = network(1)  # it is made anew
    assert float(again({"rows": torch.ones(1, 64)})["sums"][0, 0]) == 64


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "tensorrt"}, "backend: must be one of torch, onnxruntime, openvino, vllm"),
        ({"name": "torch", "precision": "int8"}, "precision: torch runs fp32, bf16, fp16, not 'int8'"),
        ({"name": "onnxruntime", "compiled": True}, "compile: needs the backend 'torch'"),
    ],
)
def test_a_backend_that_does_not_exist_is_named(fields: dict[str, object], message: str) -> None:
    """At start, not at the first batch."""
    with pytest.raises(ConfigurationError, match=message):
        Backend(**fields)  # type: ignore[arg-type]


def test_other_devices_run_torch_only(folder: Path) -> None:
    """OpenVINO's and ONNX Runtime's GPU builds are other packages; a silent fall-back to the CPU would be a trap."""
    with pytest.raises(ConfigurationError, match="openvino runs on the CPU here, not on cuda:0; use 'torch'"):
        TextModel(ModelSpec("text", folder, "1", TASKS, {}, Backend("openvino"))).load("cuda:0")


@pytest.mark.long
def test_a_machine_measures_once_and_serves_what_won(folder: Path) -> None:
    """The decision holds the whole table; a second start reads it, and the batcher gets its budget from it."""
    chosen = settings.Settings(
        models={
            "own": settings.ModelSettings(
                class_="workers.models.built_in.text.text_model:TextModel",
                source={"path": str(folder)},
                tasks={"vector": "feature-extraction"},
            )
        }
    )
    wanted, served = served_models.serve(chosen, "own", devices.cpu())
    decision = tuned_backend.find(served_models.model_to_load(chosen, "own"), devices.cpu())
    assert decision is not None
    assert {str(one.backend) for one in decision.candidates} >= {"torch-fp32", "torch-bf16", "openvino-fp32"}
    assert wanted.backend == decision.backend == tuned_backend.best_of(decision.candidates).backend
    assert served.budget.cost == decision.batch_cost
    assert decision.batch_cost in decision.rates
    served_models.serve(chosen, "own", devices.cpu())
    again = tuned_backend.find(served_models.model_to_load(chosen, "own"), devices.cpu())
    assert again == decision  # its time, too: nothing was measured again


def fragile(**options: str) -> ModelToLoad:
    tasks = {"size": Task("size", KINDS["feature-extraction"], "fragile", "")}
    spec = ModelSpec("fragile", Path(), "1", tasks, options)
    return ModelToLoad.from_spec("tests.fragile_model:FragileModel", spec)


def test_a_candidate_that_raises_ends_nothing_but_itself() -> None:
    """Wherever it raises, and whatever: the others are measured, and the table says why it is out."""
    decision = tuning.tune(fragile(), "cpu", labelled=False)
    assert {str(one.backend): one.refused for one in decision.candidates} == {
        "torch-fp32": "",
        "torch-bf16": "raised TypeError: expected Float but found BFloat16",
        "openvino-fp32": "raised KeyError: 'opset'",
        "openvino-bf16": "raised KeyError: 'opset'",
    }
    assert decision.backend == REFERENCE
    assert list(decision.rates) == [16, 32]  # batches of 64 raise
    labelled = tuning.tune(fragile(), "cpu", labelled=True)
    refused = {str(one.backend): one.refused for one in labelled.candidates}
    assert refused["onnxruntime-fp32"] == "raised LookupError: no such answer"


def test_outputs_that_are_not_numbers_agree_with_their_like_alone() -> None:
    """NaN is neither more nor less than a threshold, so it passed each of them."""
    kinds = {"vector": Task("vector", KINDS["feature-extraction"], "text", "")}
    masked = Answered({"vector": np.array([1.0, -np.inf], dtype=np.float32)}, {"vector": np.zeros(2)})
    broken = Answered({"vector": np.array([np.nan, -np.inf], dtype=np.float32)}, {"vector": np.zeros(2)})
    assert agreement([masked], [masked], kinds).cosine == 1.0
    assert agreement([broken], [masked], kinds).cosine == 0.0


@pytest.mark.long
def test_a_choice_of_a_busy_machine_is_made_again_on_a_quiet_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is used meanwhile. One of a quiet machine stays, and so does one with labelled texts, which took minutes."""
    wanted = fragile(deadly="torch-bf16")
    busy = tuning.tune(fragile(), "cpu", labelled=False)
    busy = msgspec.structs.replace(busy, others=0.5, decided_at=1.0)

    def decided_at(kept: tuned_backend.BackendDecision, quiet: float) -> float:
        file = tuned_backend._file(wanted, devices.cpu())
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(msgspec.json.encode(kept))
        monkeypatch.setattr(tuned_backend, "QUIET", quiet)
        found = tuned_backend.resolve(wanted, devices.cpu(), measure=True)
        assert found is not None
        return found.decided_at

    assert busy.provisional
    assert decided_at(busy, -1.0) == 1.0  # never quiet
    assert decided_at(msgspec.structs.replace(busy, guard="accuracy"), 1.0) == 1.0
    assert decided_at(msgspec.structs.replace(busy, others=0.01), 1.0) == 1.0
    assert decided_at(busy, 1.0) > 1.0
    found = tuned_backend.find(wanted, devices.cpu())
    assert found is not None
    said = {str(one.backend): one.refused for one in found.candidates}
    assert said["torch-bf16"] == "the measuring process was ended by SIGSEGV", "a candidate that kills it ends nothing"


def test_the_load_of_others_is_seen() -> None:
    """Two busy processes take processors that a measurement wants; this process's own work is no such load."""
    commands = [[sys.executable, "-c", "print(flush=True)\nwhile True: pass"]] * 2
    began = ProcessorTimes.now()
    others = [subprocess.Popen(command, stdout=subprocess.PIPE) for command in commands]
    try:
        for one in others:
            assert one.stdout is not None
            one.stdout.readline()
            one.stdout.close()
        while ProcessorTimes.now().passed_s - began.passed_s < 1.0:
            pass
        assert others_share(began) > 0.05
    finally:
        for one in others:
            one.kill()
            one.wait()
    own = ProcessorTimes.now()
    assert own.own_s - began.own_s > 0


def test_a_model_that_cannot_be_measured_still_starts(tmp_path: Path) -> None:
    """Speed is not worth a fleet that does not come up: the reference runs, and the load says what is wrong."""
    spec = ModelSpec("text", tmp_path, "1", TASKS, {})
    wanted = ModelToLoad.from_spec("workers.models.built_in.text.text_model:TextModel", spec)
    assert tuned_backend.resolve(wanted, devices.cpu(), measure=True) is None


def test_a_worker_starts_though_its_cache_cannot_be_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The composed stack mounts it read-only; here a file is in the way, which stops root as well."""
    (tmp_path / "tuned").touch()
    monkeypatch.setenv("ARGOSY_CACHE", str(tmp_path))
    wanted = ModelToLoad.from_spec(
        "workers.models.built_in.text.text_model:TextModel", ModelSpec("text", folder, "1", TASKS, {})
    )
    assert tuned_backend.resolve(wanted, devices.cpu(), measure=True) is None
    assert "no backend is measured for model text, it runs on torch-fp32" in caplog.text


def test_the_settings_choice_is_followed_unmeasured(folder: Path) -> None:
    """A named backend and a named budget leave nothing to find out."""
    model = settings.ModelSettings(
        class_="workers.models.built_in.text.text_model:TextModel",
        source={"path": str(folder)},
        tasks={"vector": "feature-extraction"},
        backend="openvino",
        precision="bf16",
        batch_cost=77,
    )
    wanted, served = served_models.serve(settings.Settings(models={"own": model}), "own", devices.cpu())
    assert wanted.backend == Backend("openvino", "bf16")
    assert served.budget.cost == 77
    assert tuned_backend.find(wanted, devices.cpu()) is None


def test_the_sample_is_the_same_every_time() -> None:
    """Two candidates that were measured on different inputs could not be compared."""
    assert sample_inputs.texts(20) == sample_inputs.texts(20)
    assert len(set(sample_inputs.texts(50))) == 50
    assert sample_inputs.images(3) == sample_inputs.images(3)
