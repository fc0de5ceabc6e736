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
from typing import Any, Protocol

import httpx2 as httpx
import msgspec

from benchmarks.disasters.agent import ERRORS
from benchmarks.disasters.producer import Ledger, Plan, ledger_of
from producers import Client, ItemFailed, ResultTimeout
from producers.wire.errors import ArgosyError, BrokerUnavailable
from results_store.errors import StoreError

#: So many producers submit at a time.
ACTIVE = 3

#: Seconds that the gateway may take for an answer, and that any call may take to return.
HTTP_TIMEOUT_S = 30.0
CALL_LIMIT_S = 90.0


def scripted_plan(key: str, count: int, random: Random, texts_per_s: float, device_s: float) -> Plan:
    """A plan of `count` texts for the scripted model, no two alike, each with both tasks: one's results are stored as
    rows, the other's in chunks.

    Each takes some time of the device, `device_s` on average.
    """
    texts = [f"sleep {random.uniform(0.2, 1.8) * device_s:.4f} {key} text {n}" for n in range(count)]
    return Plan(key, ["echo", "say"], texts, texts_per_s)


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


class Door(Protocol):
    """A way into the fleet. A submission that raises may or may not have been accepted."""

    def submit(self, task: str, text: str) -> Answer: ...


class Answer(Protocol):
    """An accepted question: its job, its place, and its output once it is there."""

    @property
    def job(self) -> str: ...

    @property
    def seq(self) -> int: ...

    def result(self, *, timeout_s: float) -> Any:
        """Return the output. Raises ResultTimeout or StoreError while it is not there."""


@dataclass(frozen=True, slots=True)
class ClientDoor:
    """The Python client."""

    client: Client

    def submit(self, task: str, text: str) -> Answer:
        return self.client.submit(task, text, priority="interactive")


@dataclass(frozen=True, slots=True)
class GatewayDoor:
    """The gateway's HTTP API at `url`."""

    url: str

    def submit(self, task: str, text: str) -> Answer:
        return GatewayAnswer(self, self.request("POST", "/api/items", json={"task": task, "input": text})["id"])

    def request(self, method: str, path: str, **options: Any) -> Any:
        """Return the answer to a request. Raises BrokerUnavailable for every failure, which may pass."""
        try:
            answer = httpx.request(method, self.url + path, timeout=HTTP_TIMEOUT_S, **options)
            return answer.raise_for_status().json()
        except httpx.HTTPError as error:
            raise BrokerUnavailable(f"the gateway: {error}") from error


@dataclass(frozen=True, slots=True)
class GatewayAnswer:
    """An item that the gateway accepted; its id is JOB.SEQ.COUNT."""

    door: GatewayDoor
    item: str

    @property
    def job(self) -> str:
        return self.item.split(".")[0]

    @property
    def seq(self) -> int:
        return int(self.item.split(".")[1])

    def result(self, *, timeout_s: float) -> Any:
        try:
            found = self.door.request("GET", f"/api/items/{self.item}?wait_s={timeout_s}")
        except BrokerUnavailable as error:
            raise ResultTimeout(str(error)) from error
        if not found["done"]:
            raise ResultTimeout(f"{self.item} has no result yet")
        return found["results"][0]["output"]


@dataclass(slots=True)
class Asker:
    """Submits single interactive texts and waits for each answer, as a web service would.

    `asked` holds the accepted questions: (job, seq) → text. `refused` counts submissions that raised, `waits_s` are the
    seconds to each answer, and `wrong` counts wrong answers. An asker is `stuck` if a call does not return after `stop`.
    """

    door: Door
    name: str = "question"
    asked: dict[tuple[str, int], str] = field(default_factory=dict)
    refused: int = 0
    wrong: int = 0
    stuck: bool = False
    waits_s: list[float] = field(default_factory=list)
    _stopping: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._ask, name=f"asker of {self.name}s", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread:
            self._thread.join(CALL_LIMIT_S)
            self.stuck = self._thread.is_alive()

    def _ask(self) -> None:
        number = 0
        while not self._stopping.wait(0.2):
            number += 1
            text = f"{self.name} {number}"
            started = time.monotonic()
            try:
                answer = self.door.submit("echo", text)
            except (ArgosyError, *ERRORS.values()):  # or what the agent raised in the client
                self.refused += 1
                continue
            self.asked[answer.job, answer.seq] = text
            output = self._output(answer)
            if output is not None:
                self.waits_s.append(time.monotonic() - started)
                self.wrong += output != scripted_output(text, "echo")

    def _output(self, answer: Answer) -> Any:
        while not self._stopping.is_set():
            try:
                return answer.result(timeout_s=1)
            except (ResultTimeout, StoreError, *ERRORS.values()):
                self._stopping.wait(0.05)
            except ItemFailed:  # the verdict finds the row
                return None
        return None


def scripted_output(text: str, task: str) -> Any:
    """Return the scripted model's answer."""
    import zlib

    crc = zlib.crc32(text.encode())
    return [{"label": f"said {crc}", "score": 1.0}] if task == "say" else {"crc": crc, "task": task}
