"""Recipes over pictures, clips and recordings: trained, served, split, and refused by name."""

from __future__ import annotations

import csv
import io
import wave
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from producers.wire.errors import ConfigurationError
from tests import tiny_checkpoints as tiny
from tests import videos
from tests.integration.test_recipe_training import answers, assert_close, served, trained
from tests.training_checkpoints import TOLERANCE, furthest, last
from workers.training.loop import processes, trainer, training_checkpoint
from workers.training.loop.processes import Process
from workers.training.loop.recipe import Split
from workers.training.loop.trainer import Work
from workers.training.recipes import recipe_file, training_run
from workers.training.recipes.labelled_rows import BadRows


def picture(number: int) -> bytes:
    """Return a picture of one of two colours, of any size."""
    random = np.random.default_rng(number)
    pixels = random.integers(0, 80, (30 + number % 9, 40, 3), np.uint8)
    pixels[..., 2 * (number % 2)] += 150
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def clip(number: int) -> bytes:
    return videos.file(videos.moving(10, 64, 48, number % 2))


def recording(number: int) -> bytes:
    """Return half a second of one of two pitches, of any length."""
    steps = np.arange(6000 + 300 * (number % 5))
    sound = np.sin(steps * (0.05, 0.4)[number % 2]) + np.random.default_rng(number).normal(0, 0.1, len(steps))
    file = io.BytesIO()
    with wave.open(file, "wb") as written:
        written.setparams((1, 2, 16_000, 0, "NONE", ""))
        written.writeframes((sound * 8000).astype("<i2").tobytes())
    return file.getvalue()


def sounds_with_a_mask(folder: Path) -> Path:
    return tiny.wav2vec2(folder, "Wav2Vec2Model", norm="layer")


#: For each form: its kind, its files, their suffix, and a backbone.
FORMS: dict[str, tuple[str, Callable[[int], bytes], str, Callable[[Path], Path]]] = {
    "image": ("image-classification", picture, "png", tiny.vit),
    "video": ("video-classification", clip, "mp4", tiny.videomae),
    "audio": ("audio-classification", recording, "wav", tiny.ast),
    "waves": ("audio-classification", recording, "wav", sounds_with_a_mask),
}


def recipe(folder: Path, form: str, out: str = "out", train: str = "steps = 2", *, count: int = 24) -> Path:
    """Write files with their table of labels, a backbone, and a recipe of two tasks."""
    kind, make, suffix, backbone = FORMS[form]
    column = kind.partition("-")[0]
    if not (folder / "rows.csv").is_file():
        backbone(folder / "backbone")
        (folder / "files").mkdir()
        with (folder / "rows.csv").open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow([column, "label", "other"])
            for number in range(count):
                (folder / "files" / f"{number}.{suffix}").write_bytes(make(number))
                rows.writerow([f"files/{number}.{suffix}", "ab"[number % 2], "xyz"[number % 3] if number > 1 else ""])
    path = folder / f"{out}.toml"
    path.write_text(
        f'[train]\nbackbone = {{ path = "backbone" }}\nout = "{out}"\nrows = 6\nrate = 1e-3\ndropout = false\n{train}\n'
        f'[data]\ntrain = "rows.csv"\n[tasks.one]\nkind = "{kind}"\n[tasks.two]\nkind = "{kind}"\nlabel = "other"\n',
        encoding="utf-8",
    )
    return path


@pytest.mark.parametrize(
    "form", [form if form == "image" else pytest.param(form, marks=pytest.mark.training) for form in FORMS]
)
def test_the_served_answers_are_those_of_the_training(tmp_path: Path, form: str) -> None:
    """Of two tasks, in one pass, by the folder's own settings."""
    training, card = trained(recipe(tmp_path, form))
    subject = training_run.subject_of(training)
    network = subject.build(card.recipe)
    training_checkpoint.load_best(training.out, network)
    expected: dict[int, list[Any]] = {}
    for number, answer, _ in (one for part in training_run.answers(subject, network) for one in part):
        expected.setdefault(number, []).append(answer)
    model = served(training)
    for number, name in enumerate(training.rows.tasks):
        found = answers(model, training, name)
        assert len(found) == card.tasks[name].test_rows
        assert_close(sorted(found, key=repr), sorted(expected[number], key=repr))
    params = {name: kind.params for name, kind in training.rows.tasks.items()}
    prepared = model.prepare(training.rows.tasks["one"].content(training.rows.test[0].columns, ""), params)
    passes = model.passes
    model.forward(model.collate([prepared]), {name: np.arange(1) for name in params})
    assert model.passes == passes + 1


