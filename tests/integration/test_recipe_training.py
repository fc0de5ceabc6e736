"""Recipes trained on tiny encoders with random weights, and the folders that they come to, by the worker's code."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from producers.wire.errors import ConfigurationError
from tests import tiny_checkpoints, training_checkpoints
from workers import settings
from workers.batching.serving import served_models
from workers.models.interface.model import Model
from workers.models.sources.model_source import Pulled
from workers.training.loop import trainer, training_checkpoint
from workers.training.loop.training_checkpoint import Progress
from workers.training.recipes import labelled_rows, recipe_file, training_run
from workers.training.recipes.training_run import RecipeTraining, TrainingCard
from workers.training.training_batches import all_of

FILLING = ("the", "a", "film", "was", "said", "it", "of", "team", "year")
PLACES = ("berlin", "london", "paris")

ALL_KINDS = """
[tasks.mood]
kind = "classification"
label = "mood"
[tasks.place]
kind = "classification"
label = "place"
head = "transformers"
[tasks.stars]
kind = "regression"
label = "stars"
fusion = ["mood"]
[tasks.price]
kind = "regression"
label = "stars"
head = "transformers"
[tasks.about]
kind = "multi-label"
label = "about"
fusion = ["mood", "stars"]
[tasks.places]
kind = "token-labels"
label = "entities"
[tasks.where]
kind = "answers"
[tasks.alike]
kind = "similarity"
scale = 5
[tasks.find]
kind = "ranking"
negatives = 2
"""


def rows(count: int) -> list[dict[str, Any]]:
    """Return texts with a telling word for each label, among words that tell nothing."""
    random = Random(1)
    return [_row(random, number) for number in range(count)]


def _row(random: Random, number: int) -> dict[str, Any]:
    good, place = random.random() < 0.5, random.choice(PLACES)
    words = [random.choice(FILLING) for _ in range(random.randint(2, 8))]
    words += [random.choice(("good", "fine") if good else ("bad", "dull")), place]
    random.shuffle(words)
    text = " ".join(words)
    # few inputs come twice; from 25 on, half of the pairs to test are alike, else Spearman's coefficient stays under 0.8
    rare = " ".join(FILLING[(number + 25) // power % 9] for power in (1, 9))
    start, other = text.index(place), random.choice(PLACES)
    row = {
        "text": text,
        "mood": ("good" if good else "bad") if number % 3 else None,
        "place": place,
        "stars": 100 + 20 * good + random.random(),
        "about": [word for word in ("film", "team") if word in words],
        "entities": [{"start": start, "end": start + len(place), "label": "LOC"}],
        "question": "where is it ?",
        "context": text,
        "answer": place,
        "sentence1": f"{place} the film {rare}",
        "sentence2": f"a team {other}",
        "score": 5.0 * (place == other),
        "positive": f"{place} {random.choice(FILLING)} {random.choice(FILLING)}",
    }
    return row | {"query": f"{row['positive']} said {rare}"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an encoder and 240 rows."""
    path = tmp_path_factory.mktemp("recipes")
    tiny_checkpoints.bert(path / "encoder", "BertModel")
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(240)), encoding="utf-8")
    return path


def recipe(folder: Path, out: Path, tasks: str, train: str = "") -> Path:
    path = out.with_suffix(".toml")
    path.write_text(
        f'[train]\nbackbone = {{ path = "{folder}/encoder" }}\nout = "{out}"\nrows = 16\nrate = 1e-3\n{train}\n'
        f'[data]\ntrain = "{folder}/rows.jsonl"\n{tasks}',
        encoding="utf-8",
    )
    return path


def trained(path: Path, *, resume: bool = False) -> tuple[RecipeTraining, TrainingCard]:
    training = training_run.prepare(recipe_file.load(path), resume=resume)
    return training, training_run.run(training, lambda *_: None)


def served(training: RecipeTraining) -> Model:
    """Return the model of the folder's own settings, loaded and tried out as in a worker."""
    chosen = settings.load(training.out / "fleet.toml", environment={})
    model = served_models.build(served_models.model_to_load(chosen, training.recipe.name))
    assert model.revision
    model.load("cpu")
    model.try_out()
    return model


def answers(model: Model, training: RecipeTraining, name: str) -> list[Any]:
    """Return the served answers to a task's test rows."""
    kind, task = training.rows.tasks[name], model.spec.tasks[name]
    own = [row for row in training.rows.test if name in row.labels]
    params = [kind.params] * len(own)
    prepared = all_of(
        model.prepare_many([kind.content(row.columns, "") for row in own], [{name: kind.params} for _ in own])
    )
    outputs = model.forward(model.collate(prepared), {name: np.arange(len(own))})[name]
    return all_of(model.finish_many(task, outputs, params, prepared))


