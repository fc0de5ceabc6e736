"""`argosy compress` on tiny checkpoints: what is cut, taught and quantised is served, and what cannot be is named."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
import transformers

from producers.wire.errors import ConfigurationError
from producers.wire.messages import Envelope, Item, Priority, encode
from results_store.store import Store
from tests import tiny_checkpoints as tiny
from tests.integration import rows as stored
from tests.integration.conftest import Made
from tests.serving import Served, assert_alike
from workers import settings
from workers.batching.serving import served_models
from workers.device.device_process import ModelToLoad
from workers.models.backends.choice import REFERENCE, Backend
from workers.models.huggingface.text.encoder import EncoderModel
from workers.models.huggingface.text.task_attention import TaskAttention
from workers.training.compressing import (
    compress_recipe,
    compress_rows,
    compression_run,
    importance,
    network_files,
    rounding,
    smaller_networks,
    task_networks,
)
from workers.training.compressing.compress_rows import CompressRow, CompressRows
from workers.training.compressing.lessons import TokenizedRows
from workers.training.compressing.measured_variants import Figures
from workers.training.compressing.smaller_networks import Kept, Size
from workers.training.compressing.teaching import Teaching, teach
from workers.training.kinds.label_kinds import ClassificationKind
from workers.training.kinds.shared_network import TaskNetwork
from workers.training.recipes import served_folder
from workers.training.recipes.recipe_file import TaskTable

TEXTS = [" ".join(tiny.WORDS[n : n + 3 + n % 9]) for n in range(40)]
ROWS = [CompressRow(text, ("topic",)) for text in TEXTS]
SIZES = {"num_hidden_layers": 3, "num_attention_heads": 4, "num_labels": 3}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARGOSY_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(made: Made) -> Path:
    return made(tiny.bert, **SIZES)


def to_load(folder: Path, kind: str = "text-classification", **options: Any) -> ModelToLoad:
    return ModelToLoad("workers.models.huggingface:model_for", "own", str(folder), "1", {"topic": (kind, "")}, options)


def loaded(folder: Path) -> tuple[task_networks.TaskNetworks, TokenizedRows]:
    model = task_networks.served(to_load(folder))
    return task_networks.load(model), TokenizedRows(model, compress_rows.kinds_of(model), ROWS)


def served(folder: Path, backend: Backend = REFERENCE) -> Served:
    """Return a written model, loaded as in a worker."""
    heads = {"topic": str(folder / "heads" / "topic")}
    return Served(folder / "backbone", {"topic": "text-classification"}, backend, heads=heads).load()


def scores(networks: task_networks.TaskNetworks, rows: TokenizedRows, task: str = "topic") -> torch.Tensor:
    with torch.inference_mode():
        return torch.cat([networks(lessons.inputs)[0][task] for lessons in rows.some(20)])


def test_inner_features_without_effect_are_those_that_are_cut(folder: Path, tmp_path: Path) -> None:
    """A network in which some features have no effect answers the same without them, also when it is served."""
    networks, rows = loaded(folder)
    for layer in networks.backbone.encoder.layer:
        layer.output.dense.weight.data[:, 10:] = 0
    wanted = Size(layers=3, heads=4, inner=10, width=32)
    kept = importance.least_missed(networks, rows, wanted)
    assert [list(own) for own in kept.inner] == [list(range(10))] * 3
    smaller = smaller_networks.cut(networks, kept)
    torch.testing.assert_close(scores(smaller, rows), scores(networks, rows))
    assert Size.of(smaller.backbone.config) == wanted
    smaller.save(folder, rows.kinds, tmp_path / "small")
    networks.save(folder, rows.kinds, tmp_path / "whole")
    small, whole = (served(tmp_path / name) for name in ("small", "whole"))
    assert_alike(small.ask("topic", TEXTS, top_k=None), whole.ask("topic", TEXTS, top_k=None))


def test_layers_without_effect_are_those_that_are_cut(folder: Path) -> None:
    """Skipping them changes no answer, so they go first; features are then ranked in the layers that are left."""
    networks, rows = loaded(folder)
    middle = networks.backbone.encoder.layer[1]
    for part in (middle.attention.output.dense, middle.output.dense):
        part.weight.data.zero_()
        part.bias.data.zero_()
    networks.backbone.encoder.layer[0].output.dense.weight.data[:, 10:] = 0
    networks.backbone.encoder.layer[2].output.dense.weight.data[:, :-10] = 0
    kept = importance.least_missed(networks, rows, Size(layers=2, heads=4, inner=10, width=32))
    assert list(kept.layers) == [0, 2]
    assert [list(own) for own in kept.inner] == [list(range(10)), list(range(38, 48))]
    torch.testing.assert_close(
        scores(smaller_networks.cut(networks, kept), rows), scores(networks, rows), atol=1e-4, rtol=0
    )


def test_heads_go_with_their_width(folder: Path) -> None:
    """Every tensor gets smaller, and keeps the values of its kept places."""
    networks, rows = loaded(folder)
    wanted = Size(layers=3, heads=2, inner=48, width=16)
    smaller_networks.check(networks.backbone.config, Size.of(networks.backbone.config), wanted)
    kept = importance.least_missed(networks, rows, wanted)
    smaller = smaller_networks.cut(networks, kept)
    assert Size.of(smaller.backbone.config) == wanted
    rows_ = [head * 8 + place for head in kept.heads[1] for place in range(8)]
    theirs = networks.backbone.encoder.layer[1].attention.self.query.weight
    assert torch.equal(
        smaller.backbone.encoder.layer[1].attention.self.query.weight, theirs[rows_][:, list(kept.width)]
    )


@pytest.mark.parametrize("maker", [tiny.distilbert, tiny.roberta])
def test_other_architectures_are_cut_too(made: Made, maker: Any) -> None:
    head = "DistilBertForSequenceClassification" if maker is tiny.distilbert else "RobertaForSequenceClassification"
    networks, rows = loaded(made(maker, head))
    size = Size.of(networks.backbone.config)
    whole = smaller_networks.cut(networks, Kept.all_of(size))
    torch.testing.assert_close(scores(whole, rows), scores(networks, rows))
    wanted = Size(layers=1, heads=1, inner=size.inner // 2, width=size.width // size.heads)
    smaller = smaller_networks.cut(networks, importance.least_missed(networks, rows, wanted))
    assert scores(smaller, rows).shape == scores(networks, rows).shape


def test_heads_of_argosy_train_are_cut_and_written_with_their_fusion(made: Made, tmp_path: Path) -> None:
    """A head that sees another head's scores sees those of the compressed one."""
    backbone = transformers.AutoModel.from_pretrained(whole := made(tiny.bert, "BertModel", **SIZES))
    tables = {"topic": TaskTable(kind="classification"), "mood": TaskTable(kind="classification", fusion=("topic",))}
    kinds = {name: ClassificationKind(name, table, name) for name, table in tables.items()}
    for kind in kinds.values():
        kind.labels = ("a", "b", "c")
    served_folder.write_settings(tmp_path / "whole", whole, list(kinds.values()))
    heads = {name: TaskAttention(32, 3, seen=3 * len(table.fusion)) for name, table in tables.items()}
    tasks: Any = [TaskNetwork(kinds[name], None, head) for name, head in heads.items()]  # type: ignore[arg-type]
    served_folder.write_weights(tmp_path / "whole", backbone, tasks)

    def model(folder: Path) -> EncoderModel:
        places = {name: str(folder / "heads" / name) for name in kinds}
        kind = ("text-classification", "")
        class_ = "workers.models.huggingface:model_for"
        return task_networks.served(
            ModelToLoad(class_, "own", str(folder / "backbone"), "1", dict.fromkeys(kinds, kind), {"heads": places})
        )

    networks = task_networks.load(model(tmp_path / "whole"))
    rows = TokenizedRows(model(tmp_path / "whole"), kinds, [CompressRow(text, ("topic", "mood")) for text in TEXTS])
    smaller = smaller_networks.cut(networks, Kept.all_of(Size.of(backbone.config)))
    torch.testing.assert_close(scores(smaller, rows, "mood"), scores(networks, rows, "mood"))
    kept = importance.least_missed(networks, rows, Size(layers=2, heads=2, inner=24, width=16))
    smaller = smaller_networks.cut(networks, kept)
    smaller.save(tmp_path / "whole" / "backbone", kinds, tmp_path / "small")
    again = task_networks.load(model(tmp_path / "small"))
    torch.testing.assert_close(scores(again, rows, "mood"), scores(smaller, rows, "mood"))
    other: Any = again.heads["topic"]
    other.out.bias.data += torch.tensor([0.0, 9.0, 0.0])
    assert not torch.allclose(scores(again, rows, "mood"), scores(smaller, rows, "mood"))


