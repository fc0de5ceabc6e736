"""Fine-tune the text encoder with all its heads at once: ``python -m workers.training.joint --out FOLDER [--processes
N]``.

After a stop or a kill, the same command continues from the last checkpoint. See docs/training.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from rich.console import Console
from rich.table import Table

from producers.wire.atomic_files import write_json
from producers.wire.catalogue import Catalogue
from producers.wire.command_line import one_line_errors
from workers.models.sources import model_source
from workers.training import data, head_features
from workers.training.data import SEED
from workers.training.joint import corpus, result
from workers.training.joint.result import Card, TaskCard
from workers.training.loop import processes, trainer, training_checkpoint
from workers.training.loop.recipe import Compression, Recipe, Split
from workers.training.loop.trainer import Work


def main() -> None:
    asked = _parser().parse_args()
    console, cache = Console(), model_source.cache_folder()
    given = {name: value for name, value in vars(asked).items() if name in Recipe.__struct_fields__}
    recipe = Recipe(**given)
    splits = {task: data.split(data.read(task, cache), seed=SEED) for task in data.READERS}
    encoder = head_features.encoder(cache)
    texts = corpus.read(encoder.folder, splits, recipe.max_tokens)
    work = Work(corpus=texts, recipe=recipe, out=asked.out, accumulate=asked.accumulate, split=asked.split)
    processes.run(trainer.train, work, count=asked.processes, device=asked.device)
    if processes.is_first():
        result.write(asked.out, texts, recipe)
        joint = result.model(asked.out, list(splits), recipe.max_tokens)
        frozen = head_features.text_model(cache, {task: Catalogue.builtin().tasks[task] for task in splits})
        scores = result.judge(joint, frozen, {task: split.test for task, split in splits.items()})
        card = Card(encoder.revision, training_checkpoint.best_step(asked.out), recipe, scores)
        write_json(asked.out / result.CARD, card)
        _show(scores, console)
        console.print(f"wrote {asked.out}; serve it by ARGOSY_FLEET={asked.out / result.SETTINGS} argosy up")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint, the log and the result")
    parser.add_argument(
        "--processes", type=int, default=1, help="train together (default: %(default)s; not with torchrun)"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: a GPU for each process")
    parser.add_argument("--accumulate", type=int, default=1, help="micro-batches of a step (default: %(default)s)")
    parser.add_argument("--split", choices=get_args(Split), default="rows", help="the processes' shares of a training")
    defaults = Recipe()
    for name in (
        "steps",
        "rows",
        "max_tokens",
        "temperature",
        "evaluate_every",
        "patience",
        "encoder_rate",
        "head_rate",
        "seed",
    ):
        value = getattr(defaults, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help="default: %(default)s")
    parser.add_argument(
        "--precision", choices=("fp32", "bf16"), default="fp32", help="of the passes; weights stay fp32"
    )
    parser.add_argument("--compression", choices=get_args(Compression), default="none", help="of gradients on the wire")
    parser.add_argument(
        "--weights",
        type=_weights,
        metavar="TASK=WEIGHT,…",
        help="of the tasks' losses (default: learnt by uncertainty)",
    )
    return parser


def _weights(text: str) -> dict[str, float]:
    return {name: float(weight) for name, _, weight in (part.partition("=") for part in text.split(","))}


def _show(scores: dict[str, TaskCard], console: Console) -> None:
    table = Table("test part", "texts", "joint", "frozen encoder", "majority label", title="Held-out accuracy")
    for task, own in scores.items():
        table.add_row(task, f"{own.texts:,}", *(f"{share:.1%}" for share in (own.joint, own.frozen, own.majority)))
    console.print(table)


if __name__ == "__main__":
    with one_line_errors():
        main()