def test_the_served_answers_are_those_of_the_training(folder: Path, tmp_path: Path) -> None:
    """Of every kind, by the folder's own settings, in one pass of the backbone."""
    training, card = trained(recipe(folder, tmp_path / "all", ALL_KINDS, "steps = 2\nevaluate_every = 1"))
    subject = training_run.subject_of(training)
    network = subject.build(card.recipe)
    training_checkpoint.load_best(training.out, network)
    training_run.settle(subject, network)
    expected: dict[int, list[Any]] = {}
    for number, answer, _ in (one for part in training_run.answers(subject, network) for one in part):
        expected.setdefault(number, []).append(answer)
    model = served(training)
    for number, name in enumerate(training.rows.tasks):
        found = sorted(answers(model, training, name), key=repr)
        assert_close(found, sorted(expected[number], key=repr))
    assert set(card.tasks) == set(training.rows.tasks)

    content = next(row.columns["text"] for row in training.rows.test)
    tasks = [name for name, task in model.spec.tasks.items() if task.kind.modality == "text"]
    params = {name: model.spec.tasks[name].kind.params() for name in tasks}
    passes = model.passes
    model.forward(model.collate([model.prepare(content, params)]), {name: np.arange(1) for name in tasks})
    assert model.passes == passes + 1
    head = transformers.AutoModelForTokenClassification.from_pretrained(training.out / "heads" / "places")
    own = load_file(training.out / "backbone" / "model.safetensors")
    assert torch.equal(head.bert.embeddings.word_embeddings.weight, own["embeddings.word_embeddings.weight"])


def assert_close(some: Any, others: Any) -> None:
    """Numbers that passed through other sums may differ in their last digits."""
    if isinstance(some, float | np.floating):
        assert some == pytest.approx(others, abs=2e-5)
    elif isinstance(some, list | dict):
        assert len(some) == len(others)
        pairs = zip(some, others, strict=True) if isinstance(some, list) else ((v, others[k]) for k, v in some.items())
        for one, other in pairs:
            assert_close(one, other)
    else:
        assert some == others


@pytest.mark.parametrize(("count", "names"), [(5, ("place", "places")), (1, ("place", "places", "where"))])
def test_losses_are_those_of_transformers(folder: Path, tmp_path: Path, count: int, names: Sequence[str]) -> None:
    """The loss of a batch is what transformers computes for it: of entities, a mean over the tokens of all rows.

    That of answers is not in a batch, whose padding transformers takes for tokens.
    """
    path = recipe(folder, tmp_path / "losses", ALL_KINDS)
    training = training_run.prepare(recipe_file.load(path), resume=False)
    subject = training_run.subject_of(training)
    recipe_ = msgspec.structs.replace(training_run.loop_recipe(training), weights=dict.fromkeys(subject.tasks, 1.0))
    network = subject.build(recipe_).eval()
    examples = subject.examples("train", "cpu")
    batch = examples.batch(examples.places()[:count])
    with torch.no_grad():
        tallies = dict(zip(subject.tasks, network(**batch)[1].tolist(), strict=True))
    inputs = {name.removeprefix("input/"): tensor for name, tensor in batch.items() if name.startswith("input/")}
    for name in names:
        task = network.tasks[list(subject.tasks).index(name)]
        module: Any = task.module
        module.bert = network.encoder.backbone
        rows_ = batch[f"of/{name}"].flatten()
        longest = int(inputs["attention_mask"][rows_].sum(1).max())
        own = {key: tensor[rows_][:, :longest] for key, tensor in inputs.items()}
        with torch.no_grad():
            loss = float(module(**own, **_labels(batch)[name]).loss)
        examples_, whole = tallies[name]
        assert whole / examples_ == pytest.approx(loss, rel=1e-4), name


