"""Is any kind of task slower through the fleet than transformers' own pipeline on the same inputs?

Each entry of `ENTRIES` is run by both in turn, medians of the passes: through a whole fleet, from the submission until the last row
is in SQLite; and by a loop over the plain pipeline in this process, all cores, as its documentation has it, and in batches of 8. Where
transformers has no pipeline for a kind any more, the loop is the few lines that one writes instead.

A whole run with `--keep` writes the table in docs/models.md. Another task is another entry, its model another in `MODELS`.
"""

from __future__ import annotations

import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from benchmarks import checkpoints, convention
from benchmarks.workload import mixed_texts
from producers import Client
from producers.catalogue import Catalogue
from workers import devices, settings

TABLE = Path(__file__).parents[1] / "docs" / "models.md"
BEGIN, END = "<!-- catalogue: written by benchmarks/catalogue.py -->\n", "<!-- /catalogue -->"

#: What a plain run is: inputs and the batch size to answers.
Plain = Callable[[Sequence[Any], int], object]

LABELS = ["business", "sport", "politics"]


@dataclass(frozen=True)
class Entry:
    """A task to measure: `inputs` makes so many different ones, `plain` loads what the fleet is compared with.

    `weights` says whose they are. `quality`, if there is something to say, measures the task on held-out data: what was measured,
    the result, and the baseline.
    """

    task: str
    kind: str
    model: str
    weights: str
    inputs: Callable[[int], list[Any]]
    plain: Callable[[Path], Plain]
    count: int = 200
    params: Mapping[str, Any] = field(default_factory=dict)
    quality: Callable[[], tuple[str, float, float]] | None = None


# --- inputs ---------------------------------------------------------------------------------------


def texts(count: int) -> list[Any]:
    return [text[:1500] for text in mixed_texts(count)]


def masked(count: int) -> list[Any]:
    return [f"{text.rpartition(' ')[0] or text} [MASK]" for text in texts(count)]


def questions(count: int) -> list[Any]:
    return [{"question": "Who said what, and when?", "context": text} for text in texts(count)]


def pictures(count: int) -> list[Any]:
    """Return so many different parts of real photographs, as JPEG files."""
    from PIL import Image

    from workers.models import sources

    source = settings.load(environment={}).data["photographs"]["source"]
    folder = sources.pull(sources.parse(source, where="photographs"), sources.cache_folder()).folder
    photographs = [Image.open(path).convert("RGB") for path in sorted(folder.rglob("*.*g"))]
    random = Random(0)
    found = []
    for number in range(count):
        whole = photographs[number % len(photographs)]
        side = min(whole.size) * 3 // 4
        left, top = random.randint(0, whole.width - side), random.randint(0, whole.height - side)
        made = io.BytesIO()
        whole.crop((left, top, left + side, top + side)).save(made, "JPEG", quality=90)
        found.append(made.getvalue())
    return found


# --- what the fleet is compared with ------------------------------------------------------------


def pipeline(kind: str, *, head: str = "", images: bool = False, **params: Any) -> Callable[[Path], Plain]:
    """Return what loads transformers' pipeline: over a model's folder, or that of one of its heads."""

    def load(folder: Path) -> Plain:
        import transformers

        own = folder / "heads" / head if head else folder
        plain = transformers.pipeline(kind, model=str(own), device="cpu")

        def run(inputs: Sequence[Any], batch_size: int) -> object:
            given = _pictures(inputs) if images else _lines(inputs)
            return list(plain(given, batch_size=batch_size, **params))

        return run

    return load


def _lines(inputs: Sequence[Any]) -> Iterator[Any]:
    yield from inputs


def _pictures(inputs: Sequence[bytes]) -> Iterator[Any]:
    from PIL import Image

    yield from (Image.open(io.BytesIO(one)) for one in inputs)


