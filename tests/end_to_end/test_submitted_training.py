"""Trainings as jobs of a running fleet: beside inference, over the death of a worker, cancelled, and refused."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import psutil
import pytest
from redis import Redis

from producers import Client
from producers.wire.training.training_job import TrainingProgress, training_progress
from tests.end_to_end.processes import fleet_in, until
from workers.fleet.local import LocalFleet

pytestmark = [pytest.mark.training, pytest.mark.timeout(600)]

FLEET = """
[worker]
models = ["scripted"]
threads = 1
trainings = ["recipes"]
lease_s = 4
publish_overdue_s = 4
reconcile_every_s = 0.5
[models.scripted]
class = "tests.scripted_model:ScriptedModel"
[models.scripted.tasks.echo]
kind = "text-classification"
"""

RECIPE = """
[train]
hidden = [16]
steps = {steps}
rows = 64
checkpoint_every = 50
evaluate_every = 250
patience = 100
[data]
train = "rows.csv"
[tasks.side]
kind = "tabular-classification"
label = "side"
"""


@dataclass
class Trained:
    """A fleet whose worker takes trainings of the recipes in a folder."""

    fleet: LocalFleet
    client: Client
    redis: Redis
    recipes: Path

    def recipe(self, name: str, steps: int) -> Path:
        path = self.recipes / f"{name}.toml"
        path.write_text(RECIPE.format(steps=steps), encoding="utf-8")
        return path

    def submit(self, recipe: Path) -> str:
        return argosy("train", str(recipe), "--submit").partition("job ")[2].partition(":")[0]

    def progress(self, job: str) -> TrainingProgress | None:
        return training_progress(self.redis, job)

    def step(self, job: str) -> int:
        return progress.report.step if (progress := self.progress(job)) else 0

    def output(self, job: str) -> dict[str, Any]:
        (row,) = self.client.ask(lambda store: store.results(job))
        assert row.error is None, row.error
        return dict(row.output)


def argosy(*words: str, code: int = 0) -> str:
    """Run a command in a process of its own; return what it prints."""
    command = [sys.executable, "-m", "producers.commands.main", *words]
    ran = subprocess.run(command, check=False, capture_output=True, text=True)
    assert ran.returncode == code, ran.stderr
    return ran.stdout + ran.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    with trained_in(tmp_path_factory.mktemp("trained")) as found:
        yield found


@contextmanager
def trained_in(folder: Path, **options: int) -> Iterator[Trained]:
    recipes = folder / "recipes"
    recipes.mkdir()
    random = Random(1)
    with (recipes / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["x", "y", "side"])
        for _ in range(300):
            x, y = random.gauss(), random.gauss()
            writer.writerow([x, y, "in" if x * x + y * y + random.gauss() / 3 < 1 else "out"])
    with (
        fleet_in(folder, FLEET, **options) as fleet,
        Client(fleet.broker_url, fleet.store_url) as client,
        Redis.from_url(fleet.broker_url) as redis,
    ):
        yield Trained(fleet, client, redis, recipes)


def test_inference_goes_first_and_the_training_ends_as_if_alone(trained: Trained, tmp_path: Path) -> None:
    """It stands still beside an answer, goes back to its queue beside a long batch, and comes to the same scores."""
    recipe = trained.recipe("shared", 1500)
    job = trained.submit(recipe)
    until(lambda: trained.step(job))
    assert trained.client.submit("echo", "hello").result(timeout_s=60)["task"] == "echo"

    hold = tmp_path / "hold"
    held = trained.client.submit("echo", f"hold {hold}")
    until(hold.exists)
    interrupted = until(lambda: (now := trained.progress(job)) and "was interrupted" in now.waits and now)
    assert interrupted.report.step < 1500
    assert "was interrupted" in argosy("status", job)
    hold.unlink()
    held.result(timeout_s=60)

    trained.client.job(job).wait(300)
    found = trained.output(job)
    assert (found["folder"], found["steps"]) == (str(recipe.with_suffix("")), 1500)
    steps = [json.loads(line)["step"] for line in (Path(found["folder"]) / "log.jsonl").read_bytes().splitlines()]
    assert steps == [*range(1, 1501)]
    argosy("train", str(trained.recipe("alone", 1500)))
    alone = json.loads((trained.recipes / "alone" / "card.json").read_bytes())
    assert (alone["tasks"], alone["best_step"]) == (found["tasks"], found["best_step"])


def test_the_training_of_a_killed_worker_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    """The trainer dies with its worker; another worker takes the steps after the checkpoint, and none before."""
    with trained_in(tmp_path, workers_per_device=2) as pair:
        job = pair.submit(pair.recipe("killed", 1500))
        until(lambda: pair.step(job) >= 100)
        (worker,) = [pid for pid in pair.fleet.pids if trainers(pid)]
        (trainer,) = trainers(worker)
        os.kill(worker, signal.SIGKILL)
        psutil.wait_procs([trainer], timeout=30)
        assert not trainer.is_running()
        saved = json.loads((pair.recipes / "killed" / "checkpoint.json").read_bytes())["progress"]["step"]
        died = until(lambda: pair.progress(job))
        later = until(lambda: (now := pair.progress(job)) and now.node != died.node and now.report.step and now, 240)
        pair.client.job(job).wait(300)
        assert later.report.step > saved >= 100
        assert pair.output(job)["steps"] == 1500


def test_a_cancelled_training_stops(trained: Trained) -> None:
    """Its trainer ends with a checkpoint, from which `--resume` would go on."""
    job = trained.submit(trained.recipe("cancelled", 10**6))
    until(lambda: trained.step(job))
    argosy("cancel", job)
    until(lambda: trained.client.status(job).state == "cancelled")
    until(lambda: not any(trainers(pid) for pid in trained.fleet.pids))
    assert (trained.recipes / "cancelled" / "checkpoint.json").is_file()


def test_what_cannot_be_trained_is_refused(trained: Trained, tmp_path: Path) -> None:
    """Bad rows before they are queued; a recipe of another folder, and one that was changed since, by name."""
    jobs = len(trained.client.ask(lambda store: store.jobs()))
    (trained.recipes / "bad.csv").write_text("x,y,side\n1,2,in\n1,2,\xe4,3,4\n", encoding="utf-8")
    bad = trained.recipe("bad", 5)
    bad.write_text(bad.read_text(encoding="utf-8").replace("rows.csv", "bad.csv"), encoding="utf-8")
    assert "bad.csv" in argosy("train", str(bad), "--submit", code=1)
    argosy("train", str(trained.recipe("split", 5)), "--submit", "--processes", "2", code=2)
    assert len(trained.client.ask(lambda store: store.jobs())) == jobs

    elsewhere = tmp_path / "elsewhere.toml"
    text = RECIPE.format(steps=5).replace("rows.csv", str(trained.recipes / "rows.csv"))
    elsewhere.write_text(text, encoding="utf-8")
    hold = tmp_path / "hold"
    held = trained.client.submit("echo", f"hold {hold}")
    until(hold.exists)
    changed = trained.recipe("changed", 5)
    refused = [trained.submit(elsewhere), trained.submit(changed)]
    trained.recipe("changed", 6)
    hold.unlink()
    held.result(timeout_s=60)
    said = []
    for job in refused:
        trained.client.job(job).wait(60)
        (row,) = trained.client.ask(lambda store, job=job: store.results(job))
        said.append(row.error["message"] if row.error else "")
    assert "not a recipe that this node may read" in said[0]
    assert "has changed since it was submitted" in said[1]


def trainers(worker: int) -> list[psutil.Process]:
    try:
        children = psutil.Process(worker).children()
    except psutil.NoSuchProcess:
        return []
    return [child for child in children if any("submitted_run" in word for word in child.cmdline())]