def _labels(batch: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    first, last = batch["to/where"].unbind(1)
    return {
        "place": {"labels": batch["to/place"]},
        "places": {"labels": batch["to/places"]},
        "where": {"start_positions": first, "end_positions": last},
    }


def test_a_folder_with_a_training_is_not_taken(folder: Path, tmp_path: Path) -> None:
    """Another training would overwrite it, or go on with other rows."""
    path = recipe(folder, tmp_path / "twice", '[tasks.mood]\nkind = "classification"\nlabel = "mood"\n', "steps = 1")
    trained(path)
    with pytest.raises(ConfigurationError, match="has a training; add --resume"):
        training_run.prepare(recipe_file.load(path), resume=False)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").touch()
    with pytest.raises(ConfigurationError, match=r"has other files, such as notes.txt; name another folder"):
        training_run.prepare(recipe_file.load(recipe(folder, tmp_path / "taken", ALL_KINDS)), resume=True)
    before = files(tmp_path / "twice")
    text = path.read_text().replace('label = "mood"', 'label = "mood"\nlabels = ["good", "bad"]')
    for changed in (text, text.replace("rows = 16", "rows = 8")):
        path.write_text(changed)
        with pytest.raises(ConfigurationError, match="made by another recipe"):
            trained(path, resume=True)
        assert files(tmp_path / "twice") == before


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


MOOD = '[tasks.mood]\nkind = "classification"\nlabel = "mood"\n'
FIND = '[tasks.find]\nkind = "ranking"\nnegatives = 3\n'
SAY = '[tasks.say]\nkind = "text-to-text"\nlabel = "answer"\nprefix = "say: "\n'
SIZE = '[tasks.size]\nkind = "tabular-regression"\nlabel = "stars"\ninput = ["place", "text"]\n'


@pytest.mark.parametrize(
    ("tasks", "train", "before", "after"),
    [
        (MOOD, "", 'label = "mood"', 'label = "mood"\ninput = "context"'),
        (MOOD, "sharing = 'lora'\nlora_rank = 4", "lora_rank = 4", "lora_rank = 5"),
        (FIND, "", "negatives = 3", "negatives = 2"),
        (SAY, 'backbone = "translation"', "say: ", "speak: "),
        (SIZE, "hidden = [4]", "[4]", "[5]"),
        (SIZE, "", 'input = ["place", "text"]', 'input = ["text"]'),
    ],
)
def test_a_changed_setting_is_another_recipe(
    folder: Path, tmp_path: Path, tasks: str, train: str, before: str, after: str
) -> None:
    """Of all settings on which the weights depend, also those that no label shows."""
    text = f'[train]\nsteps = 1\n{train}\n[data]\ntrain = "{folder}/rows.jsonl"\n{tasks}'
    found = []
    for own in (text, text.replace(before, after)):
        (tmp_path / "one.toml").write_text(own, encoding="utf-8")
        file = recipe_file.load(tmp_path / "one.toml")
        training = RecipeTraining(file, labelled_rows.read(file), Pulled(folder / "encoder", "1"), tmp_path)
        found.append(training_run.loop_recipe(training))
    training_checkpoint.tell(tmp_path, found[0], Progress())
    assert training_checkpoint.of_recipe(tmp_path, found[0]) is not None
    with pytest.raises(ConfigurationError, match="made by another recipe"):
        training_checkpoint.of_recipe(tmp_path, found[1])


def test_a_checkpoint_of_an_older_version_goes_on(folder: Path, tmp_path: Path) -> None:
    """It tells fewer settings than its recipe has."""
    training = training_run.prepare(recipe_file.load(recipe(folder, tmp_path / "older", MOOD)), resume=False)
    wanted = training_run.loop_recipe(training)
    older = msgspec.structs.replace(wanted, subject=wanted.subject[:16])
    training_checkpoint.tell(tmp_path, older, Progress(step=3))
    saved = training_checkpoint.of_recipe(tmp_path, wanted)
    assert saved is not None
    assert saved.progress.step == 3


@pytest.mark.training
def test_every_kind_learns(folder: Path, tmp_path: Path) -> None:
    """From rows whose labels are told by single words."""
    _, card = trained(recipe(folder, tmp_path / "learnt", ALL_KINDS, "steps = 300\nevaluate_every = 50\npatience = 20"))
    scores = {name: training_run.main(task) for name, task in card.tasks.items()}
    assert min(scores.values()) > 0.8, scores
    assert abs(card.tasks["price"].scores["mae"]) < 5


@pytest.mark.training
@pytest.mark.parametrize(
    "train",
    [
        "sharing = 'lora'\nhead_rate = 5e-3",
        "sharing = 'frozen'\nhead_rate = 5e-3",
        "precision = 'bf16'",
        "accumulate = 4",
        "weights = { mood = 2.0 }",
    ],
)
def test_every_way_of_training_learns(folder: Path, tmp_path: Path, train: str) -> None:
    """And its folder is served."""
    tasks = '[tasks.mood]\nkind = "classification"\nlabel = "mood"\n'
    training, card = trained(recipe(folder, tmp_path / "way", tasks, f"steps = 100\npatience = 20\n{train}"))
    assert card.tasks["mood"].scores["accuracy"] > 0.8
    found = [answer[0]["label"] for answer in answers(served(training), training, "mood")]
    labels = [row.labels["mood"] for row in training.rows.test if "mood" in row.labels]
    right = sum(one == other for one, other in zip(found, labels, strict=True))
    assert right / len(labels) == pytest.approx(card.tasks["mood"].scores["accuracy"])
    start = transformers.AutoModel.from_pretrained(folder / "encoder").state_dict()
    backbone = load_file(training.out / "backbone" / "model.safetensors")
    same = all(torch.equal(tensor, start[name]) for name, tensor in backbone.items())
    assert same is ("frozen" in train)
    assert not [name for name in backbone if "lora" in name]


@pytest.mark.training
def test_a_killed_training_comes_to_the_same(folder: Path, tmp_path: Path) -> None:
    """SIGKILL between two checkpoints: `--resume` takes the steps again, and the scores are those of a whole one."""
    train = "steps = 60\nevaluate_every = 10\ncheckpoint_every = 10"
    whole, killed = (recipe(folder, tmp_path / name, ALL_KINDS, train) for name in ("whole", "killed"))
    assert_resumed(whole, killed)


def assert_resumed(whole: Path, killed: Path) -> None:
    """Kill the training of a recipe of 60 steps, let it go on, and compare it with an equal one."""
    command = [sys.executable, "-m", "producers.commands.main", "train", str(killed)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log = killed.with_suffix("") / trainer.LOG
    while process.poll() is None and (not log.is_file() or log.read_bytes().count(b"\n") < 25):
        signal.sigtimedwait([], 0.05)
    process.kill()
    process.wait()
    assert 25 <= log.read_bytes().count(b"\n") < 60
    _, expected = trained(whole)
    _, card = trained(killed, resume=True)
    assert [line.step for line in trainer.read_log(log.parent)] == [*range(1, 61)]
    assert_close([*_scores(card)], [*_scores(expected)])
    best, again = (training_checkpoints.best(path.with_suffix("")) for path in (whole, killed))
    for name, tensor in best.items():
        assert torch.allclose(tensor, again[name], atol=1e-6)


def _scores(card: TrainingCard) -> Sequence[float]:
    return [score for task in card.tasks.values() for score in task.scores.values()]


@pytest.mark.training
def test_a_training_is_compared_with_others(folder: Path, tmp_path: Path) -> None:
    """Each task alone, and all on the frozen backbone: on the same rows."""
    tasks = "".join(f'[tasks.{name}]\nkind = "classification"\nlabel = "{name}"\n' for name in ("mood", "place"))
    path = recipe(folder, tmp_path / "compared", tasks + 'fusion = ["mood"]\n', "steps = 100\npatience = 20")
    training, card = trained(path)
    whole = training_run.compare(training, card, lambda _: lambda *_: None)
    for task in whole.tasks.values():
        assert task.alone is not None
        assert task.frozen is not None
        assert task.alone > task.frozen >= (task.baseline or 0) - 0.2
    assert msgspec.json.decode((tmp_path / "compared" / "card.json").read_bytes(), type=TrainingCard) == whole


@pytest.mark.training
def test_a_backbone_with_a_head_of_its_own(folder: Path, tmp_path: Path) -> None:
    """A classifier of other labels is a backbone like any other: its labels are not the tasks'."""
    labels = {0: "a", 1: "b", 2: "c"}
    config = {"id2label": labels, "label2id": {name: number for number, name in labels.items()}}
    tiny_checkpoints.bert(tmp_path / "encoder", "BertForSequenceClassification", **config)
    (tmp_path / "rows.jsonl").write_bytes((folder / "rows.jsonl").read_bytes())
    training, card = trained(recipe(tmp_path, tmp_path / "other", ALL_KINDS, "steps = 2"))
    model = served(training)
    assert {answer[0]["label"] for answer in answers(model, training, "place")} <= set(PLACES)
    assert card.tasks["where"].test_rows == len(answers(model, training, "where"))


@pytest.mark.training
def test_two_texts_long_and_short(tmp_path: Path) -> None:
    """A backbone with byte-level tokens and without token types; long texts are cut, or read in windows."""
    tiny_checkpoints.roberta(tmp_path / "encoder", "RobertaModel")
    long = [dict(row, text=f"{row['text']} " * 8, entities=row["entities"]) for row in rows(60)]
    long = [
        dict(row, context=row["text"], answer={"text": row["place"], "start": row["text"].index(row["place"])})
        for row in long
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in long), encoding="utf-8")
    training, card = trained(recipe(tmp_path, tmp_path / "long", ALL_KINDS, "steps = 4\nmax_tokens = 48"))
    model = served(training)
    assert {len(answers(model, training, name)) for name in ("places", "where")} == {card.tasks["where"].test_rows}
