"""Is any kind of task slower through the fleet than transformers' own pipeline on the same inputs?

Each entry of `ENTRIES` is run by both in turn, medians of the passes: through a whole fleet, from the submission until
the last row is in SQLite; and by a loop over the plain pipeline in this process, all cores, as its documentation has
it, and in batches of 8. Where transformers has no pipeline for a kind any more, the loop is the few lines that one
writes instead, over transformers' network.

`slowest_over_pipeline` is the slowest of these. A network of our own, of which transformers knows nothing, is beside a
bare loop over that very network: `slowest_over_own_loop`. That may be under 1, where an item is computed in less time
than it takes to bring it there and store its row.

A whole run with `--keep` writes the table in docs/models.md. Another task is another entry in
benchmarks/tasks/entries.py, another model a function in benchmarks/tasks/checkpoints.py.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import convention
from benchmarks.tasks import checkpoints
from benchmarks.tasks.entries import ENTRIES, Entry, Plain
from producers import Client
from producers.documents import write_index
from producers.wire.catalogue import Catalogue
from workers import settings
from workers.batching.serving import served_models
from workers.device import devices
from workers.models.sources import model_source
from workers.training import toml_text

TABLE = Path(__file__).parents[1] / "docs" / "models.md"

#: The heads of `reader`'s tasks. The other models are built-in ones, or `checkpoints.MAKERS`.
READER_HEADS = {"label": "labels", "about": "inference", "names": "entities", "answer": "answers", "fill": "masks"}


def prepared(folder: Path, entries: Sequence[Entry], *, tune: bool) -> tuple[Path, dict[str, Path]]:
    """Pull or make the entries' models; return the settings that serve them, and each one's folder.

    `tune` measures the models' backends, as a worker does before its first start with them.
    """
    built_in = settings.load(environment={})
    names = list(dict.fromkeys(entry.model for entry in entries))
    lines, folders = ["[worker]", f"models = {names}", f"tune_at_start = {toml_text.value(tune)}"], {}
    for name in names:
        own = [entry for entry in entries if entry.model == name]
        if name in built_in.models:
            convention.progress(f"pulling {name}")
            for own_name in (*built_in.used_by(name), name):
                source = model_source.parse(built_in.models[own_name].source, where=own_name)
                folders[name] = model_source.pull(source, model_source.cache_folder()).folder
        else:
            convention.progress(f"making {name}")
            folders[name] = folder / name
            _make(name, folders[name], [entry.task for entry in own])
            lines += ["", f"[models.{name}]", f'source = {{ path = "{folders[name]}" }}']
        for entry in own:
            if entry.task not in built_in.catalogue.tasks:
                lines += ["", f"[models.{name}.tasks.{entry.task}]", f'kind = "{entry.kind}"']
                lines += [f"{field} = {toml_text.value(value)}" for field, value in entry.declared.items()]
        if indexes := {entry.task: folder / "indexes" / entry.task for entry in own if entry.documents}:
            lines += ["", f"[models.{name}.options.indexes]", *(f'{task} = "{path}"' for task, path in indexes.items())]
        if heads := {entry.task: folders[name] / "heads" / entry.task for entry in own if _has_head(name, entry.task)}:
            lines += ["", f"[models.{name}.options.heads]", *(f'{task} = "{path}"' for task, path in heads.items())]
    file = folder / "fleet.toml"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    for name in names if tune else ():
        convention.progress(f"measuring backends of {name}")
        served_models.serve(settings.load(file), name, devices.cpu())  # the fleet finds what was decided
    return file, folders


def _has_head(name: str, task: str) -> bool:
    return name == "reader" and task in READER_HEADS


def _make(name: str, folder: Path, tasks: Sequence[str]) -> None:
    if name != "reader":
        checkpoints.MAKERS[name](folder)
        return
    folder.mkdir()
    for task in tasks:
        if _has_head(name, task):
            checkpoints.head(folder / "heads" / task, READER_HEADS[task])
    for file in checkpoints.encoder().iterdir():
        (folder / file.name).symlink_to(file)


# --- the runs -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """Items a second of one entry: through the fleet, by the plain pipeline, by the same in batches of 8. And its
    quality.
    """

    fleet: float
    plain: float
    batched: float
    quality: tuple[str, float, float] | None = None

    @property
    def ratio(self) -> float:
        return self.fleet / self.plain


def main() -> None:
    parser = convention.parser(__doc__)
    parser.add_argument("--only", nargs="+", metavar="TASK", help=f"of {', '.join(one.task for one in ENTRIES)}")
    given = parser.parse_args()
    chosen = [entry for entry in ENTRIES if not given.only or entry.task in given.only]
    if given.quick and not given.only:
        chosen = [entry for entry in ENTRIES if entry.task in ("likeness", "shows")]
    found: dict[str, Found] = {}
    with tempfile.TemporaryDirectory(prefix="argosy-catalogue-") as folder:
        for entry, one in measured(Path(folder), chosen, quick=given.quick):
            found[entry.task] = one
            convention.progress(
                f"{entry.kind}: {one.fleet:.1f}/s, pipeline {one.plain:.1f}/s, in batches {one.batched:.1f}/s"
            )
    figures = slowest(chosen, found)
    for entry in chosen:
        one = found[entry.task]
        figures |= {
            f"{entry.task}_items_per_s": round(one.fleet, 1),
            f"{entry.task}_over_pipeline": round(one.ratio, 3),
        }
        if one.quality:
            figures[f"{entry.task}_quality"] = round(one.quality[1], 4)
    if given.keep and not given.only:
        convention.write_between(TABLE, "catalogue", table(chosen, found))
    convention.report("catalogue", figures, keep=given.keep and not given.only)


def slowest(entries: Sequence[Entry], found: Mapping[str, Found]) -> dict[str, float]:
    """Return the least ratios: beside transformers, and beside bare loops over networks of our own."""
    sides = {
        "pipeline": [found[entry.task] for entry in entries if not entry.own_loop],
        "own_loop": [found[entry.task] for entry in entries if entry.own_loop],
    }
    figures = {f"slowest_over_{name}": round(min(one.ratio for one in own), 3) for name, own in sides.items() if own}
    batched = [one.fleet / one.batched for one in sides["pipeline"]]
    return figures | ({"slowest_over_batched_pipeline": round(min(batched), 3)} if batched else {})


def measured(folder: Path, entries: Sequence[Entry], *, quick: bool) -> Iterator[tuple[Entry, Found]]:
    import torch
    from transformers.utils import logging

    torch.set_num_threads(devices.available_cores())
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    file, folders = prepared(folder, entries, tune=not quick)
    with (
        convention.fleet(settings.load(file), config=file) as fleet,
        Client(fleet.broker_url, fleet.store_url, catalogue=Catalogue.from_toml(file)) as client,
    ):
        for entry in entries:
            if entry.documents:
                write_index(client, entry.documents(), folder / "indexes" / entry.task)
            plain = entry.plain(folders[entry.model])
            one = compared(client, entry, plain, count=6 if quick else entry.count, passes=1 if quick else 3)
            yield entry, replace(one, quality=entry.quality(client) if entry.quality and not quick else None)


def compared(client: Client, entry: Entry, plain: Plain, *, count: int, passes: int) -> Found:
    """Run an entry by all three in turn; a few inputs first, uncounted."""
    inputs = entry.inputs(count + 2)
    warm, inputs = inputs[:2], inputs[2:]
    fleet_pass(client, entry, warm)
    plain(warm, 1)
    seconds: dict[str, list[float]] = {"fleet": [], "plain": [], "batched": []}
    for _ in range(passes):
        seconds["fleet"].append(fleet_pass(client, entry, inputs))
        for name, batch_size in (("plain", 1), ("batched", 8)):
            started = time.monotonic()
            plain(inputs, batch_size)
            seconds[name].append(time.monotonic() - started)
    return Found(**{name: count / statistics.median(own) for name, own in seconds.items()})


def fleet_pass(client: Client, entry: Entry, inputs: Sequence[Any]) -> float:
    started = time.monotonic()
    job = client.submit_many(entry.task, inputs, params=dict(entry.params))
    status = job.wait(timeout_s=600)
    if status.succeeded != len(inputs):
        failed = next(row for row in job.results() if row.error)
        raise RuntimeError(f"{entry.task}: {status.succeeded} of {len(inputs)} succeeded: {failed.error}")
    return time.monotonic() - started


# --- the table ------------------------------------------------------------------------------------


def table(entries: Sequence[Entry], found: Mapping[str, Found]) -> str:
    """Return the table for docs/models.md."""
    lines = [
        "| task | kind | model and its source | on held-out data | items/s | pipeline, items/s | times as fast |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for entry in entries:
        one = found[entry.task]
        quality = "{} {:.3g} (baseline {:.3g})".format(*one.quality) if one.quality else ""
        plain = f"{one.plain:.1f}{' (own loop)' if entry.own_loop else ''}"
        lines.append(
            f"| `{entry.task}` | {entry.kind} | {entry.weights} | {quality} | {one.fleet:.1f} | {plain} | {one.ratio:.2f} |"
        )
    machine = convention.machine()
    date = time.strftime("%Y-%m-%d", time.gmtime())
    about = f"{machine['cores']} cores of {machine['cpu']}, {date}, commit {convention.versions()['commit']}."
    return "\n".join(lines) + f"\n\n{about}\n"


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