def test_a_student_comes_nearer_to_its_teacher(folder: Path) -> None:
    teacher, rows = loaded(folder)
    student = smaller_networks.cut(
        teacher, importance.least_missed(teacher, rows, Size(layers=1, heads=4, inner=48, width=32))
    )
    expected = scores(teacher, rows).softmax(-1)
    before = (scores(student, rows).softmax(-1) - expected).abs().mean()
    teach(student, teacher, rows, Teaching(epochs=16, rate=2e-3, rows=8))
    after = (scores(student, rows).softmax(-1) - expected).abs().mean()
    assert float(after) < 0.75 * float(before)


IOB = {0: "O", 1: "B-WHO", 2: "I-WHO"}


@pytest.mark.parametrize(
    ("kind", "head", "config", "label"),
    [
        ("text-classification", "Sequence", {"num_labels": 3, "problem_type": "multi_label_classification"}, "LABEL_1"),
        ("text-classification", "Sequence", {"num_labels": 1, "problem_type": "regression"}, 2.5),
        ("token-classification", "Token", {"id2label": IOB}, [{"start": 0, "end": 3, "label": "WHO"}]),
        ("question-answering", "QuestionAnswering", {}, "lives at"),
    ],
)
def test_each_kind_is_judged_and_taught(
    made: Made, tmp_path: Path, kind: str, head: str, config: dict[str, Any], label: Any
) -> None:
    """A student of another size learns from the teacher's scores of this form, and from labels of this kind."""
    model = task_networks.served(
        to_load(made(tiny.bert, f"BertFor{head}{'Classification' * (head[0] != 'Q')}", **config), kind)
    )
    file = tmp_path / "rows.jsonl"
    inputs = {"text": "she lives at paris", "question": "where", "context": "she lives at paris"}
    inputs.pop("text" if kind == "question-answering" else "question")
    record = {**inputs, "topic": label}
    lines = [
        {**record, "text": f"{record['text']} {n}"} if "text" in record else {**record, "question": f"where {n}"}
        for n in range(10)
    ]
    file.write_text("\n".join(map(json.dumps, [*lines, {**lines[0], "topic": None}])))
    found = compress_rows.from_file(file, model, 0.5)
    rows = TokenizedRows(model, found.kinds, found.learnt)
    assert all(bool(lessons.labelled["topic"].all()) for lessons in rows.some(4))
    teacher = task_networks.load(model)
    wanted = Size(layers=1, heads=2, inner=24, width=32)
    student = smaller_networks.cut(teacher, importance.least_missed(teacher, rows, wanted))
    losses = list[float]()
    settings_ = Teaching(epochs=12, rate=2e-3, rows=5, precision="bf16")
    teach(student, teacher, rows, settings_, lambda step, steps, loss: losses.append(loss))
    assert losses[-1] < losses[0]
    answer = (
        Served(teacher.readers["topic"].checkpoint.folder, {"topic": kind})
        .load()
        .ask("topic", [_given(found, n) for n in (0, 1)])
    )
    own = found.kinds["topic"]
    assert own.scores([(one, compress_rows.label_of(own, one)) for one in answer])[own.metric] >= 0


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        (("B-WHO", "I-WHO", "O"), ""),
        (("I-WHO", "I-AT", "B-AT", "O"), r"the model's labels \(I-WHO, .*\) have no 'B-WHO', by which entities are"),
        (("WHO", "AT"), ".* have no 'O', by which"),
    ],
)
def test_entities_are_taught_by_the_models_own_labels(
    made: Made, tmp_path: Path, labels: Sequence[str], problem: str
) -> None:
    """In any order, if they are of the scheme."""
    config = {"id2label": dict(enumerate(labels))}
    model = task_networks.served(
        to_load(made(tiny.bert, "BertForTokenClassification", **config), "token-classification")
    )
    file = tmp_path / "rows.jsonl"
    entities = [{"start": 0, "end": 3, "label": "WHO"}]
    file.write_text("\n".join(json.dumps({"text": f"she lives at {n}", "topic": entities}) for n in range(10)))
    if problem:
        with pytest.raises(ConfigurationError, match=rf"rows\.jsonl: topic: {problem}.*; take a file without"):
            compress_rows.from_file(file, model, 0.5)
        return
    found = compress_rows.from_file(file, model, 0.5)
    [lessons, *_] = TokenizedRows(model, found.kinds, found.learnt).some(1)
    [[first, begins, *others, last]] = lessons.targets["topic"].tolist()
    assert (first, begins, {*others}, last) == (-100, 0, {2}, -100)
    recipe = tmp_path / "own.toml"
    recipe.write_text('[data]\ntrain = "rows.jsonl"\n[tasks.topic]\nkind = "token-labels"\nlabel = "topic"\n')
    with pytest.raises(ConfigurationError, match=r"tasks\.topic: has the labels O, B-WHO, I-WHO, and the model others"):
        compress_rows.from_file(recipe, model, 0.5)


