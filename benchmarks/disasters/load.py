"""The load: producer processes that are run again until their submission is whole, and someone who asks and waits."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from benchmarks.disasters.producer import Ledger, Plan, ledger_of
from producers import Client, ResultTimeout
from producers.wire.errors import ArgosyError
from results_store.errors import StoreError

#: So many producers submit at a time.
ACTIVE = 3

#: Device seconds that a scripted text takes, at random between these: enough that kills meet work under way.
DEVICE_S = (0.002, 0.012)


def scripted_plan(key: str, count: int, random: Random, texts_per_s: float) -> Plan:
    """A plan of `count` texts for the scripted model, no two alike, each with both tasks."""
    texts = [f"sleep {random.uniform(*DEVICE_S):.4f} {key} text {n}" for n in range(count)]
    return Plan(key, ["echo", "shout"], texts, texts_per_s)


class Producers:
    """Runs plans, a few at a time, each until it ends well. `allowed` is how many may have been started by now."""

    def __init__(self, plans: Sequence[Plan], folder: Path) -> None:
        self.plans = plans
        self.allowed = ACTIVE
        self.runs = 0
        self._folder = folder
        self._waiting = list(plans)
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._tend, name="producers")

    def start(self) -> None:
        self._folder.mkdir()
        for plan in self.plans:
            self._file(plan).write_bytes(msgspec.json.encode(plan))
        self._thread.start()

    def stop(self) -> None:
        """End them all, whatever they are at."""
        self._stopping.set()
        self._thread.join()
        for process in self._running.values():
            process.kill()
            process.wait()

    @property
    def live(self) -> list[subprocess.Popen[bytes]]:
        """Those that run, past their start: something of theirs is accepted already."""
        running = list(self._running.items())
        return [p for key, p in running if p.poll() is None and self.ledger(key).entries()]

    @property
    def finished(self) -> bool:
        return not self._waiting and not self._running

    def ledger(self, key: str) -> Ledger:
        return ledger_of(self._folder / f"{key}.json")

    def _file(self, plan: Plan) -> Path:
        return self._folder / f"{plan.key}.json"

    def _tend(self) -> None:
        by_key = {plan.key: plan for plan in self.plans}
        while not self._stopping.wait(0.1):
            for key, process in list(self._running.items()):
                code = process.poll()
                if code == 0:
                    del self._running[key]
                elif code is not None:
                    self._stopping.wait(0.3)  # a broker that is away must not be stormed by new processes
                    self._run(by_key[key])
            started = len(self.plans) - len(self._waiting)
            idle = not self._running
            if self._waiting and len(self._running) < ACTIVE and (started < self.allowed or idle):
                self._run(self._waiting.pop(0))

    def _run(self, plan: Plan) -> None:
        self.runs += 1
        command = [sys.executable, "-m", "benchmarks.disasters.producer", str(self._file(plan))]
        with (self._folder / f"{plan.key}.log").open("ab") as log:
            self._running[plan.key] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


@dataclass(slots=True)
class Asker:
    """Submits single interactive texts and waits for each answer, as a web service would.

    `asked` holds what was accepted: (job, seq) → text. `refused` counts submissions that raised, `wait_s` how long each
    answer took, and `answers` counts wrong ones.
    """

    client: Client
    asked: dict[tuple[str, int], str] = field(default_factory=dict)
    refused: int = 0
    wrong: int = 0
    waits_s: list[float] = field(default_factory=list)
    _stopping: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._ask, name="asker")
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread:
            self._thread.join()

    def _ask(self) -> None:
        number = 0
        while not self._stopping.wait(0.2):
            number += 1
            text = f"question {number}"
            started = time.monotonic()
            try:
                handle = self.client.submit("echo", text, priority="interactive")
            except ArgosyError:
                self.refused += 1
                continue
            self.asked[handle.job, handle.seq] = text
            answer = self._answer(handle)
            if answer is not None:
                self.waits_s.append(time.monotonic() - started)
                self.wrong += answer != scripted_output(text, "echo")

    def _answer(self, handle: Any) -> Any:
        while not self._stopping.is_set():
            try:
                return handle.result(timeout_s=1)
            except (ResultTimeout, StoreError):
                self._stopping.wait(0.05)
        return None


def scripted_output(text: str, task: str) -> dict[str, Any]:
    """What the scripted model answers."""
    import zlib

    return {"crc": zlib.crc32(text.encode()), "task": task}
