"""Joint training of an encoder with its heads, by real processes that exchange real gradients. The encoder is tiny and
its weights are random; dropout is off where trainings are compared.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import get_args

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed import GradBucket
from torch.futures import Future
from torch.multiprocessing.spawn import ProcessException

from producers.wire.errors import ConfigurationError
from tests import tiny_checkpoints
from tests.conftest import free_port
from tests.integration import test_recipe_training
from tests.training_checkpoints import TOLERANCE, furthest, last
from workers import settings
from workers.batching.serving import served_models
from workers.training.data import Example, Split
from workers.training.joint import corpus, joint_network, result
from workers.training.joint.corpus import Corpus
from workers.training.loop import processes, trainer
from workers.training.loop.processes import Process
from workers.training.loop.recipe import Compression, Recipe
from workers.training.loop.trainer import LogLine, Work
from workers.training.recipes import recipe_file, training_run
from workers.training.recipes.folder_subject import TrainedFolder
from workers.training.splits import compression
from workers.training.training_batches import best_labels

STEPS = 12
RECIPE = Recipe(steps=STEPS, rows=12, max_tokens=32, encoder_rate=1e-3, dropout=False, evaluate_every=6)

WORDS = {
    "mood": {"negative": ("bad", "dull"), "positive": ("good", "fine", "moving")},
    "place": {"berlin": ("berlin",), "london": ("london",), "paris": ("paris",)},
}
_FILLING = ("the", "a", "film", "was", "said", "it", "of", "team", "year")


def split(task: str, count: int) -> Split:
    """Return texts of one telling word among others that are none."""
    random = Random(task)
    found = []
    for number in range(count):
        label = random.choice(sorted(WORDS[task]))
        words = [random.choice(_FILLING) for _ in range(random.randint(2, 12))] + [random.choice(WORDS[task][label])]
        random.shuffle(words)
        found.append(Example(" ".join(words), label, str(number), "made"))
    return Split(found[: count // 2], found[count // 2 : count * 3 // 4], found[count * 3 // 4 :])


@pytest.fixture(scope="module")
def splits() -> dict[str, Split]:
    return {"mood": split("mood", 240), "place": split("place", 120)}


def tiny_encoder(folder: Path, **config: int) -> Path:
    """Write an encoder whose biases are not 0, as a trained one's: differences are shares of a tensor's values."""
    encoder = tiny_checkpoints.bert(folder, "BertModel", **config)
    tensors, chance = load_file(encoder / "model.safetensors"), torch.Generator().manual_seed(2)
    for name, tensor in tensors.items():
        if name.endswith("bias"):
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=chance))
    save_file(tensors, encoder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory, splits: Mapping[str, Split]) -> Corpus:
    folder = tiny_encoder(tmp_path_factory.mktemp("encoder"), num_hidden_layers=6)
    return corpus.read(folder, splits, RECIPE.max_tokens)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For networks this small, threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def alone(texts: Corpus, tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Work:
    """A training by this very process."""
    work = Work(corpus=texts, recipe=RECIPE, out=tmp_path_factory.mktemp("alone"))
    trainer.train(Process(), work)
    return work


SPLITS = ("rows", "layers", "states", "stages")

SHARED_KINDS = """
[tasks.mood]
kind = "classification"
label = "mood"
[tasks.stars]
kind = "regression"
label = "stars"
fusion = ["mood"]
[tasks.places]
kind = "token-labels"
label = "entities"
[tasks.where]
kind = "answers"
[tasks.find]
kind = "ranking"
negatives = 2
"""


def recipe_work(folder: Path, tasks: str, train: str = "") -> Work:
    """Return the training of a recipe of `argosy train`, on a tiny encoder whose biases are not 0."""
    tiny_encoder(folder / "encoder")
    rows = test_recipe_training.rows(240)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings_ = f"steps = {STEPS}\nevaluate_every = {STEPS}\ndropout = false\n{train}"
    path = test_recipe_training.recipe(folder, folder / "alone", tasks, settings_)
    training = training_run.prepare(recipe_file.load(path), resume=False)
    subject = training_run.subject_of(training)
    return Work(corpus=subject, recipe=training_run.loop_recipe(training), out=training.out)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Work:
    """A recipe's training by this very process."""
    work = recipe_work(tmp_path_factory.mktemp("shared"), SHARED_KINDS)
    trainer.train(Process(), work)
    return work


