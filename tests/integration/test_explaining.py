"""Why a label, on real networks: it adds up, nobody's company changes it, the labels stay what they were."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image, ImageDraw

from producers.wire.catalogue import Catalogue
from producers.wire.errors import InputTooLarge, InvalidInput
from tests import tiny_checkpoints as tiny
from tests.serving import DEVICE, TOLERANCE, answered, assert_alike
from workers import settings
from workers.batching.planning.policy import Budget
from workers.batching.roster import ServedModel
from workers.batching.serving import served_explainers
from workers.device.device_process import ModelToLoad
from workers.models.explaining.explaining_model import ExplainingModel
from workers.models.interface.model import LoadingFailed, Model, ModelSpec
from workers.models.sources.model_source import Pulled

pytestmark = pytest.mark.usefixtures("two_threads")

HF = "workers.models.huggingface:model_for"

TEXTS = [
    "A dull and pointless waste of two hours.",
    "Wonderful, moving — I laughed \U0001f600 and cried.",
    "Shares fell after the bank warned of losses.",
]

#: What the steps may leave, as a share of what is explained, and in log-odds.
SHARE, LEAST = 0.1, 0.15

#: For networks of random weights, spread so that they answer differently: they are rough, and small.
ROUGH = {"explain_steps": 400}


class Explained:
    """A model beside its explaining side, in this process, as a worker has them."""

    def __init__(self, name: str, class_: str, folder: Path, tasks: Mapping[str, Any], **options: Any) -> None:
        self.catalogue = Catalogue({}).with_models({name: {"tasks": tasks}}, where="fleet.toml")
        wanted = ModelToLoad.from_spec(class_, ModelSpec(name, folder, "1", self.catalogue.tasks, options))
        self.plain: Model = wanted.build()
        self.plain.load(DEVICE)
        chosen = settings.Settings(models={name: settings.ModelSettings(source={"path": "."}, explain="preloaded")})
        side = served_explainers.side(chosen, wanted, ServedModel(self.plain, self.plain.revision, Budget(256, 64)))
        assert side is not None
        self.model: Any = side[0].build()
        self.model.load(DEVICE)

    def params(self, task: str, **chosen: Any) -> msgspec.Struct:
        if chosen.get("explain"):
            chosen = {"explain_steps": 24} | chosen
        return self.catalogue.check_params(self.catalogue.tasks[task], chosen, field="params")

    def ask(self, task: str, contents: Sequence[Any], **chosen: Any) -> list[Any]:
        own = {task: self.params(task, **chosen)}
        return [answer[task] for answer in answered(self.model, [(content, own) for content in contents])]

    def why(self, task: str, content: Any, **chosen: Any) -> dict[str, Any]:
        """Return the one explanation of an input, as a client gets it."""
        [labels] = self.ask(task, [content], explain=True, **chosen)
        [explained] = [label for label in labels if "explanation" in label]
        return dict(msgspec.to_builtins(explained["explanation"]))

    def labels(self, task: str, contents: Sequence[Any], **chosen: Any) -> list[Any]:
        """What the model itself answers."""
        own = {task: self.params(task, **chosen)}
        return [answer[task] for answer in answered(self.plain, [(content, own) for content in contents])]


def bare(labels: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{"label": label["label"], "score": label["score"]} for label in labels]


def total(why: Mapping[str, Any]) -> float:
    return (
        sum(word["contribution"] for word in why["words"])
        if "words" in why
        else float(np.sum(why["map"]["contributions"]))
    )


def assert_adds_up(why: Mapping[str, Any]) -> None:
    """What is called completeness: the parts are the whole, but for the error that is told."""
    moved = why["value"] - why["base"]
    assert total(why) - moved == pytest.approx(why["delta"], abs=1e-3)
    assert abs(why["delta"]) <= SHARE * abs(moved) + LEAST


@pytest.fixture(scope="module")
def text(pulled_models: Mapping[str, Pulled]) -> Explained:
    tasks = dict.fromkeys(("sentiment", "topic", "spam"), "text-classification")
    return Explained(
        "text",
        "workers.models.built_in.text.text_model:TextModel",
        pulled_models["text"].folder,
        tasks | {"embedding": "feature-extraction"},
    )


@pytest.fixture(scope="module")
def vision(pulled_models: Mapping[str, Pulled]) -> Explained:
    tasks = {"image-classification": "image-classification"}
    return Explained(
        "vision", "workers.models.built_in.vision.vision_model:VisionModel", pulled_models["vision"].folder, tasks
    )


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Explained]:
    """Checkpoints as users bring them."""
    folder = tmp_path_factory.mktemp("classifiers")
    made = {
        "bert": tiny.bert(folder / "bert", id2label={0: "low", 1: "middle", 2: "high"}),
        "distilbert": tiny.distilbert(folder / "distilbert", "DistilBertForSequenceClassification"),
        "roberta": tiny.roberta(folder / "roberta", "RobertaForSequenceClassification"),
        "several": tiny.bert(folder / "several", num_labels=3, problem_type="multi_label_classification"),
        "bart": tiny.bart(folder / "bart", "BartForSequenceClassification"),
    }
    return {name: Explained(name, HF, path, {"label": "text-classification"}) for name, path in made.items()}


# --- texts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["sentiment", "topic", "spam"])
def test_the_words_add_up_to_the_label(text: Explained, task: str) -> None:
    """From where every token is masked to the text, on heads of both kinds; every word where it stands."""
    for content in TEXTS[:2]:
        why = text.why(task, content)
        assert_adds_up(why)
        assert all(content[word["start"] : word["end"]] == word["text"] for word in why["words"])
        said = "".join(word["text"] for word in why["words"])
        assert said == content.replace(" ", "")


def test_what_was_said_of_the_film_weighs_most(text: Explained) -> None:
    """A figure for many held-out texts is in docs/models.md; here a sentence whose word everybody would point at."""
    [score] = text.labels("sentiment", ["A dull and pointless waste of two hours."])
    assert score[0]["label"] == "negative"
    words = {word["text"]: word["contribution"] for word in text.why("sentiment", TEXTS[0])["words"]}
    assert max(words, key=lambda word: words[word]) in ("dull", "pointless", "waste")
    assert words["waste"] > words["hours"]


def test_labels_are_those_without_an_explanation(text: Explained) -> None:
    """It is the same network on the same row; best first, as many as were asked for."""
    for task, top_k in (("sentiment", 1), ("topic", None), ("topic", 2)):
        found = text.ask(task, TEXTS, explain=True, explain_steps=1, top_k=top_k)
        assert_alike([bare(labels) for labels in found], text.labels(task, TEXTS, top_k=top_k))
        assert all("explanation" in labels[0] for labels in found)
        assert all(set(label) == {"label", "score"} for labels in found for label in labels[1:])


def test_any_label_can_be_asked_about(text: Explained) -> None:
    """It comes behind the best ones if it is none of them. For two labels, what speaks for one speaks against the
    other.
    """
    [labels] = text.ask("sentiment", TEXTS[:1], explain=True, explain_label="positive")
    assert [label["label"] for label in labels] == ["negative", "positive"]
    assert sum(label["score"] for label in labels) == pytest.approx(1, abs=1e-5)
    for_it, against = labels[1]["explanation"], text.why("sentiment", TEXTS[0])
    assert for_it.value == pytest.approx(-against["value"], abs=1e-3)
    for one, other in zip(for_it.words, against["words"], strict=True):
        assert one.contribution == pytest.approx(-other["contribution"], abs=1e-3)


def test_nobodys_company_changes_an_explanation(text: Explained) -> None:
    """Items of other lengths, tasks, labels and steps, and some that want none, go through the network together."""
    alone = text.why("topic", TEXTS[2])
    explained = {"topic": text.params("topic", explain=True)}
    company: list[tuple[Any, Mapping[str, Any]]] = [
        (TEXTS[0], {"sentiment": text.params("sentiment", explain=True, explain_label="positive")}),
        (TEXTS[2], explained | {"embedding": text.params("embedding"), "spam": text.params("spam")}),
        (TEXTS[1], {"sentiment": text.params("sentiment")}),
        (TEXTS[1] * 2, {"topic": text.params("topic", explain=True, explain_steps=3)}),
    ]
    found = answered(text.model, company)
    among = msgspec.to_builtins(found[1]["topic"][0]["explanation"])
    assert_alike(among, alone, tolerance=1e-3)
    assert_alike(found[2]["sentiment"], text.labels("sentiment", [TEXTS[1]])[0])
    assert_alike(found[1]["spam"], text.labels("spam", [TEXTS[2]])[0])
    [[vector]] = [
        [own["embedding"] for own in answered(text.plain, [(TEXTS[2], {"embedding": text.params("embedding")})])]
    ]
    np.testing.assert_allclose(found[1]["embedding"], vector, atol=TOLERANCE)


def test_a_text_that_is_too_long_is_refused_or_cut(text: Explained) -> None:
    """As without an explanation; what was cut off contributed nothing and is not told of."""
    content = "fine " * 600
    with pytest.raises(InputTooLarge, match="602 tokens"):
        text.ask("sentiment", [content], explain=True)
    why = text.why("sentiment", content, explain_steps=1, truncation=True)
    assert len(why["words"]) == 510
    assert why["words"][-1]["end"] == 510 * 5 - 1


@pytest.mark.parametrize(
    ("chosen", "problem"),
    [
        (
            {"explain_label": "glad"},
            r"params.sentiment.explain_label: is 'glad', not a label of the task; use one of negative, positive",
        ),
        ({"explain_steps": 0}, "`explain_steps` must be 1 to 512"),
        ({"explain_steps": 1000}, "`explain_steps` must be 1 to 512"),
    ],
)
def test_what_cannot_be_explained_is_refused_by_name(text: Explained, chosen: dict[str, Any], problem: str) -> None:
    """Before anything is computed, and a task whose parameters are right goes on."""
    with pytest.raises(InvalidInput, match=problem):
        text.ask("sentiment", TEXTS[:1], explain=True, **chosen)
    if "explain_label" in chosen:
        wrong = text.params("sentiment", explain=True, **chosen)
        row = text.model.prepare(TEXTS[0], {"sentiment": wrong, "topic": text.params("topic")})
        assert set(row.refused) == {"sentiment"}


# --- checkpoints ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bert", "distilbert", pytest.param("roberta", marks=pytest.mark.long), "several"])
def test_any_classifier_of_texts_can_be_explained(classifiers: Mapping[str, Explained], name: str) -> None:
    """Whatever its tokenizer and its embeddings; with labels that compete, and that do not."""
    own, content = classifiers[name], "the film was good and moving"
    why = own.why("label", content, **ROUGH)
    assert_adds_up(why)
    assert all(content[word["start"] : word["end"]] == word["text"] for word in why["words"])
    assert [word["text"] for word in why["words"]] == content.split()
    together = own.ask("label", [content, "the bank lost", content + " " + content], explain=True, **ROUGH)
    assert_alike(msgspec.to_builtins(together[0][0]["explanation"]), why, tolerance=1e-4)
    assert_alike([bare(labels) for labels in together[:1]], own.labels("label", [content]))


def test_a_network_that_reads_its_tokens_twice_says_so(classifiers: Mapping[str, Explained]) -> None:
    """BART's decoder reads them again, one place on: half an explanation would be worse than none."""
    with pytest.raises(NotImplementedError, match="cannot be explained"):
        classifiers["bart"].why("label", "the film was good")


