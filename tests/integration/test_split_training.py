"""`argosy train` by several processes, as commands: kills, restarts by torchrun, and errors told once."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from tests import tiny_checkpoints, training_checkpoints
from tests.conftest import free_port
from tests.integration.test_recipe_training import recipe, rows, trained
from tests.training_checkpoints import TOLERANCE
from workers.training.loop import trainer

pytestmark = pytest.mark.training

TRAIN = (sys.executable, "-m", "producers.commands.main", "train")
MOOD = '[tasks.mood]\nkind = "classification"\nlabel = "mood"\n'
STEPS = "steps = 60\nevaluate_every = 10\ncheckpoint_every = 10\ndropout = false\npatience = 20"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("split")
    tiny_checkpoints.bert(path / "encoder", "BertModel")
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(240)), encoding="utf-8")
    return path


@pytest.mark.parametrize("split", ["rows", "layers", "states", "stages"])
def test_torchrun_restarts_from_the_last_checkpoint(folder: Path, tmp_path: Path, split: str) -> None:
    """A process is killed; torchrun starts both again, and they come to the weights and scores of one process."""
    whole, killed = (recipe(folder, tmp_path / name, MOOD, STEPS) for name in ("whole", "killed"))
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1")
    address = ("--master-port", str(free_port()), "--no-python")
    process = psutil.Popen([*torchrun, *address, *TRAIN, str(killed), "--split", split], stderr=subprocess.PIPE)
    log = tmp_path / "killed" / trainer.LOG
    while process.poll() is None and (not log.is_file() or log.read_bytes().count(b"\n") < 25):
        time.sleep(0.02)
    children = [child for child in process.children() if "train" in child.cmdline()]
    assert len(children) == 2
    children[1].kill()
    _, told = process.communicate()
    assert process.returncode == 0, told.decode()
    assert [line.step for line in trainer.read_log(tmp_path / "killed")] == [*range(1, 61)]
    _, card = trained(whole)
    scores = json.loads((tmp_path / "killed" / "card.json").read_bytes())["tasks"]["mood"]["scores"]
    assert scores == card.tasks["mood"].scores
    found, expected = (training_checkpoints.last(tmp_path / name) for name in ("killed", "whole"))
    # 60 steps, five times as many as those of the tolerance
    assert training_checkpoints.furthest(expected, found)[0] < 5 * TOLERANCE
    assert torch.isfinite(next(iter(found.values()))).all()


def test_processes_come_to_a_served_folder(folder: Path, tmp_path: Path) -> None:
    """By `--processes`, with the same scores as one process's; compared trainings too."""
    path, other = (recipe(folder, tmp_path / name, MOOD, STEPS) for name in ("together", "alone"))
    command = [*TRAIN, str(path), "--processes", "2", "--split", "states", "--compare"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Scores on the test part" in done.stdout
    card = json.loads((tmp_path / "together" / "card.json").read_bytes())["tasks"]["mood"]
    assert card["alone"] == card["scores"]["accuracy"]
    _, alone = trained(other)
    assert card["scores"] == alone.tasks["mood"].scores


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--processes", "3", "--split", "stages"), "split: 2 layers cannot be 3 stages"),
        (("--processes", "2", "--split", "layers"), "tasks.mood.label: no row of data.train has a column 'feeling'"),
        (("--split", "states"), "split: one process has nobody to share states with; ask for more"),
    ],
)
def test_an_error_is_told_once(folder: Path, tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    """By the first process, in a line."""
    path = recipe(folder, tmp_path / "wrong", MOOD.replace('label = "mood"', 'label = "feeling"'))
    done = subprocess.run([*TRAIN, str(path), *options], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count(message) == 1
    assert "Traceback" not in done.stderr
