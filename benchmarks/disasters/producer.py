"""A producer in a process of its own, to be killed and run again: ``python -m benchmarks.disasters.producer PLAN``.

PLAN is a JSON file, a `Plan`. The texts are submitted at its pace under its idempotency key, so that a kill falls into
the middle of the submission and the next run goes on from there.
"""

from __future__ import annotations

import os
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


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One run (its process) was told that its job now has `now` items, of which it had found `before`."""

    run: int
    before: int
    now: int


class Ledger:
    """What the runs of a plan were told is accepted, a line a chunk."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def note(self, entry: Entry) -> None:
        with self._path.open("ab") as file:
            file.write(msgspec.json.encode(entry) + b"\n")

    def entries(self) -> list[Entry]:
        try:
            written = self._path.read_bytes()
        except FileNotFoundError:
            return []
        # what a kill cut off in the middle of its line was not told to the end
        lines = written[: written.rfind(b"\n") + 1].splitlines()
        return [msgspec.json.decode(line, type=Entry) for line in lines]


def ledger_of(plan: Path) -> Ledger:
    return Ledger(plan.with_suffix(".ledger"))


def main(path: Path) -> None:
    plan = msgspec.json.decode(path.read_bytes(), type=Plan)
    ledger = ledger_of(path)
    with Client() as client:

        def accepted(job: str, by_this_run: int) -> None:
            now = client.status(job).items
            ledger.note(Entry(os.getpid(), now - by_this_run, now))

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