def test_a_task_that_no_row_reads_is_named(made: Made, tmp_path: Path) -> None:
    """Before hours of teaching, after which nothing could judge it."""
    wanted = to_load(made(tiny.bert, **SIZES))
    tasks = {"topic": ("text-classification", ""), "where": ("question-answering", "")}
    model = task_networks.served(msgspec.structs.replace(wanted, tasks=tasks))
    file = tmp_path / "rows.csv"
    file.write_text("text\n" + "".join(f"text {n}\n" for n in range(9)))
    with pytest.raises(ConfigurationError, match=r"rows\.csv: has no row to teach the model's task 'where'; take"):
        compress_rows.from_file(file, model, 0.5)


def _given(found: CompressRows, number: int) -> Any:
    content = found.judged[number].content
    return content if isinstance(content, str) else msgspec.structs.asdict(content)


@pytest.mark.parametrize("backend", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.benchmarks)])
def test_a_static_network_is_served_from_its_folder(folder: Path, tmp_path: Path, backend: Any) -> None:
    """The ranges were measured beforehand, and the folder's file is used in place of the cache."""
    networks, rows = loaded(folder)
    layer = networks.backbone.encoder.layer[1]
    layer.intermediate.dense.bias.data[0] = 1000.0  # int8 over such a range would leave nothing of the other features
    layer.output.dense.weight.data[:, 0] = 0.0
    batches = [lessons.inputs for lessons in rows.some(20)]
    assert rounding.coarse_layers(networks.backbone, batches) == ["encoder.layer.1.output.dense"]
    networks.save(folder, rows.kinds, tmp_path)
    own = tmp_path / "backbone"
    network_files.write_static(to_load(own, heads={"topic": str(tmp_path / "heads" / "topic")}), rows)
    assert [file.name for file in own.glob("*.onnx")] == ["network-int8.onnx"]
    int8, fp32 = served(tmp_path, Backend(backend, "int8")), served(tmp_path)
    found, expected = (
        [{one["label"]: one["score"] for one in answer} for answer in model.ask("topic", TEXTS, top_k=None)]
        for model in (int8, fp32)
    )
    assert_alike(found, expected, tolerance=0.06)
    assert not list((tmp_path / "cache").glob("networks/*.onnx"))


