"""The verdict: what is in the store at the end, against what was accepted; and how long each blow was felt."""

from __future__ import annotations

import re
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from benchmarks.disasters.faults import SHIFT_S, Blow
from benchmarks.disasters.load import Producers, scripted_output
from benchmarks.disasters.producer import Ledger, Plan
from results_store.export.text_export import stream
from results_store.records import JobStatus, Result, ResultState
from results_store.store import Store

#: The difference that a real model's scores may have, by the precision of the backend: batches of other sizes add up
#: in another order. With bf16 (torch, AMX) one text had 0.5727 or 0.5810 by its batch, and 0.5823 with fp32.
TOLERANCES: Mapping[str, float] = {"fp32": 1e-4, "bf16": 2e-2, "fp16": 1e-3, "int8": 1e-2}

#: Looks at a job whose counters and rows differ, before they count as miscounted: later rows may come in between.
LOOKS = 5

Key = tuple[int, str]


@dataclass(slots=True)
class Verdict:
    """Counts of results. `forgotten` are items that a producer was told are accepted and its next run did not find.

    `miscounted` is the difference between jobs' progress and their rows, `looked_again` the number of further looks that
    it took to tell a difference from rows that came in between. `notes` are some cases in words. `spans` are from when to when
    the producers' results were waited for, (queued, stored), in Unix seconds.
    """

    accepted: int = 0
    terminal: int = 0
    lost: int = 0
    doubled: int = 0
    wrong: int = 0
    forgotten: int = 0
    miscounted: int = 0
    looked_again: int = 0
    spans: list[tuple[float, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not (self.lost or self.doubled or self.wrong or self.forgotten or self.miscounted)

    def note(self, text: str) -> None:
        if len(self.notes) < 20:
            self.notes.append(text)


class Judge:
    """Reads the store and fills in a `Verdict`. `undisturbed` are the real model's answers by text."""

    def __init__(self, store: Store, undisturbed: Mapping[str, Any]) -> None:
        self._store = store
        self._undisturbed = undisturbed
        self._jobs = {job.id: job for job in store.jobs(limit=100_000)}
        self.verdict = Verdict()

    def submission(self, plan: Plan, ledger: Ledger) -> None:
        """Judge one plan's job: every text once, under its place."""
        mine = [job for job in self._jobs.values() if job.name == plan.key]
        self.verdict.accepted += plan.results
        if not mine:
            self.verdict.lost += plan.results
            self.verdict.note(f"{plan.key}: there is no such job")
            return
        for second in mine[1:]:
            self.verdict.doubled += second.total
            self.verdict.note(f"{plan.key}: a second job {second.id}")
        self._forgotten(plan, ledger)
        self._job(mine[0], {(seq, task): text for seq, text in enumerate(plan.texts) for task in plan.tasks})

    def questions(self, asked: Mapping[tuple[str, int], str]) -> None:
        """Judge single submissions. A job may hold more: submissions whose commit was cut off, and raised."""
        by_job: dict[str, dict[Key, str]] = defaultdict(dict)
        for (job, seq), text in asked.items():
            by_job[job][seq, "echo"] = text
        self.verdict.accepted += len(asked)
        for job, expected in by_job.items():
            if job in self._jobs:
                self._job(self._jobs[job], expected, more_allowed=True)
            else:
                self.verdict.lost += len(expected)
                self.verdict.note(f"{len(expected)} questions: there is no such job as {job}")

    def _forgotten(self, plan: Plan, ledger: Ledger) -> None:
        promised, run = 0, 0
        for entry in ledger.entries():
            if entry.run != run and entry.before < promised:
                self.verdict.forgotten += promised - entry.before
                self.verdict.note(f"{plan.key}: {promised} items were accepted, the next run found {entry.before}")
            run, promised = entry.run, max(promised, entry.now)

    def _job(self, job: JobStatus, expected: Mapping[Key, str], *, more_allowed: bool = False) -> None:
        rows = self._rows(job.id)
        if not more_allowed:
            # the questions are not among them: they come by themselves, and hide how long the rest stands still
            self.verdict.spans += [(row.queued_at or 0.0, row.stored_at or 0.0) for row in rows.values()]
        self.verdict.terminal += len(rows.keys() & expected.keys())
        missing = expected.keys() - rows.keys()
        self.verdict.lost += len(missing)
        if missing:
            self.verdict.note(f"{job.name}: no result for {sorted(missing)[:5]} of {len(missing)}")
        if not more_allowed:
            self.verdict.doubled += len(rows.keys() - expected.keys())
        for key in rows.keys() & expected.keys():
            if (fault := self._fault(rows[key], expected[key])) is not None:
                self.verdict.wrong += 1
                self.verdict.note(f"{job.name} {key}: {fault}")

    def _rows(self, job: str) -> dict[Key, Result]:
        """Return a job's rows, and count how far its progress is off them."""
        for look in range(LOOKS):
            self.verdict.looked_again += look > 0
            rows = {(row.seq, row.task): row for row in stream(self._store, job)}
            done = self._store.job(job).done
            if done == len(rows):
                return rows
            time.sleep(0.2 * look)
        self.verdict.miscounted += abs(done - len(rows))
        self.verdict.note(
            f"job {job}: its counters say {done} results, {len(rows)} rows are there, after {LOOKS} looks"
        )
        return rows

    def _fault(self, row: Result, text: str) -> str | None:
        if row.state is not ResultState.SUCCEEDED:
            return f"{row.state}: {row.error}"
        if row.task in ("echo", "say"):
            expected = scripted_output(text, row.task)
            right = row.output == expected
        else:
            expected = self._undisturbed[text]
            right = alike(row.output, expected, tolerance(row.model_revision))
        return None if right else f"{text!r} has {row.output}, not {expected}, by {row.model_revision}"


def tolerance(revision: str | None) -> float:
    """Return the tolerance of a row's model revision, which ends with its backend unless that is torch in fp32."""
    found = re.search(r"\+\w+-(\w+)(-compiled)?$", revision or "")
    return TOLERANCES.get(found[1] if found else "fp32", TOLERANCES["fp32"])


def alike(one: Any, other: Any, tolerance: float) -> bool:
    """Return whether two outputs of a classification have the same labels, the same first label, and scores that differ
    by `tolerance` at most.
    """
    first, second = ({entry["label"]: entry["score"] for entry in output} for output in (one, other))
    return (
        first.keys() == second.keys()
        and one[0]["label"] == other[0]["label"]
        and all(abs(first[name] - second[name]) <= tolerance for name in first)
    )


def unshifted(at: float, began: float) -> float:
    """Return a time of the run that a clock which was whole hours off may have written. The run began at `began`, and
    takes less than an hour.
    """
    return began + (at - began) % SHIFT_S


def recoveries_s(blows: Sequence[Blow], spans: Sequence[tuple[float, float]]) -> dict[str, list[float]]:
    """Return by kind the seconds from the end of each blow to the first stored result of those that were waited for
    then.
    """
    found: dict[str, list[float]] = defaultdict(list)
    for blow in blows:
        if waited := _waited_s(blow, spans):
            found[blow.kind].append(min(waited))
    return found


def drains_s(blows: Sequence[Blow], spans: Sequence[tuple[float, float]]) -> list[float]:
    """Return the seconds from the end of each blow to the last of these results."""
    return [max(waited) for blow in blows if (waited := _waited_s(blow, spans))]


def stalls_s(blows: Sequence[Blow], spans: Sequence[tuple[float, float]]) -> list[float]:
    """Return for each blow the longest time without any result, while some were waited for, until the next blow."""
    stored = sorted(stored for _, stored in spans)
    found = []
    for number, blow in enumerate(blows):
        end = blows[number + 1].at if number + 1 < len(blows) else float("inf")
        marks = [blow.over, *(at for at in stored if blow.over < at < end), min(end, stored[-1] if stored else end)]
        gaps = sorted(((late - early, early) for early, late in pairwise(marks)), reverse=True)
        waited = (gap for gap, at in gaps if any(queued <= at < stored for queued, stored in spans))
        found.append(next(waited, 0.0))
    return found


def _waited_s(blow: Blow, spans: Sequence[tuple[float, float]]) -> list[float]:
    return [stored - blow.over for queued, stored in spans if queued <= blow.over < stored]


def percentile(values: Sequence[float], percent: int) -> float | None:
    """Return a percentile of any number of values, or None of none."""
    if len(values) < 2:
        return round(values[0], 3) if values else None
    return round(statistics.quantiles(values, n=100, method="inclusive")[percent - 1], 3)


def judged(
    store: Store, producers: Producers, asked: Mapping[tuple[str, int], str], undisturbed: Mapping[str, Any]
) -> Verdict:
    """Return the verdict on all that was accepted."""
    judge = Judge(store, undisturbed)
    for plan in producers.plans:
        judge.submission(plan, producers.ledger(plan.key))
    judge.questions(asked)
    return judge.verdict