def answers_by_hand(folder: Path) -> Plain:
    """Questions one by one, or in padded batches: transformers has no pipeline for them any more."""
    import torch
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "heads" / "answer")
    network = AutoModelForQuestionAnswering.from_pretrained(folder / "heads" / "answer").eval()

    def run(inputs: Sequence[Any], batch_size: int) -> object:
        found = []
        for start in range(0, len(inputs), batch_size):
            own = inputs[start : start + batch_size]
            asked, contexts = [one["question"] for one in own], [one["context"] for one in own]
            encoded = tokenizer(
                asked, contexts, padding=True, truncation="only_second", max_length=512, return_tensors="pt"
            )
            with torch.inference_mode():
                output = network(**encoded)
            first, last = output.start_logits.argmax(-1), output.end_logits.argmax(-1)
            found += [
                tokenizer.decode(ids[a : b + 1]) for ids, a, b in zip(encoded["input_ids"], first, last, strict=True)
            ]
        return found

    return run


def writing_by_hand(folder: Path) -> Plain:
    """Texts one by one, or in padded batches: transformers has no pipeline for them any more."""
    import torch
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()

    def run(inputs: Sequence[Any], batch_size: int) -> object:
        found: list[str] = []
        for start in range(0, len(inputs), batch_size):
            own = list(inputs[start : start + batch_size])
            encoded = tokenizer(own, padding=True, truncation=True, max_length=512, return_tensors="pt")
            with torch.inference_mode():
                made = network.generate(
                    input_ids=encoded["input_ids"],
                    attention_mask=encoded["attention_mask"],
                    max_new_tokens=16,
                    do_sample=False,
                )
            found += tokenizer.batch_decode(made, skip_special_tokens=True)
        return found

    return run


# --- the entries ----------------------------------------------------------------------------------

MINILM = "MiniLM (22.7 M)"
RANDOM_HEAD = "MiniLM (22.7 M), random head"
CUT = {"truncation": True}

ENTRIES: tuple[Entry, ...] = (
    Entry("vector", "feature-extraction", "reader", MINILM, texts, pipeline("feature-extraction", truncation=True), params=CUT),
    Entry("label", "text-classification", "reader", RANDOM_HEAD, texts,
          pipeline("text-classification", head="label", truncation=True, max_length=512), params=CUT),
    Entry("about", "zero-shot-classification", "reader", RANDOM_HEAD, texts,
          pipeline("zero-shot-classification", head="about", candidate_labels=LABELS), 60,
          CUT | {"candidate_labels": LABELS}),
    Entry("entities", "token-classification", "reader", RANDOM_HEAD, texts,
          pipeline("token-classification", head="entities", aggregation_strategy="simple")),
    Entry("answer", "question-answering", "reader", RANDOM_HEAD, questions, answers_by_hand),
    Entry("fill", "fill-mask", "reader", RANDOM_HEAD, masked, pipeline("fill-mask", head="fill")),
    Entry("shows", "image-classification", "classifier", "ViT-tiny (5.5 M), random", pictures,
          pipeline("image-classification", images=True)),
    Entry("objects", "object-detection", "detector", "YOLOS-tiny (6.5 M), random", pictures,
          pipeline("object-detection", images=True), 60),
    Entry("parts", "image-segmentation", "segmenter", "SegFormer-B0 (3.7 M), random", pictures,
          pipeline("image-segmentation", images=True), 24),
    Entry("shorter", "summarization", "writer", "T5 (22 M), random", texts, writing_by_hand, 60,
          CUT | {"max_new_tokens": 16}),
)  # fmt: skip

#: The entries' models: which tasks of `reader` have a head of their own, and which `checkpoints.HEADS` it is.
READER_HEADS = {"label": "labels", "about": "inference", "entities": "entities", "answer": "answers", "fill": "masks"}