def test_a_dynamic_int8_network_serves_texts_beside_others(folder: Path, tmp_path: Path) -> None:
    """A feature is thirty times as large as the others, in some tokens more than in others: with a single range for all
    texts of a batch, the worker refused the network, whose answers depended on them.
    """
    networks, rows = loaded(folder)
    for layer in networks.backbone.encoder.layer:
        layer.intermediate.dense.weight.data[0] *= 30.0
        layer.output.dense.weight.data[:, 0] /= 30.0
    networks.save(folder, rows.kinds, tmp_path)
    own = to_load(tmp_path / "backbone", heads={"topic": str(tmp_path / "heads" / "topic")})
    network_files.write(own, backend := Backend("onnxruntime", "int8"))
    found, expected = (
        [
            {one["label"]: one["score"] for one in answer}
            for answer in served(tmp_path, on).ask("topic", TEXTS, top_k=None)
        ]
        for on in (backend, REFERENCE)
    )
    assert_alike(found, expected, tolerance=0.06)


@pytest.mark.benchmarks
def test_a_network_without_types_of_tokens_is_quantised_too(made: Made, tmp_path: Path) -> None:
    """Its tokenizer gives types, which the network does not read."""
    folder = made(tiny.distilbert, "DistilBertForSequenceClassification")
    networks, rows = loaded(folder)
    networks.save(folder, rows.kinds, tmp_path)
    heads = {"topic": str(tmp_path / "heads" / "topic")}
    network_files.write_static(to_load(tmp_path / "backbone", heads=heads), rows)
    assert len(served(tmp_path, Backend("onnxruntime", "int8")).ask("topic", TEXTS)) == len(TEXTS)


