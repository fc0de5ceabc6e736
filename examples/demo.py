"""``make demo``: a whole fleet on this machine does the main job on real input, and shows it.

Exits non-zero unless all of it happened: every result in SQL, the two bad items failed alone, interactive items
answered while bulk ran, Flower saw the envelopes, and nothing is left running.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import statistics
import textwrap
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import psutil
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.workload import mixed_texts
from producers import Client, Job, NewItem, Priority
from results_store.records import Batch, JobStatus
from results_store.store import Store
from workers import settings
from workers.batching.serving import served_models
from workers.device import devices
from workers.fleet.local import LocalFleet
from workers.models.sources import model_source
from workers.models.sources.download_progress import shown

HOME = Path(".argosy/demo")
TEXTS = 1500
TEXT_TASKS = ("sentiment", "topic", "spam")
IMAGE_TASKS = ("image-classification", "image-embedding")
QUESTIONS = (
    "This is the best film I have seen in years.",
    "The battery died after two days and nobody answered my mails.",
    "It was all right, I suppose.",
    "Congratulations, you have won! Click here to claim your free prize now.",
)

console = Console()


@dataclass(slots=True)
class Seen:
    """What the demo saw, to be shown and judged at the end."""

    bulk: JobStatus
    images: JobStatus
    bulk_s: float
    idle_s: list[float]
    loaded_s: list[float]
    answers: dict[str, str]
    texts: dict[str, str]
    batches: list[Batch]
    flower_envelopes: int
    pids: list[int]
    complaints: list[str] = field(default_factory=list)

    def expect(self, condition: bool, otherwise: str) -> None:
        if not condition:
            self.complaints.append(otherwise)


def main() -> int:
    console.rule("[bold]Argosy: the main job, on this machine")
    chosen = settings.load()
    photographs = pull(chosen)
    measure(chosen)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stopped from outside: clean up all the same
    fleet = LocalFleet(chosen, HOME)
    fleet.clear()
    with console.status("starting Valkey, SQLite, a CPU worker and Flower …"):
        fleet.start()
    try:
        for line in fleet.whereabouts():
            console.print(f"  {line}", highlight=False)
        seen = work(fleet, photographs)
    finally:
        with console.status("stopping …"):
            fleet.stop()
    judge(seen, fleet, len(photographs))
    show(seen, fleet)
    for complaint in seen.complaints:
        console.print(f"[red]✗ {complaint}")
    if not seen.complaints:
        console.print("[green]✓ all of it happened, and nothing is left running")
    return 1 if seen.complaints else 0


def pull(chosen: settings.Settings) -> list[Path]:
    """Fetch models and data, once; return the photographs."""
    cache = model_source.cache_folder()
    with shown() as progress:
        for name in chosen.served:
            model_source.pull(
                model_source.parse(chosen.models[name].source, where=f"models.{name}.source"), cache, progress
            )
        pulled = {
            name: model_source.pull(
                model_source.parse(chosen.data[name]["source"], where=f"data.{name}.source"), cache, progress
            )
            for name in ("bbc", "ratings", "photographs")
        }
    return sorted(path for path in pulled["photographs"].folder.rglob("*") if path.suffix in (".png", ".jpg"))


def measure(chosen: settings.Settings) -> None:
    """Show what each model runs on. A worker would measure it at its first start by itself, unseen."""
    device = devices.select(chosen.worker.profile, chosen.worker.devices[:1])[0]
    for name in chosen.served:
        with console.status(f"measuring what {name} runs on fastest on this machine (once) …"):
            wanted, served = served_models.serve(chosen, name, device)
        console.print(f"  {name}: {wanted.backend}, batches of at most {served.budget.cost:,}", highlight=False)


def work(fleet: LocalFleet, photographs: list[Path]) -> Seen:
    """Submit everything, wait for it, and report what was seen."""
    real = {f"text-{n}": text for n, text in enumerate(mixed_texts(TEXTS))}
    texts: list[object] = [NewItem(text, key=key) for key, text in real.items()]
    too_long = NewItem("a word " * 2000, key="over-long", params={task: {"truncation": False} for task in TEXT_TASKS})
    texts.insert(len(texts) // 2, too_long)
    whole = photographs[0].read_bytes()
    images = [NewItem(path.read_bytes(), key=path.stem) for path in photographs]
    images.append(NewItem(whole[: len(whole) // 3], key="broken"))
    with Client(fleet.broker_url, fleet.store_url) as client:
        client.submit("sentiment", QUESTIONS[0], priority="interactive").result(timeout_s=60)  # the first one warms up
        idle_s = [ask(client, n)[0] for n in range(10)]
        started = time.monotonic()
        bulk = client.submit_many(TEXT_TASKS, texts, priority="bulk", name="demo texts")
        vision = client.submit_many(IMAGE_TASKS, images, priority="standard", name="demo photographs")
        loaded_s, answers = ask_while_running(client, bulk)
        bulk_s = time.monotonic() - started
        statuses = bulk.wait(timeout_s=600), vision.wait(timeout_s=600)
    with Store(fleet.store_url) as store:
        batches = store.flight.recent(limit=10_000)
    fleet_processes = [psutil.Process(pid) for pid in fleet.pids]
    pids = [one.pid for process in fleet_processes for one in (process, *process.children(recursive=True))]
    envelopes = flower_envelopes(fleet.flower_url)
    return Seen(*statuses, bulk_s, idle_s, loaded_s, answers, real, batches, envelopes, pids)


def ask(client: Client, n: int) -> tuple[float, str, str]:
    """One interactive item, as an API backend would: submit, await. Returns seconds, question, answer."""
    question = QUESTIONS[n % len(QUESTIONS)]
    started = time.monotonic()
    best = client.submit("sentiment", question, priority="interactive").result(timeout_s=60)[0]
    return time.monotonic() - started, question, f"{best['label']} {best['score']:.0%}"


def ask_while_running(client: Client, bulk: Job) -> tuple[list[float], dict[str, str]]:
    """Ask interactive questions until the bulk job is done, with its progress on the screen."""
    times: list[float] = []
    answers: dict[str, str] = {}
    finished = threading.Event()

    def ask_on() -> None:
        while not finished.wait(0.1):
            seconds, question, answer = ask(client, len(times))
            times.append(seconds)
            answers[question] = answer

    asker = threading.Thread(target=ask_on)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bars:
        bar = bars.add_task("results of 1,501 texts x 3 tasks", total=None)
        asker.start()
        try:
            bulk.wait(600, on_progress=lambda status: bars.update(bar, completed=status.done, total=status.total))
        finally:
            finished.set()
            asker.join()
    return times, answers


def flower_envelopes(url: str) -> int:
    """How many envelopes Flower has seen succeed."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:  # noqa: S310 - our own Flower on loopback
        lines = answer.read().decode().splitlines()
    wanted = [line for line in lines if line.startswith("flower_events_total{") and 'type="task-succeeded"' in line]
    return int(sum(float(line.rsplit(" ", 1)[1]) for line in wanted))


