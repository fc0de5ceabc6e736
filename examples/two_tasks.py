"""Two tasks over a hundred numbers: ten classes (softmax) and five yes/no labels (binary cross-entropy).

    python -m examples.two_tasks [--folder two_tasks] [--rows 6000] [--epochs 20]

One command trains both from a Parquet file: once on shared layers with both losses, and once as separate models
(`--compare`). Then a fleet serves the shared model, whose worker answers both tasks in one pass.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from producers import Client
from producers.wire.catalogue import Catalogue
from workers import settings
from workers.fleet.local import LocalFleet
from workers.training.loop import trainer

COLUMNS = [f"x{number}" for number in range(100)]
CLASSES = [f"class {number}" for number in range(10)]
FLAGS = ["even", "high", "warm", "near", "new"]

RECIPE = """
[train]
out = "model"
hidden = [64, 32]                # the layers that both tasks share
epochs = {epochs}
evaluate_every = {steps}         # an epoch's steps
patience = {epochs}
rows = 64
rate = 2e-3
head_rate = 2e-3
weights = {{ class = 1.0, flags = 1.0 }}

[data]
train = "rows.parquet"
test = "test.parquet"
validation = "validation.parquet"

[tasks.class]                    # cross-entropy over ten classes
kind = "tabular-classification"
label = "class"

[tasks.flags]                    # binary cross-entropy of five labels
kind = "tabular-multi-label"
label = "flags"
"""


def rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Return rows of a hundred noisy views of eight hidden numbers, from which classes and flags follow."""
    world, chance = np.random.default_rng(0), np.random.default_rng(seed)
    views, centres, planes = (world.normal(size=shape) for shape in ((8, 100), (10, 8), (8, 5)))
    classes = chance.integers(0, 10, count)
    hidden = 1.5 * centres[classes] + chance.normal(size=(count, 8))
    numbers = hidden @ views + 2 * chance.normal(size=(count, 100))
    found = []
    for own, chosen, given in zip(numbers, classes, hidden @ planes > 0, strict=True):
        flags = [name for name, applies in zip(FLAGS, given, strict=True) if applies]
        found.append({**dict(zip(COLUMNS, own.tolist(), strict=True)), "class": CLASSES[chosen], "flags": flags})
    return found


def train(folder: Path, count: int, epochs: int) -> None:
    """Write the rows and the recipe, and train it by the command."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (name, part) in enumerate({"rows": count, "validation": count // 6, "test": count // 6}.items()):
        pq.write_table(pa.Table.from_pylist(rows(part, seed + 1)), folder / f"{name}.parquet")
    (folder / "model.toml").write_text(RECIPE.format(epochs=epochs, steps=count // 64), encoding="utf-8")
    command = [sys.executable, "-m", "producers.commands.main", "train", str(folder / "model.toml"), "--compare"]
    subprocess.run([*command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def show(out: Path) -> None:
    """Print the epochs, and the test scores of the shared and of the separate models."""
    for line in trainer.read_log(out):
        if line.accuracies is not None:
            losses = "  ".join(f"{loss:.3f}" for loss in line.losses if loss is not None)
            scores = "  ".join(f"{score:.3f}" for score in line.accuracies)
            print(f"step {line.step}: losses {losses}  validation {scores}")
    shared = json.loads((out / "card.json").read_bytes())["tasks"]
    for task, own in shared.items():
        alone = json.loads((out / "compare" / task / "card.json").read_bytes())["tasks"][task]
        for told, scores in (("shared", own["scores"]), ("separate", alone["scores"])):
            print(f"{task}, {told} layers: test accuracy {scores['accuracy']:.3f}")


def serve(folder: Path, some: list[dict[str, Any]]) -> None:
    """Ask a fleet that serves the trained folder for both tasks of some rows."""
    config = folder / "model" / "fleet.toml"
    inputs = [{name: row[name] for name in COLUMNS} for row in some]
    with LocalFleet(settings.load(config), folder / "fleet", config=config, flower=False) as fleet:
        catalogue = Catalogue.from_toml(config)
        with Client(fleet.broker_url, fleet.store_url, catalogue=catalogue) as client:
            job = client.submit_many(["class", "flags"], inputs, params={"flags": {"top_k": None}})
            job.wait(timeout_s=120)
            results = list(job.results())
    for seq, row in enumerate(some):
        answers = {result.task: result for result in results if result.seq == seq}
        one_pass = answers["class"].batch == answers["flags"].batch
        flags = [one["label"] for one in answers["flags"].output if one["score"] > 0.5]
        label = answers["class"].output[0]["label"]
        print(
            f"served{' in one pass' * one_pass}: {label} {sorted(flags)}; right: {row['class']} {sorted(row['flags'])}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("two_tasks"), help="a new folder (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=6000, help="to train on (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=20)
    asked = parser.parse_args()
    train(asked.folder, asked.rows, asked.epochs)
    show(asked.folder / "model")
    serve(asked.folder, rows(3, seed=99))


if __name__ == "__main__":
    main()
