"""What does a site of one core answer alone, what does it send on, and what is lost when its link or the site fails?

    python -m benchmarks.edge [--work FOLDER] [--parts text-variants,image-cut …] [--minutes N] [--quick | --keep]

The site is `argosy edge` on one core, in a network namespace whose only way out has 50 ms and 10 Mbit/s in each direction
(sites/tunnel.py). The centre is a fleet with a gateway behind HTTPS, on the other cores. A text task (sentiment, with
labels; the site has the student of benchmarks.compress) and an image task (ImageNet's classes, where the centre's
answer counts as right; the site has MobileNetV2 compressed) have these parts:

- `variants`: each item is asked alone, by the edge only, by the centre only, and by the cascade, whose threshold is
  chosen on other items. `points_lost` is the centre's accuracy less the cascade's, `share_escalated` the share that was
  sent on, `bytes_over_centre` the IP bytes of the link over those of the centre alone.
- `sharing`: a burst of five times what the edge can do within a deadline, with `share_load`. `expired_more` is the
  share that expires, less that of one fleet with the centre's model and a worker on every core.
- `cut`, `silent`, `killed`: a job while the link is down, loses all packets without a word, or does so while the site is
  killed and started again. `lost` are items without a result, `doubled` those that the centre was given more than once.

Needs root, /dev/net/tun, ip and openssl. The run is resumable: `--keep` writes each part into the result, and a later
run takes only those that it has not.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import convention
from benchmarks.disasters.fleet import GatewayFleet
from benchmarks.sites.centre import Centre, centre_in
from benchmarks.sites.edge_tasks import (
    CASCADE,
    ONLY_CENTRE,
    STUDENT,
    STUDENTS,
    EdgeTaskPair,
    Question,
    image_task,
    text_task,
)
from benchmarks.sites.site_process import OneCore, SiteProcess, until
from benchmarks.sites.tunnel import TunnelLink
from producers.edge.thresholds import Judged, points
from results_store.records import JobStatus
from results_store.store import Store
from workers import settings

NAME = "edge"

TASKS = ("text", "image")
PARTS = ("variants", "sharing", "cut", "silent", "killed")

#: The accuracy that a threshold may cost on the items that choose it, and the most that it sends on.
GIVEN_UP, MOST_SHARE = 0.0025, 0.4

#: Items that are asked at the same time, and the deadline of a burst.
IN_FLIGHT, DEADLINE_S = 4, 10.0

#: The most seconds until a job has all its results after the link is back.
PATIENCE_S = 900.0


@dataclass(frozen=True, slots=True)
class Stage:
    """A running site with its centre and their link."""

    task: EdgeTaskPair
    site: SiteProcess
    centre: Centre
    link: TunnelLink
    folder: Path

    def ask(self, name: str, questions: Sequence[Question], in_flight: int = IN_FLIGHT) -> dict[str, Any]:
        """Ask a task one by one; return the rows, the bytes on the link, and the seconds of the whole."""
        out, before, began = self.folder / "rows.json", self.link.bytes, time.monotonic()
        self._program("ask", name, [question.value for question in questions], out, in_flight)
        seconds = time.monotonic() - began
        return {"rows": json.loads(out.read_bytes()), "bytes": self.link.bytes - before, "seconds": seconds}

    def submit(self, values: Sequence[Any], *, deadline_s: float = 0.0) -> str:
        """Submit a job of the cascade; return its id."""
        return self._program("submit", CASCADE, values, self.folder / "none", 1, deadline_s)

    def _program(
        self, how: str, name: str, values: Sequence[Any], out: Path, in_flight: int, deadline_s: float = 0.0
    ) -> str:
        given = self.folder / "inputs"
        given.write_bytes(msgspec.msgpack.encode(values))
        words = ["-m", "benchmarks.sites.program", how, name, str(given), str(out), str(in_flight), str(deadline_s)]
        ran = self.site.run(*words, cwd=Path(__file__).parents[1], stdout=-1)
        return ran.stdout.strip()

    def status(self, job: str) -> JobStatus:
        with Store(self.site.store_url) as store:
            return store.job(job)


def main() -> None:
    parser = convention.parser(__doc__)
    parser.add_argument("--work", type=Path, help="folder of benchmarks.multitask and benchmarks.compress")
    parser.add_argument("--student", default=STUDENT, choices=STUDENTS, help="the site's text model")
    parser.add_argument("--parts", default="", help="names with commas between, such as text-cut (default: all)")
    parser.add_argument("--minutes", type=float, default=3.0, help="of a failed link (default: %(default)s)")
    asked = parser.parse_args()
    wanted = asked.parts.split(",") if asked.parts else [f"{task}-{part}" for task in TASKS for part in PARTS]
    if unknown := [name for name in wanted if name not in {f"{task}-{part}" for task in TASKS for part in PARTS}]:
        parser.error(f"--parts: there is no {unknown[0]}; there are {', '.join(TASKS)} with {', '.join(PARTS)}")
    if os.geteuid() or not Path("/dev/net/tun").exists():
        raise SystemExit("benchmarks.edge needs root and /dev/net/tun: the site has a network namespace of its own")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stopped from outside: end every process all the same
    with tempfile.TemporaryDirectory(prefix="argosy-benchmark-") as folder:
        bench = Bench(asked, asked.work or Path(folder), kept() if asked.keep else {})
        for name in wanted:
            if name not in bench.done:
                bench.run(name)
                if asked.keep:
                    convention.keep_part(NAME, bench.figures())
        convention.report(NAME, bench.figures(), keep=asked.keep)


class Bench:
    """The parts that are done, by name, and the way to do the others."""

    def __init__(self, asked: argparse.Namespace, work: Path, done: Mapping[str, Any]) -> None:
        self._asked, self._quick, self._work = asked, asked.quick, work
        self._count = 16 if asked.quick else 400
        self._outage_s = 4.0 if asked.quick else 60 * asked.minutes
        self._tasks: dict[str, EdgeTaskPair] = {}
        self._core_kind = ""
        self.done = dict(done)

    def run(self, name: str) -> None:
        """Do a part."""
        kind, _, part = name.partition("-")
        convention.progress(f"{name} …")
        self.done[name] = found = self._parts[part](kind)
        convention.progress(f"{name}: {found}")

    @property
    def _parts(self) -> dict[str, Callable[[str], dict[str, Any]]]:
        failing = {part: lambda kind, part=part: self._failing(kind, part) for part in PARTS[2:]}
        return {"variants": self._variants, "sharing": self._sharing, **failing}

    def _task(self, kind: str) -> EdgeTaskPair:
        if kind not in self._tasks:
            text = kind == "text"
            made = (
                text_task(self._work, student=self._asked.student, quick=self._quick)
                if text
                else image_task(self._count)
            )
            self._tasks[kind] = made
        return self._tasks[kind]

    @contextmanager
    def _stage(self, kind: str, threshold: float, *, share_load: bool = False) -> Iterator[Stage]:
        task = self._task(kind)
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="argosy-edge-")))
            cores = os.sched_getaffinity(0)
            stack.callback(os.sched_setaffinity, 0, cores)
            core = OneCore()
            stack.callback(core.close)
            self._core_kind = core.kind
            link = stack.enter_context(TunnelLink())
            centre = stack.enter_context(centre_in(folder, task.write_centre(folder)))
            file = task.write_site(folder, centre, threshold=threshold, share_load=share_load)
            site = stack.enter_context(SiteProcess(file, folder / "site", link, core))
            yield Stage(task, site, centre, link, folder)

    # --- the parts ---

    def _variants(self, kind: str) -> dict[str, Any]:
        task = self._task(kind)
        with self._stage(kind, 0.0) as stage:
            chosen, judged = task.chosen[: self._count], task.judged[: self._count]
            for name in (task.name, ONLY_CENTRE):  # which loads whatever is loaded with the first items
                stage.ask(name, chosen[:4])
            choosing = [stage.ask(name, chosen)["rows"] for name in (task.name, ONLY_CENTRE)]
            threshold, reached = _threshold(chosen, *choosing)
            edge, centre = (stage.ask(name, judged) for name in (task.name, ONLY_CENTRE))
            crowded = stage.ask(task.name, judged, in_flight=64)
            memory_mib, start_s = stage.site.memory_mib, stage.site.start_s
            memory_by_process = stage.site.memory_by_process
        with self._stage(kind, threshold) as stage:
            stage.ask(CASCADE, chosen[:4])
            cascade = stage.ask(CASCADE, judged)
            memory_mib = max(memory_mib, stage.site.memory_mib)
        labels = _labels(judged, centre["rows"])
        return {
            "items": len(judged),
            "threshold": threshold,
            "threshold_reached": reached,
            "memory_mib": memory_mib,
            "memory_by_process_mib": memory_by_process,
            "start_s": start_s,
            "items_per_s": round(len(judged) / crowded["seconds"], 2),
            "edge": _judged(edge, labels),
            "centre": _judged(centre, labels),
            "cascade": _judged(cascade, labels),
        }

    def _sharing(self, kind: str) -> dict[str, Any]:
        task, deadline_s = self._task(kind), 3.0 if self._quick else DEADLINE_S
        with self._stage(kind, 0.0, share_load=True) as stage:
            known = task.judged[: self._count]
            stage.ask(CASCADE, known[:4])
            crowded = stage.ask(task.name, known, in_flight=64)  # so the site knows its seconds, and so do we
            rate = len(known) / crowded["seconds"]
            values = _many(known, max(8, int(5 * rate * deadline_s)))
            job = stage.submit(values, deadline_s=deadline_s)
            until(lambda: stage.status(job).finished, PATIENCE_S)
            ended = stage.status(job)
            with Store(stage.site.store_url) as store:
                by = [_by(row.output) for row in store.results(job, limit=10**6) if row.output]
        alone = self._one_fleet(task, values, deadline_s)
        return {
            "items": len(values),
            "items_per_s": round(rate, 2),
            "deadline_s": deadline_s,
            "answered_by": {who: by.count(who) for who in sorted(set(by))},
            "expired_share": round(ended.expired / ended.total, 4),
            "failed": ended.failed,
            "expired_share_one_fleet": alone,
            "expired_more": round(ended.expired / ended.total - alone, 4),
        }

    def _one_fleet(self, task: EdgeTaskPair, values: Sequence[Any], deadline_s: float) -> float:
        """Return the share of a burst that expires in one fleet on all cores."""
        from producers import Client

        with tempfile.TemporaryDirectory(prefix="argosy-edge-") as folder:
            file = task.write_centre(Path(folder))
            workers = max(1, len(os.sched_getaffinity(0)))
            fleet = GatewayFleet(settings.load(file), Path(folder) / "home", config=file, workers_per_device=workers)
            catalogue = settings.load(file).catalogue
            with fleet, Client(fleet.broker_url, fleet.store_url, catalogue=catalogue) as client:
                client.submit_many(task.name, values[:4]).wait(PATIENCE_S)
                ended = client.submit_many(task.name, values, deadline_s=deadline_s).wait(PATIENCE_S)
        return round(ended.expired / ended.total, 4)

    def _failing(self, kind: str, part: str) -> dict[str, Any]:
        threshold = self.done.get(f"{kind}-variants", {}).get("threshold", 0.9)
        questions = [*self._task(kind).chosen, *self._task(kind).judged][: 2 * self._count]
        with self._stage(kind, threshold) as stage:
            job = stage.submit([question.value for question in questions])
            until(lambda: stage.centre.inputs() or stage.status(job).finished, PATIENCE_S)
            stage.link.cut() if part == "cut" else stage.link.silence()
            began = time.monotonic()
            if part == "killed":
                time.sleep(self._outage_s / 4)
                stage.site.kill()
                stage.site.start()
            time.sleep(max(0.0, self._outage_s - (time.monotonic() - began)))
            during = stage.status(job).done
            stage.link.mend()
            mended = time.monotonic()
            until(lambda: stage.status(job).finished, PATIENCE_S)
            caught_up_s, status = time.monotonic() - mended, stage.status(job)
            given = stage.centre.inputs()
        return {
            "items": len(questions),
            "done_at_the_end_of_the_outage": during,
            "caught_up_s": round(caught_up_s, 1),
            "sent": len(given),
            "lost": len(questions) - status.succeeded,
            "doubled": len(given) - len(set(given)),
        }

    # --- the figures ---

    def figures(self) -> dict[str, Any]:
        """Return the claims, the worse of the two tasks, and the parts. A claim of which a part is missing is left out."""
        variants = [own for task in TASKS if (own := self.done.get(f"{task}-variants"))]
        sharing = [own for task in TASKS if (own := self.done.get(f"{task}-sharing"))]
        failing = [own for task in TASKS for part in PARTS[2:] if (own := self.done.get(f"{task}-{part}"))]
        found: dict[str, Any] = {}
        if variants:
            found["points_lost"] = max(
                round(100 * (own["centre"]["accuracy"] - own["cascade"]["accuracy"]), 2) for own in variants
            )
            found["share_escalated"] = max(own["cascade"]["share"] for own in variants)
            found["bytes_over_centre"] = max(
                round(own["cascade"]["bytes"] / own["centre"]["bytes"], 3) for own in variants
            )
            found["edge_start_s"] = max(own["start_s"] for own in variants)
        if text := self.done.get("text-variants"):
            found["edge_memory_mib"] = text["memory_mib"]
        if sharing:
            found["expired_more"] = max(own["expired_more"] for own in sharing)
        if failing:
            found |= {name: sum(own[name] for own in failing) for name in ("lost", "doubled")}
        return {**found, "settings": self._settings(), "parts": self.done}

    def _settings(self) -> dict[str, Any]:
        return _settings(self._count, self._outage_s, self._asked.student) | {"core": self._core_kind}


def _threshold(
    questions: Sequence[Question], edge: Sequence[Mapping[str, Any]], centre: Sequence[Mapping[str, Any]]
) -> tuple[float, bool]:
    """Return the threshold that sends on least at nearly the centre's accuracy, and whether there is one.

    Without one it is the most accurate that sends on at most `MOST_SHARE`.
    """
    labels = _labels(questions, centre)
    rows = [
        Judged(own["score"], own["label"] == label, other["label"] == label)
        for own, other, label in zip(edge, centre, labels, strict=True)
        if "label" in own and "label" in other
    ]
    wanted = statistics.mean(row.centre_right for row in rows) - GIVEN_UP
    there = [point for point in points(rows) if point.share <= MOST_SHARE]
    if reaching := [point for point in there if point.accuracy >= wanted]:
        return round(min(reaching, key=lambda point: point.share).threshold, 6), True
    return round(max(there, key=lambda point: (point.accuracy, -point.share)).threshold, 6), False


def _labels(questions: Sequence[Question], centre: Sequence[Mapping[str, Any]]) -> list[str | None]:
    rows = zip(questions, centre, strict=True)
    return [own.get("label") if question.label is None else question.label for question, own in rows]


def _judged(asked: Mapping[str, Any], labels: Sequence[str | None]) -> dict[str, Any]:
    """Return the figures of a variant; an item without an answer is wrong."""
    rows = asked["rows"]
    right = [row.get("label") == label for row, label in zip(rows, labels, strict=True)]
    times = sorted(row["seconds"] for row in rows)
    return {
        "accuracy": round(statistics.mean(right), 4),
        "share": round(statistics.mean(row.get("cascade", {}).get("by") == "centre" for row in rows), 4),
        "unanswered": sum("error" in row for row in rows),
        "bytes": asked["bytes"],
        "p50_ms": round(1000 * statistics.median(times), 1),
        "p99_ms": round(1000 * times[min(len(times) - 1, int(0.99 * len(times)))], 1),
    }


def _by(output: Any) -> str:
    return str(output[0].get("cascade", {}).get("by", "nobody"))


def _many(questions: Sequence[Question], count: int) -> list[Any]:
    """Return so many inputs; texts are all different."""
    values = itertools.islice(itertools.cycle(question.value for question in questions), count)
    return [f"{value} {number}" if isinstance(value, str) else value for number, value in enumerate(values)]


def _settings(count: int, outage_s: float, student: str) -> dict[str, Any]:
    """Return all that the figures depend on, apart from the code."""
    return {"items": count, "outage_s": outage_s, "student": student, "delay_ms": 50, "mbit_per_s": 10}


def kept() -> Mapping[str, Any]:
    """Return the parts of the kept result."""
    path = convention.RESULTS / f"{NAME}.json"
    figures: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))["figures"] if path.is_file() else {}
    return figures.get("parts", {})


if __name__ == "__main__":
    main()