def judge(seen: Seen, fleet: LocalFleet, photographs: int) -> None:
    """Hold what was seen against what should have happened."""
    with sqlite3.connect(fleet.home / "store.db") as database:
        counts = dict(
            database.execute("SELECT job || ' ' || state, count(*) FROM item_results GROUP BY job, state").fetchall()
        )
        failed = {key for (key,) in database.execute("SELECT DISTINCT key FROM item_results WHERE state = 'failed'")}
    database.close()
    texts, images = TEXTS * len(TEXT_TASKS), photographs * len(IMAGE_TASKS)
    seen.expect(counts.get(f"{seen.bulk.id} succeeded") == texts, f"not {texts:,} text results in SQL: {counts}")
    seen.expect(counts.get(f"{seen.images.id} succeeded") == images, f"not {images} image results in SQL: {counts}")
    seen.expect(failed == {"broken", "over-long"}, f"failed items are {failed}, not the two bad ones")
    seen.expect(len(seen.loaded_s) >= 3, f"only {len(seen.loaded_s)} interactive items while bulk ran")
    seen.expect(seen.flower_envelopes >= 20, f"Flower saw only {seen.flower_envelopes} envelopes")
    left = [pid for pid in seen.pids if psutil.pid_exists(pid)]
    seen.expect(not left, f"still running: {left}")