def test_openvino_names_the_command_without_such_a_network(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="openvino runs int8 networks that are quantised beforehand: argosy"):
        Served(folder, {"topic": "text-classification"}, Backend("openvino", "int8")).load()


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"heads": 2}, "heads: bert's config has no width of a head, .* ask for heads and width in this .*2 and 16"),
        ({"layers": 4}, "layers: must be 1 to 3, not 4"),
        ({"inner": 0}, "inner: must be 1 to 48, not 0"),
    ],
)
def test_a_size_that_cannot_be_is_named(folder: Path, wanted: dict[str, int], message: str) -> None:
    networks, _ = loaded(folder)
    size = {"layers": 3, "heads": 4, "inner": 48, "width": 32} | wanted
    with pytest.raises(ConfigurationError, match=message):
        smaller_networks.check(networks.backbone.config, Size.of(networks.backbone.config), Size(**size))


def test_a_model_that_cannot_be_compressed_is_named(folder: Path, made: Made) -> None:
    with pytest.raises(ConfigurationError, match=r"models\.own\.tasks\.topic: feature-extraction is not compressed"):
        task_networks.served(to_load(made(tiny.bert, "BertModel"), "feature-extraction"))
    with pytest.raises(ConfigurationError, match=r"models\.own: ImageModel is not compressed; only text encoders"):
        task_networks.served(to_load(made(tiny.vit), "image-classification"))


@pytest.mark.parametrize(
    ("names", "given", "message"),
    [
        (["prune", "shrink"], {}, "--steps: no step 'shrink'; the steps are prune, distill, qat, int8, export"),
        (["int8"], {"backend": "openvino"}, '`backend` "openvino" runs int8 of the mode "static" only'),
        (
            ["export"],
            {"backend": "onnxruntime", "precision": "bf16"},
            '`precision` "bf16" is for the `backend` "openvino"',
        ),
        (["prune"], {"epochs": -1.0}, "`epochs` must be 0 to 1000"),
    ],
)
def test_a_wrong_recipe_is_named(names: list[str], given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        compress_recipe.from_names(names, given)


def test_a_recipe_in_a_file_has_settings_for_each_step(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text('most_lost = 2\n[[steps]]\ndo = "prune"\nlayers = 3\n[[steps]]\ndo = "int8"\nmode = "static"\n')
    recipe = compress_recipe.from_file(file)
    assert recipe.steps == (compress_recipe.Prune(layers=3), compress_recipe.Int8(mode="static"))
    file.write_text('[[steps]]\ndo = "prune"\nlayer = 3\n')
    with pytest.raises(ConfigurationError, match=r"recipe\.toml: .*unknown field `layer` - at `\$\.steps\[0\]`"):
        compress_recipe.from_file(file)


def figures(step: str, **metrics: float) -> Figures:
    sizes = {"disk_mb": 1.0, "memory_mb": 1.0, "items_per_s": 1.0, "slowest": 1.0, "fastest": 1.0}
    return Figures(step=step, backend="torch-fp32", size="", metrics=metrics, **sizes)


def test_a_step_is_left_out_for_its_worst_task() -> None:
    before, after = figures("original", mood=0.9, topic=0.9), figures("1-prune", mood=0.95, topic=0.885)
    assert compression_run.lost([before, after], 1.0) == "topic lost 1.5 points"
    assert compression_run.lost([before, after], 2.0) == ""


def test_rows_come_from_a_file_and_wrong_ones_are_named(folder: Path, tmp_path: Path) -> None:
    model = task_networks.served(to_load(folder))
    file = tmp_path / "rows.csv"
    file.write_text("text,topic\n" + "".join(f"text {n},LABEL_{n % 3}\n" for n in range(9)) + "another,\n")
    found = compress_rows.from_file(file, model, 0.2)
    first = [CompressRow(f"text {n}", ("topic",), {"topic": f"LABEL_{n % 3}"}) for n in (0, 5)]
    assert found.judged == first
    assert found.learnt[-1] == CompressRow("another", ("topic",))
    file.write_text("text,topic\n" + "fine,sport\n" * 9)
    with pytest.raises(ConfigurationError, match=r"rows\.csv:2: topic: is 'sport'; it must be one of LABEL_0, LABEL_1"):
        compress_rows.from_file(file, model, 0.2)
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"title": "none"}))
    with pytest.raises(ConfigurationError, match=r"rows\.jsonl:1: has no text; name the column of the inputs so"):
        compress_rows.from_file(file, model, 0.2)
    file.write_text(json.dumps({"text": "fine"}))
    with pytest.raises(ConfigurationError, match="has 1 rows of use, fewer than 8"):
        compress_rows.from_file(file, model, 0.2)