def fleet_toml(folder: Path, entries: Sequence[Entry]) -> Path:
    """Make the entries' models under `folder`, and the settings that serve them; return the settings' file."""
    names = list(dict.fromkeys(entry.model for entry in entries))
    lines = ["[worker]", f"models = {names}"]
    for name in names:
        convention.progress(f"making {name}")
        own = folder / name
        tasks = {entry.task: entry.kind for entry in entries if entry.model == name}
        _make(name, own, tasks)
        lines += ["", f"[models.{name}]", f'source = {{ path = "{own}" }}', "", f"[models.{name}.tasks]"]
        lines += [f'{task} = "{kind}"' for task, kind in tasks.items()]
        if heads := {task: own / "heads" / task for task in tasks if name == "reader" and task in READER_HEADS}:
            lines += ["", f"[models.{name}.options.heads]", *(f'{task} = "{path}"' for task, path in heads.items())]
    file = folder / "fleet.toml"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def _make(name: str, folder: Path, tasks: Mapping[str, str]) -> None:
    if name != "reader":
        checkpoints.MAKERS[name](folder)
        return
    folder.mkdir()
    for task in tasks:
        if task in READER_HEADS:
            checkpoints.head(folder / "heads" / task, READER_HEADS[task])
    for file in checkpoints.encoder().iterdir():
        (folder / file.name).symlink_to(file)


# --- the runs -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """Items a second of one entry: through the fleet, by the plain pipeline, by the same in batches of 8."""

    fleet: float
    plain: float
    batched: float

    @property
    def ratio(self) -> float:
        return self.fleet / self.plain


def main() -> None:
    parser = convention.parser(__doc__)
    parser.add_argument("--only", nargs="+", metavar="TASK", help=f"of {', '.join(one.task for one in ENTRIES)}")
    given = parser.parse_args()
    chosen = [entry for entry in ENTRIES if not given.only or entry.task in given.only]
    if given.quick and not given.only:
        chosen = [entry for entry in ENTRIES if entry.task in ("label", "shows")]
    found: dict[str, Found] = {}
    with tempfile.TemporaryDirectory(prefix="argosy-catalogue-") as folder:
        for entry, one in measured(Path(folder), chosen, quick=given.quick):
            found[entry.task] = one
            convention.progress(
                f"{entry.kind}: {one.fleet:.1f}/s, pipeline {one.plain:.1f}/s, in batches {one.batched:.1f}/s"
            )
    figures = {
        "slowest_over_pipeline": round(min(one.ratio for one in found.values()), 3),
        "slowest_over_batched_pipeline": round(min(one.fleet / one.batched for one in found.values()), 3),
    }
    for entry in chosen:
        one = found[entry.task]
        figures |= {
            f"{entry.task}_items_per_s": round(one.fleet, 1),
            f"{entry.task}_over_pipeline": round(one.ratio, 3),
        }
    if given.keep and not given.only:
        write_table(table(chosen, found))
    convention.report("catalogue", figures, keep=given.keep and not given.only)


def measured(folder: Path, entries: Sequence[Entry], *, quick: bool) -> Iterator[tuple[Entry, Found]]:
    import torch
    from transformers.utils import logging

    torch.set_num_threads(devices.available_cores())
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    file = fleet_toml(folder, entries)
    with (
        convention.fleet(settings.load(file), config=file) as fleet,
        Client(fleet.broker_url, fleet.store_url, catalogue=Catalogue.from_toml(file)) as client,
    ):
        for entry in entries:
            plain = entry.plain(folder / entry.model)
            yield entry, compared(client, entry, plain, count=6 if quick else entry.count, passes=1 if quick else 3)


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
        "| kind | weights | items/s | plain pipeline | times as fast | on held-out data |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for entry in entries:
        one = found[entry.task]
        quality = ""
        if entry.quality:
            metric, value, baseline = entry.quality()
            quality = f"{metric} {value:.3g} (baseline {baseline:.3g})"
        lines.append(
            f"| {entry.kind} | {entry.weights} | {one.fleet:.1f} | {one.plain:.1f} | {one.ratio:.2f} | {quality} |"
        )
    machine = convention.machine()
    date = time.strftime("%Y-%m-%d", time.gmtime())
    about = f"{machine['cores']} cores of {machine['cpu']}, {date}, commit {convention.versions()['commit']}."
    return "\n".join(lines) + f"\n\n{about}\n"


def write_table(text: str) -> None:
    whole = TABLE.read_text(encoding="utf-8")
    before, _, rest = whole.partition(BEGIN)
    _, _, after = rest.partition(END)
    TABLE.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