def show(seen: Seen, fleet: LocalFleet) -> None:
    database = sqlite3.connect(fleet.home / "store.db")
    texts = rows_of(database, seen.bulk.id)
    table = Table("text", *TEXT_TASKS, title=f"{len(texts)} of the texts, read from SQLite", title_justify="left")
    for key, told in texts.items():
        table.add_row(textwrap.shorten(seen.texts.get(key, key), 60), *(told[task] for task in TEXT_TASKS))
    console.print(table)
    images = Table("photograph", IMAGE_TASKS[0])
    for key, told in rows_of(database, seen.images.id).items():
        images.add_row(key, told[IMAGE_TASKS[0]])
    console.print(images)
    database.close()
    answers = Table("interactive question, while bulk ran", "sentiment")
    for question, answer in seen.answers.items():
        answers.add_row(question, answer)
    console.print(answers)
    console.print(figures(seen, fleet))


def rows_of(database: sqlite3.Connection, job: str, most: int = 12) -> dict[str, dict[str, str]]:
    """What a job's first items came to, failed ones first: key → task → prediction."""
    query = """
        SELECT key, task, output, error FROM item_results WHERE job = :job AND vector IS NULL AND seq IN (
            SELECT seq FROM item_results WHERE job = :job GROUP BY seq ORDER BY min(state), seq LIMIT :most
        ) ORDER BY state, seq
    """
    found: dict[str, dict[str, str]] = {}
    for key, task, output, error in database.execute(query, {"job": job, "most": most}):
        found.setdefault(key, {})[task] = prediction(output, error)
    return found


def prediction(output: str | None, error: str | None) -> str:
    if error:
        found = msgspec.json.decode(error)
        return f"[red]{found['kind']}: {textwrap.shorten(found['message'], 60)}"
    best = msgspec.json.decode(output or "[]")[0]
    return f"{best['label']} {best['score']:.0%}"


def figures(seen: Seen, fleet: LocalFleet) -> Table:
    bulk = [batch for batch in seen.batches if str(int(Priority.BULK)) in batch.priorities]
    real, padded = sum(batch.tokens for batch in bulk), sum(batch.padded_tokens for batch in bulk)
    table = Table("figure", "value", show_header=False)
    table.add_row("texts, 3 tasks each, end to end", f"{TEXTS / seen.bulk_s:.0f} items/s ({seen.bulk_s:.1f} s)")
    sizes = [batch.items for batch in bulk]
    table.add_row(
        "batches with bulk texts",
        f"{len(bulk)}, of {statistics.median(sizes):.0f} items in the middle, {max(sizes)} at most",
    )
    table.add_row("padding", f"{1 - real / padded:.1%} of the computed tokens")
    table.add_row("interactive, idle fleet", latency(seen.idle_s))
    table.add_row("interactive, under bulk", latency(seen.loaded_s))
    table.add_row("envelopes seen by Flower", str(seen.flower_envelopes))
    table.add_row("results", f"sqlite3 {os.path.relpath(fleet.home / 'store.db')}")
    return table


def latency(seconds: list[float]) -> str:
    if not seconds:
        return "none"
    return f"median {statistics.median(seconds) * 1000:.0f} ms, worst {max(seconds) * 1000:.0f} ms, of {len(seconds)}"


if __name__ == "__main__":
    raise SystemExit(main())