def test_the_digest_of_a_recipe_is_also_of_its_rows(tmp_path: Path) -> None:
    """Of all files that it names: measurements on other rows are not kept."""
    recipe = tmp_path / "own.toml"
    recipe.write_text('[data]\ntrain = "a*.csv"\ntest = "test.csv"\n[tasks.topic]\nkind = "classification"\n')
    found = []
    for name, text in (("a1", "x"), ("test", "y"), ("a2", "z"), ("test", "w"), ("a2", "z")):
        (tmp_path / f"{name}.csv").write_text(f"text,label\n{text},one\n")
        if name != "a1":
            found.append(compress_rows.digest(recipe))
    assert len(set(found)) == 3
    assert found[2] == found[3]


@contextmanager
def job(file: Path, answers: Sequence[Any]) -> Iterator[Store]:
    """Store a job of these answers, and an item without one."""
    count = len(answers) + 1
    items = tuple(Item(seq=n, input=f"text {n}", tasks=("topic",)) for n in range(count))
    envelope = Envelope(version=1, id="e0", job="job", model="own", priority=Priority.BULK, queued_at=1.0, items=items)
    payload, content_type = encode(envelope)
    Store(f"sqlite:///{file}").migrate()
    with Store(f"sqlite:///{file}") as store:
        store.create_job(stored.new_job())
        new = stored.new_envelope("e0", items=count, results=count, payload=payload, content_type=content_type)
        store.add_envelopes([new])
        store.commit([stored.result(n, output=answer) for n, answer in enumerate(answers)], done=["e0"])
        yield store


def test_a_fleets_own_answers_are_labels(folder: Path, tmp_path: Path) -> None:
    """The inputs of a stored job, with what the fleet answered; failed items are no rows."""
    with job(tmp_path / "store.db", [[{"label": "LABEL_1", "score": 0.75}]] * 9) as store:
        found = compress_rows.of_job(store, "job", task_networks.served(to_load(folder)), 0.5)
    rows = [CompressRow(f"text {n}", ("topic",), {"topic": "LABEL_1"}) for n in range(9)]
    assert (found.judged, found.learnt) == (rows[::2], rows[1::2])


def test_answers_of_a_job_must_have_all_labels_that_apply(made: Made, tmp_path: Path) -> None:
    """Of several labels, a fleet answers with the best one, unless it is asked for more."""
    folder = made(tiny.bert, **SIZES, problem_type="multi_label_classification")
    model = task_networks.served(to_load(folder))
    some = [{"label": "LABEL_1", "score": 0.75}, {"label": "LABEL_2", "score": 0.5}]
    whole = [[*some, {"label": "LABEL_0", "score": 0.1}], some, some[1:], [dict(one, score=0.9) for one in some]]
    whole[-1].append({"label": "LABEL_0", "score": 0.6})
    with job(tmp_path / "whole.db", [*whole, *whole, some]) as store:
        found = compress_rows.of_job(store, "job", model, 0.5)
    labels = [row.labels["topic"] for row in (*found.judged, *found.learnt)]
    assert sorted(set(labels)) == [(), ("LABEL_0", "LABEL_1", "LABEL_2"), ("LABEL_1",)]
    with job(tmp_path / "best.db", [some[:1]] * 9) as store:
        message = r'tasks\.topic: has answers with 1 of 3 labels, .*; submit it with the parameter "top_k": null'
        with pytest.raises(ConfigurationError, match=message):
            compress_rows.of_job(store, "job", model, 0.5)


def test_weights_learn_with_the_rounding_and_are_plain_afterwards(folder: Path) -> None:
    networks, rows = loaded(folder)
    before, names = scores(networks, rows), set(networks.state_dict())
    layer = networks.backbone.encoder.layer[0].output.dense
    with rounding.rounded(networks.backbone):
        steps = layer.weight / (layer.weight.abs().amax(1, keepdim=True) / 127)
        torch.testing.assert_close(steps, steps.round(), atol=1e-3, rtol=0)
        assert 0 < float((scores(networks, rows) - before).abs().max()) < 0.2
        networks(rows.some(8)[0].inputs)[0]["topic"].sum().backward()
        assert layer.parametrizations.weight.original.grad.abs().sum() > 0
    assert set(networks.state_dict()) == names
    torch.testing.assert_close(scores(networks, rows), before)


