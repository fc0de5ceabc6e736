"""A producer in a process of its own, to be killed and run again: ``python -m benchmarks.disasters.producer PLAN``.

PLAN is a JSON file, a `Plan`. The texts are submitted at its pace under its idempotency key, so that a kill falls into the
middle of the submission and the next run goes on from there.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from producers import Client


class Plan(msgspec.Struct, frozen=True):
    """A submission: its idempotency key and name, the tasks of each text, and how many texts a second come."""

    key: str
    tasks: list[str]
    texts: list[str]
    texts_per_s: float

    @property
    def results(self) -> int:
        return len(self.tasks) * len(self.texts)


class Ledger:
    """What the runs of a plan were told is accepted: a line a chunk, ``[job, items before this run, items now]``."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def note(self, job: str, before: int, now: int) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([job, before, now]) + "\n")

    def entries(self) -> list[tuple[str, int, int]]:
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        return [(job, before, now) for job, before, now in map(json.loads, lines)]


def ledger_of(plan: Path) -> Ledger:
    return Ledger(plan.with_suffix(".ledger"))


def main(path: Path) -> None:
    plan = msgspec.json.decode(path.read_bytes(), type=Plan)
    ledger = ledger_of(path)
    with Client() as client:

        def accepted(job: str, by_this_run: int) -> None:
            now = client.status(job).items
            ledger.note(job, now - by_this_run, now)

        client.submit_many(
            plan.tasks,
            _paced(plan),
            name=plan.key,
            idempotency_key=plan.key,
            on_accepted=accepted,
        )


def _paced(plan: Plan) -> Iterator[str]:
    for text in plan.texts:
        time.sleep(1 / plan.texts_per_s)
        yield text


if __name__ == "__main__":
    main(Path(sys.argv[1]))