def test_a_folder_for_each_label_is_enough(tmp_path: Path) -> None:
    """The folder's name is the label."""
    tiny.vit(tmp_path / "backbone")
    for number in range(12):
        (tmp_path / "pictures" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        (tmp_path / "pictures" / "ab"[number % 2] / f"{number}.png").write_bytes(picture(number))
    path = tmp_path / "out.toml"
    path.write_text(
        '[train]\nbackbone = { path = "backbone" }\nsteps = 1\n[data]\ntrain = "pictures"\n[tasks.one]\n'
        'kind = "image-classification"\ninput = "path"\nlabel = "folder"\n',
        encoding="utf-8",
    )
    training = training_run.prepare(recipe_file.load(path), resume=False)
    assert training.tasks[0].labels == ("a", "b")
    assert len(training.rows.train) == 10


def test_bad_files_are_named(tmp_path: Path) -> None:
    """By the line that names them, before the training."""
    path = recipe(tmp_path, "image")
    (tmp_path / "files" / "3.png").write_bytes(b"no picture")
    (tmp_path / "files" / "5.png").unlink()
    with pytest.raises(BadRows, match=r"rows.csv:7: image: is .*5.png, which cannot be read"):
        training_run.prepare(recipe_file.load(path), resume=False)
    (tmp_path / "files" / "5.png").write_bytes(picture(5))
    with pytest.raises(BadRows, match=r"rows.csv:5: "):
        training_run.subject_of(training_run.prepare(recipe_file.load(path), resume=False))


def test_tasks_of_different_pictures_are_refused(tmp_path: Path) -> None:
    """A row is one input, and the second task would be taught on the pictures of the first."""
    path = recipe(tmp_path, "image")
    rows = (tmp_path / "rows.csv").read_text("utf-8").splitlines()
    named = [f"{row},{'back' if not number else row.split(',')[0]}" for number, row in enumerate(rows)]
    (tmp_path / "rows.csv").write_text("\n".join(named), encoding="utf-8")
    path.write_text(f'{path.read_text("utf-8")}input = "back"\n', encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"tasks\.two\.input: two and one read different columns, such as 'ba"):
        training_run.prepare(recipe_file.load(path), resume=False)


@pytest.mark.parametrize("split", ["layers", "stages"])
def test_a_split_that_is_not_known_here_is_refused(tmp_path: Path, split: Split) -> None:
    path = recipe_file.load(recipe(tmp_path, "image"))
    with pytest.raises(ConfigurationError, match=f"split: {split} of 'vit' cannot be cut"):
        training_run.prepare(path, resume=False, process=Process(0, 2), split=split)


def test_a_backbone_must_be_named_and_fit(tmp_path: Path) -> None:
    """A missing backbone, and one whose answers depend on padding, are refused by name."""
    path = recipe(tmp_path, "waves")
    text = path.read_text("utf-8")
    path.write_text(text.replace('backbone = { path = "backbone" }', ""), encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"train\.backbone: is missing"):
        training_run.prepare(recipe_file.load(path), resume=False)
    tiny.wav2vec2(tmp_path / "backbone", "Wav2Vec2Model", norm="group")
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"train.backbone: .* has no mask for padding"):
        training_run.subject_of(training_run.prepare(recipe_file.load(path), resume=False))


def _all(process: Process, works: Sequence[Work]) -> None:
    for work in works:
        trainer.train(process, work)


@pytest.mark.training
@pytest.mark.parametrize("form", FORMS)
def test_two_processes_come_to_what_one_comes_to(tmp_path: Path, form: str) -> None:
    """By rows and by states, and after a stop."""
    path = recipe(tmp_path, form, train="steps = 12\nevaluate_every = 6\ncheckpoint_every = 6", count=30)
    training = training_run.prepare(recipe_file.load(path), resume=False)
    corpus = training_run.subject_of(training)
    alone = Work(corpus=corpus, recipe=training_run.loop_recipe(training), out=tmp_path / "alone", checkpoint_every=6)
    trainer.train(Process(), alone)
    splits: tuple[Split, ...] = ("rows", "states")
    works = [replace(alone, out=tmp_path / split, split=split) for split in splits]
    halfway = replace(alone, out=tmp_path / "halfway")
    _ = next(line for line in trainer.steps(Process(), halfway) if line.step == 6)
    processes.run(_all, [*works, halfway], count=2, device="cpu")
    for work in (*works, halfway):
        assert furthest(last(alone.out), last(work.out))[0] < TOLERANCE, work.out.name