def test_the_written_settings_serve_the_folder(folder: Path, tmp_path: Path) -> None:
    model = to_load(tmp_path / "1-prune" / "topic", heads={"mood": str(tmp_path / "1-prune" / "mood")}, max_tokens=64)
    model = ModelToLoad(
        model.class_,
        "own",
        model.folder,
        "1",
        model.tasks | {"mood": ("text-classification", "")},
        model.options,
        Backend("onnxruntime", "int8"),
    )
    file = tmp_path / "fleet.toml"
    file.write_text(compression_run.settings_of(model, tmp_path))
    read = settings.load(file).models["own"]
    assert read.source == {"path": str(tmp_path / "1-prune" / "topic")}
    assert read.options == {"heads": {"mood": str(tmp_path / "1-prune" / "mood")}, "max_tokens": 64}
    assert (read.backend, read.precision) == ("onnxruntime", "int8")


def test_a_folder_that_has_files_is_not_written_to(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "fleet.toml").touch()
    recipe = compress_recipe.from_names(["prune"], {})
    reports = compression_run.Reports(say=print, watch=None, show=lambda *_: None)
    with pytest.raises(ConfigurationError, match="is not empty; name a new folder"):
        compression_run.compress(to_load(folder), recipe, CompressRows({}, ROWS, ROWS), tmp_path, reports)


def test_a_wrong_size_is_named_before_any_step(folder: Path, tmp_path: Path) -> None:
    """Also that of a later step: an hour of training would be lost."""
    steps = (compress_recipe.Prune(layers=2), compress_recipe.Distill(layers=3))
    recipe = compress_recipe.CompressRecipe(steps=steps)
    reports = compression_run.Reports(say=print, watch=None, show=lambda *_: None)
    rows = CompressRows(compress_rows.kinds_of(task_networks.served(to_load(folder))), ROWS, ROWS)
    with pytest.raises(ConfigurationError, match="layers: must be 1 to 2, not 3"):
        compression_run.compress(to_load(folder), recipe, rows, tmp_path / "out", reports)


@pytest.mark.benchmarks
@pytest.mark.timeout(600)
def test_the_command_leaves_a_folder_that_is_served(folder: Path, tmp_path: Path) -> None:
    """As a user runs it; and a loss that is not accepted leaves nothing behind."""
    rows = tmp_path / "rows.csv"
    rows.write_text("text\n" + "".join(f'"{text}"\n' for text in TEXTS))
    small = tmp_path / "small"
    command = [sys.executable, "-m", "producers.commands.main", "compress", str(folder), "--rows", str(rows)]
    command += ["--out", str(small), "--threads", "1"]
    ran = subprocess.run(
        [*command, "--steps", "prune,qat,int8", "--accept-loss"], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert "3-int8 is in" in ran.stdout
    card = msgspec.json.decode((small / "card.json").read_bytes(), type=compression_run.CompressionCard)
    assert [own.step for own in card.figures] == ["original", "1-prune", "2-qat", "3-int8"]
    assert card.figures[-1].disk_mb > 0
    chosen = settings.load(small / "fleet.toml")
    name = folder.name
    wanted = served_models.model_to_load(chosen, name)
    assert [path.name for path in small.iterdir() if path.is_dir()] == ["3-int8"]
    own = Served(Path(wanted.folder), {name: "text-classification"}, Backend("onnxruntime", "int8"), **wanted.options)
    assert len(own.load().ask(name, TEXTS)) == len(TEXTS)
    network = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    for tensor in network.parameters():
        tensor.data *= 8  # its answers differ from text to text, so that half of its layers give others
    network.save_pretrained(shutil.copytree(folder, tmp_path / "varied"))
    command[command.index(str(folder))] = str(tmp_path / "varied")
    command[command.index(str(small))] = str(tmp_path / "other")
    ran = subprocess.run(
        [*command, "--steps", "prune", "--layers", "1", "--epochs", "0", "--most-lost", "0"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1
    assert "every step is left out" in ran.stderr
    assert not (tmp_path / "other").exists()