def one_by_one(process: Process, works: Sequence[Work]) -> None:
    """In one group, as starting processes takes longer than these trainings."""
    for work in works:
        rows = work.corpus.parts["train"] if isinstance(work.corpus, TrainedFolder) else None
        before = rows.decoded_bytes if rows else 0
        if work.out.name == "first half":  # the rest is another test's
            stopped_at(STEPS // 2, work, process)
        else:
            trainer.train(process, work)
        if rows:
            (work.out / f"decoded-{process.rank}").write_text(str(rows.decoded_bytes - before))


@pytest.fixture(scope="module")
def together(alone: Work, shared: Work, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of trainings by two processes, by what was special about them."""
    out = tmp_path_factory.mktemp("together")
    works = {
        name: replace(alone, out=out / name, recipe=msgspec.structs.replace(RECIPE, compression=name))
        for name in get_args(Compression)
    }
    works["accumulated"] = replace(alone, out=out / "accumulated", accumulate=3, bucket_mb=0.05)
    works["slow link"] = replace(alone, out=out / "slow link", link_bytes_per_s=1e9)
    works["layers"] = replace(alone, out=out / "layers", split="layers")
    # half of it by one process, the rest by two, each with its part of what the checkpoint has
    halfway = replace(alone, out=out / "halfway", split="layers", checkpoint_every=STEPS // 2)
    stopped_at(STEPS // 2, replace(halfway, split="rows"), Process())
    works["halfway"] = halfway
    for split in SPLITS:
        works[f"shared {split}"] = replace(shared, out=out / f"shared {split}", split=split)
    works["first half"] = replace(shared, out=out / "first half", split="stages", checkpoint_every=STEPS // 2)
    processes.run(one_by_one, [*works.values()], count=2, device="cpu")
    return {name: work.out for name, work in works.items()}


def stopped_at(step: int, work: Work, process: Process) -> None:
    """Take steps until there is a checkpoint at `step`, and no further."""
    for line in trainer.steps(process, work):
        if line.step == step:
            return


@pytest.mark.training
@pytest.mark.parametrize("name", ["none", "accumulated", "slow link", "layers", "halfway"])
def test_two_processes_come_to_what_one_comes_to(name: str, alone: Work, together: Mapping[str, Path]) -> None:
    """Each has half of every step's rows, or half of every layer."""
    assert furthest(last(alone.out), last(together[name]))[0] < TOLERANCE


@pytest.mark.training
@pytest.mark.parametrize("split", SPLITS)
def test_every_split_comes_to_what_one_process_comes_to(split: str, shared: Work, together: Mapping[str, Path]) -> None:
    """Of a recipe's tasks with heads of their own and of transformers, in fp32 and without dropout."""
    assert furthest(last(shared.out), last(together[f"shared {split}"]))[0] < TOLERANCE
    lines, others = (list(trainer.read_log(out))[-1] for out in (shared.out, together[f"shared {split}"]))
    assert lines.accuracies == pytest.approx(others.accuracies, abs=1e-3)


@pytest.mark.training
def test_one_process_goes_on_from_the_stages_of_two(shared: Work, together: Mapping[str, Path]) -> None:
    """Each stage has written its own layers, and their averages."""
    lines = trainer.train(Process(), replace(shared, out=together["first half"]))
    assert [line.step for line in lines] == [*range(STEPS // 2 + 1, STEPS + 1)]
    assert furthest(last(shared.out), last(together["first half"]))[0] < TOLERANCE


@pytest.mark.training
@pytest.mark.parametrize("split", ["rows", "states"])
def test_a_process_decodes_only_its_rows(split: str, shared: Work, together: Mapping[str, Path]) -> None:
    """The steps are one epoch: each of two processes decodes half of it."""
    assert isinstance(shared.corpus, TrainedFolder)
    whole = shared.corpus.parts["train"].bytes * STEPS * shared.recipe.rows / sum(shared.corpus.stream_sizes)
    for rank in range(2):
        decoded = int((together[f"shared {split}"] / f"decoded-{rank}").read_text())
        assert 0.8 / 2 * whole < decoded < 1.2 / 2 * whole


def test_micro_batches_come_to_what_one_batch_comes_to(alone: Work, tmp_path: Path) -> None:
    """Their gradients add up, so a step's rows may be more than memory holds at a time."""
    trainer.train(Process(), replace(alone, out=tmp_path, accumulate=4))
    assert furthest(last(alone.out), last(tmp_path))[0] < TOLERANCE


@pytest.mark.parametrize(("bucket_mb", "hidden"), [(0.05, True), (1000.0, False)])
def test_gradients_go_out_while_others_are_computed(
    alone: Work, tmp_path: Path, bucket_mb: float, hidden: bool
) -> None:
    """Those of the embeddings, at the network's other end, come last; in one bucket, all wait for them."""
    events: list[str] = []
    work = replace(alone, out=tmp_path, bucket_mb=bucket_mb, checkpoint_every=0)

    def step(process: Process, work: Work) -> None:
        training = trainer.prepare(process, work, Recorded(events))
        words = training.network.encoder.backbone.embeddings.word_embeddings.weight
        words.register_post_accumulate_grad_hook(lambda _: events.append("last gradient"))
        steps = training.run()
        next(steps)
        events.clear()  # DDP makes its buckets by the order that it sees in the first step
        next(steps)

    processes.run(step, work, count=1, device="cpu", group=True)
    assert events.count("last gradient") == 1
    sent_before = events.index("last gradient")
    assert sent_before == events.count("sent") - 1
    assert (sent_before > 0) is hidden


class Recorded(compression.SlowLink):
    """A link that notes when it is given something."""

    def __init__(self, events: list[str]) -> None:
        self._events = events

    def carry(self, bucket: GradBucket, average: Future[torch.Tensor], given_bytes: int) -> Future[torch.Tensor]:
        self._events.append("sent")
        return average


def test_torchrun_says_who_is_who(alone: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its environment goes before what is asked for: each process that it starts is one of the group."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    for name, value in ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"} | address).items():
        monkeypatch.setenv(name, value)
    processes.run(trainer.train, replace(alone, out=tmp_path), count=2, device="cpu")
    assert next(trainer.read_log(tmp_path)).given_bytes > 0
    assert furthest(last(alone.out), last(tmp_path))[0] < TOLERANCE


@pytest.mark.training
@pytest.mark.parametrize(("name", "most_share"), [("fp16", 0.5), ("bf16", 0.5), ("powersgd", 0.4), ("topk", 0.03)])
def test_compressed_gradients_are_fewer_bytes_and_teach(
    name: str, most_share: float, together: Mapping[str, Path]
) -> None:
    """After the steps whose gradients go whole, where there are such."""
    plain, lines = (list(trainer.read_log(together[kind])) for kind in ("none", name))
    assert {line.given_bytes for line in plain} == {line.uncompressed_bytes for line in plain}
    assert plain[0].uncompressed_bytes == lines[0].uncompressed_bytes > 0
    for line in lines[compression.WHOLE_STEPS :]:
        assert line.given_bytes <= most_share * line.uncompressed_bytes
    assert all(after < before for before, after in zip(some_losses(lines[:3]), some_losses(lines[-3:]), strict=True))


def some_losses(lines: Sequence[LogLine]) -> list[float]:
    """Return each task's mean loss over some steps."""
    by_task = zip(*(line.losses for line in lines), strict=True)
    return [statistics.mean(loss for loss in losses if loss is not None) for losses in by_task]


def test_what_is_not_sent_is_kept_for_later() -> None:
    """Without error feedback small gradients would never arrive, however long they point the same way."""
    kept = compression.TopShare(share=0.5)
    gradient = torch.tensor([4.0, 1.0, -3.0, 0.5])
    _, chosen = kept.chosen(0, gradient.clone())
    assert chosen.tolist() == [4.0, -3.0]
    places, chosen = kept.chosen(0, torch.tensor([0.0, 1.0, 0.0, 0.5]))
    assert sorted(zip(places.tolist(), chosen.tolist(), strict=True)) == [(1, 2.0), (3, 1.0)]


@pytest.mark.training
def test_a_killed_training_goes_on(alone: Work, tmp_path: Path) -> None:
    """SIGKILL between two checkpoints: what was done since the last one is done again, and comes out the same."""
    work = replace(alone, out=tmp_path, checkpoint_every=4)
    with pytest.raises(
        (ProcessException, ConfigurationError)
    ):  # of the killed one, or of the other, whose exchange broke off
        processes.run(killed_at_six, work, count=2, device="cpu")
    assert [line.step for line in trainer.read_log(tmp_path)] == [1, 2, 3, 4, 5, 6]
    again = trainer.train(Process(), work)
    assert [line.step for line in again] == [*range(5, STEPS + 1)]
    assert [line.step for line in trainer.read_log(tmp_path)] == [*range(1, STEPS + 1)]
    assert furthest(last(alone.out), last(tmp_path))[0] < TOLERANCE


def killed_at_six(process: Process, work: Work) -> None:
    for line in trainer.steps(process, work):
        if line.step == 6 and process.is_first:
            os.kill(os.getpid(), signal.SIGKILL)


def test_another_recipe_does_not_go_on(alone: Work) -> None:
    """Its steps would not be those that the checkpoint says were taken."""
    other = msgspec.structs.replace(RECIPE, seed=1)
    with pytest.raises(ConfigurationError, match="made by another recipe"):
        trainer.train(Process(), replace(alone, recipe=other))


def test_early_stopping(alone: Work, tmp_path: Path) -> None:
    """Rates of 0 never get better than they were at first."""
    still = msgspec.structs.replace(RECIPE, steps=50, evaluate_every=2, patience=2, encoder_rate=0.0, head_rate=0.0)
    lines = trainer.train(Process(), replace(alone, recipe=still, out=tmp_path))
    assert lines[-1].step == 6
    assert trainer.train(Process(), replace(alone, recipe=still, out=tmp_path)) == []


@pytest.mark.long
def test_the_folder_is_served_as_it_is(
    texts: Corpus, splits: dict[str, Split], tmp_path: Path, one_thread: None
) -> None:
    """By the settings that lie in it, it answers what was learnt, with dropout and learnt weights of the tasks'
    losses.
    """
    recipe = msgspec.structs.replace(RECIPE, steps=80, dropout=True, evaluate_every=20)
    trainer.train(Process(), Work(corpus=texts, recipe=recipe, out=tmp_path, checkpoint_every=0))
    result.write(tmp_path, texts, recipe)
    chosen = settings.load(tmp_path / result.SETTINGS, environment={})
    model = served_models.build(served_models.model_to_load(chosen, "joint"))
    model.load("cpu")
    card = result.judge(model, model, {task: part.test for task, part in splits.items()})
    for task, part in splits.items():
        answers = best_labels(model, task, [example.text for example in part.test])
        right = [answer == example.label for answer, example in zip(answers, part.test, strict=True)]
        assert card[task].joint == statistics.mean(right) > 0.9
        assert card[task].majority < 0.75


def test_rows_must_go_round(alone: Work, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="rows: 12 cannot be dealt to 13"):
        trainer.train(Process(), replace(alone, out=tmp_path, accumulate=13))


def test_layers_need_somebody_to_share_them(alone: Work, tmp_path: Path) -> None:
    for split in ("layers", "states", "stages"):
        with pytest.raises(ConfigurationError, match=f"one process has nobody to share {split}"):
            trainer.train(Process(), replace(alone, out=tmp_path, split=split))


def test_weights_must_name_the_tasks(alone: Work, tmp_path: Path) -> None:
    other = msgspec.structs.replace(RECIPE, weights={"mood": 1.0})
    with pytest.raises(ConfigurationError, match="weights: must name mood, place"):
        trainer.train(Process(), replace(alone, recipe=other, out=tmp_path))


def test_an_encoder_must_be_deep_enough(tmp_path: Path) -> None:
    """The heads read layers 3 to 6."""
    folder = tiny_checkpoints.bert(tmp_path, "BertModel")
    with pytest.raises(ConfigurationError, match="has 2 layers"):
        joint_network.build(folder, {"mood": 2}, None, seed=1)