def test_heads_on_one_backbone_are_explained_in_one_step(tmp_path: Path) -> None:
    """Each by its own head."""
    folder = tiny.bert(tmp_path / "own", id2label={0: "low", 1: "high"})
    import shutil

    shutil.copytree(folder, tmp_path / "other")
    own = Explained(
        "own",
        HF,
        folder,
        {"one": "text-classification", "two": "text-classification", "vector": "feature-extraction"},
        heads={"two": str(tmp_path / "other")},
    )
    both = {task: own.params(task, explain=True) for task in ("one", "two")}
    [found] = answered(own.model, [("the film was good", both | {"vector": own.params("vector")})])
    assert_alike(msgspec.to_builtins(found["one"]), msgspec.to_builtins(found["two"]))
    assert_alike(msgspec.to_builtins(found["one"][0]["explanation"]), own.why("one", "the film was good"))


def adapted(base: Path, folder: Path) -> Any:
    """Write a LoRA adapter of random weights with a head of three labels; return the model with it merged in."""
    import peft
    from transformers import AutoModelForSequenceClassification

    network = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    config = peft.LoraConfig(
        task_type="SEQ_CLS", r=4, lora_alpha=16, target_modules=["query", "value"], init_lora_weights=False
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for what it gives up
        model: Any = peft.get_peft_model(network, config)
    model.save_pretrained(folder)
    return model.eval().merge_and_unload()


def test_what_an_adapter_does_is_explained_through_it(tmp_path: Path) -> None:
    """The log-odds are those of the merged model, beside points that go through another adapter."""
    import torch
    from transformers import AutoTokenizer

    base = tiny.bert(tmp_path / "base", "BertModel")
    torch.manual_seed(0)
    folders = {task: tmp_path / task for task in ("mood", "about")}
    merged = {task: adapted(base, folder) for task, folder in folders.items()}
    tasks = dict.fromkeys(folders, "text-classification")
    own = Explained("own", HF, base, tasks, adapters={task: str(folder) for task, folder in folders.items()})
    content = "the film was good"
    both = {task: own.params(task, explain=True, **ROUGH) for task in folders}
    [found] = answered(own.model, [(content, both)])
    for task, network in merged.items():
        why = msgspec.to_builtins(found[task][0]["explanation"])
        assert_adds_up(why)
        with torch.inference_mode():
            logits = network(**AutoTokenizer.from_pretrained(base)(content, return_tensors="pt")).logits[0].tolist()
        best = max(logits)
        assert why["value"] == pytest.approx(best - (sum(logits) - best) / 2, abs=1e-4)


# --- images -----------------------------------------------------------------------------------------


def picture(size: tuple[int, int], *, exif: int = 1) -> bytes:
    """A round thing before a shaded ground, of which EXIF may say that it lies on its side."""
    image = Image.linear_gradient("L").resize(size).convert("RGB")
    ImageDraw.Draw(image).ellipse((size[0] // 3, size[1] // 3, size[0] // 2, size[1] // 2), fill=(250, 120, 0))
    tags = Image.Exif()
    tags[0x0112] = exif
    made = io.BytesIO()
    image.save(made, "JPEG", quality=95, exif=tags)
    return made.getvalue()


@pytest.mark.long
def test_the_fields_of_an_image_add_up_to_the_label(vision: Explained) -> None:
    """14 by 14 of them, over the square that the network sees, in pixels of the image as it was sent."""
    content = picture((400, 300))
    why = vision.why("image-classification", content, explain_steps=64)
    assert_adds_up(why)
    assert np.shape(why["map"]["contributions"]) == (14, 14)
    side = 300 * 224 / 256
    area = why["map"]["area"]
    assert area == pytest.approx(
        {"xmin": 200 - side / 2, "ymin": 150 - side / 2, "xmax": 200 + side / 2, "ymax": 150 + side / 2}, abs=0.01
    )
    found = vision.ask("image-classification", [content], explain=True, explain_steps=1)
    assert_alike([bare(labels) for labels in found], vision.labels("image-classification", [content]))


def test_an_image_on_its_side_is_explained_upright(vision: Explained) -> None:
    """As boxes are told."""
    area = vision.why("image-classification", picture((400, 300), exif=6), explain_steps=1)["map"]["area"]
    assert (area["xmin"] + area["xmax"]) / 2 == pytest.approx(150)
    assert (area["ymin"] + area["ymax"]) / 2 == pytest.approx(200)


@pytest.mark.parametrize(
    ("make", "fields", "area", "smooth"),
    [
        (tiny.vit, (2, 2), (0, 0, 90, 60), True),
        # the short side of 60 becomes 54, and 48 of that are taken; where all is one colour, its norms have nothing to
        # divide by
        (tiny.convnext, (3, 3), (18.33, 3.33, 71.67, 56.67), False),
    ],
)
def test_any_classifier_of_images_can_be_explained(
    tmp_path: Path, make: Any, fields: tuple[int, int], area: Sequence[float], smooth: bool
) -> None:
    """Over what its own processor makes of an image."""
    own = Explained("eyes", HF, make(tmp_path / "eyes"), {"shows": "image-classification"})
    content = picture((90, 60))
    why = own.why("shows", content, **ROUGH)
    assert total(why) - (why["value"] - why["base"]) == pytest.approx(why["delta"], abs=1e-3)
    if smooth:
        assert_adds_up(why)
    assert np.shape(why["map"]["contributions"]) == fields
    assert tuple(why["map"]["area"].values()) == pytest.approx(area, abs=0.7)
    together = own.ask("shows", [picture((50, 70)), content], explain=True, **ROUGH)
    assert_alike(msgspec.to_builtins(together[1][0]["explanation"]), why, tolerance=1e-4)


# --- what has no explaining side --------------------------------------------------------------------


def test_what_cannot_be_explained_has_no_explaining_side(tmp_path: Path) -> None:
    """And says so to who asks; an item that does not ask goes its usual way."""
    catalogue = Catalogue({}).with_models({"vectors": {"tasks": {"vector": "feature-extraction"}}}, where="fleet.toml")
    wanted = ModelToLoad.from_spec(HF, ModelSpec("vectors", tiny.bert(tmp_path / "v"), "1", catalogue.tasks, {}))
    served = ServedModel(wanted.build(), "1", Budget(256, 64))
    chosen = settings.Settings(models={"vectors": settings.ModelSettings(source={"path": "."})})
    assert served_explainers.side(chosen, wanted, served) is None
    params = Catalogue.builtin().check_params(Catalogue.builtin().tasks["topic"], {"explain": True}, field="params")
    assert served_explainers.way({"vectors": served}, "vectors", []) == "vectors"
    with pytest.raises(InvalidInput, match="'vectors' explains nothing here"):
        served_explainers.way({"vectors": served}, "vectors", [params])


def test_weights_are_loaded_with_the_first_item_only(tmp_path: Path) -> None:
    """In a thread, so that the device goes on with others; what is wrong with them is told to who waits for them,
    each time.
    """
    folder = tiny.bert(tmp_path / "own")
    catalogue = Catalogue({}).with_models({"own": {"tasks": {"label": "text-classification"}}}, where="fleet.toml")
    wanted = ModelToLoad.from_spec(HF, ModelSpec("own", folder, "1", catalogue.tasks, {}))
    chosen = settings.Settings(models={"own": settings.ModelSettings(source={"path": "."})})
    side = served_explainers.side(chosen, wanted, ServedModel(wanted.build(), "1", Budget(256, 64)))
    assert side is not None
    model = side[0].build()
    assert isinstance(model, ExplainingModel)
    model.load(DEVICE)
    params = {"label": catalogue.check_params(catalogue.tasks["label"], {"explain": True}, field="params")}
    row = model.prepare("the film was good", params)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(b"nothing")
    for _ in range(2):
        with pytest.raises(
            LoadingFailed, match=r"^cannot load the weights for explanations: .*(?i:header|safetensors)"
        ):
            model.forward(model.collate([row]), {"label": np.array([0])})
        model.clear()
    (folder / "model.safetensors").write_bytes(weights)
    [output] = model.forward(model.collate([row]), {"label": np.array([0])})["label"]
    assert "explanation" in model.finish(catalogue.tasks["label"], output, params["label"], row)[0]
