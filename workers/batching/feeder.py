"""Handles the messages of the batcher's thread: feeds the device one micro-batch ahead, and survives the device's
deaths.

The `Workload` knows the waiting items and decides on the next batch. The `Roster` knows the models, and loads and
unloads them. Neither knows the other; the feeder owns both, and the device. A single thread runs all of this, so
nothing is locked. The only time limits are those after which a loading or a running device counts as hung.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from producers.wire.tracing import spans
from results_store.loops.loop import doing
from results_store.records import Batch
from workers.batching.inbox import Admit, Cancel, GiveBack, Message, Retire, Weigh
from workers.batching.joining_requests import together
from workers.batching.microbatch import BatchRun, MicroBatch
from workers.batching.planning.cost_model import CostModel
from workers.batching.roster import Roster
from workers.batching.steady_clock import machine_time, steady_time
from workers.batching.work import Cancelled, Entry, Interrupted, Superseded
from workers.batching.workload import Workload
from workers.device.device_client import DeviceClient
from workers.device.transfer import Header
from workers.models.interface import returned
from workers.models.interface.class_calls import ClassCalls
from workers.models.interface.model import Arrays, Model, tried

logger = logging.getLogger(__name__)

#: A device that fails to start this many times in a row is out of service.
MAX_FAILED_STARTS = 3

#: The pause after a start that failed in this process, for each such start in a row: descriptors or memory may be free
#: again by then.
START_AGAIN_S = 2.0

#: The host is to blame for a device's wait if the node held many envelopes for this share of the time.
CROWDED_SHARE = 0.9

#: The most seconds for which a process starts or ends, before its models are loaded.
PROCESS_LIMIT_S = 60.0


@dataclass(slots=True, kw_only=True)
class Feeder:
    """Not thread-safe, except `came_up`, `out_of_service` and `busy_s`. `worker` and `device_name` name the place of a
    batch. `crowded_s` returns the seconds since the start in which the node held many envelopes.
    """

    models: Roster
    work: Workload
    costs: CostModel
    worker: str
    device_name: str
    load_timeout_s: float
    batch_timeout_s: float
    on_batch: Callable[[Batch], None]
    on_out_of_service: Callable[[str], None]
    crowded_s: Callable[[], float] = lambda: 0.0
    calls: ClassCalls = field(init=False)
    came_up: threading.Event = field(default_factory=threading.Event)  # ready for the first time, or out of service
    out_of_service: str | None = None
    _device: DeviceClient = field(init=False)
    _ready: bool = False
    _failed_starts: int = 0
    _start_at: float | None = None  # monotonic time of the next start, after a start that failed in this process
    _crowded_s: float = 0.0  # `crowded_s` at the end of the last batch
    _running_since: float = 0.0  # monotonic time at which the running batch, or the start of the device, began

    def __post_init__(self) -> None:
        self.calls = ClassCalls(self.batch_timeout_s)

    def start(self, device: DeviceClient) -> None:
        """Start the device."""
        self._device = device
        self._start_device()

    def take(self, message: Message) -> None:
        """Handle one message. `feed` then acts on this and all other messages that came together."""
        if isinstance(message, list):
            self._add(message)
        elif isinstance(message, Admit):
            self._admit(message)
        elif isinstance(message, Retire):
            self._retire(message)
        elif isinstance(message, Cancel):
            self._cancel(message)
        elif isinstance(message, GiveBack):
            self._give_back(message)
        elif isinstance(message, Weigh):
            self.work.weigh(message.weights)
        elif message.life == self._device.life and not self.out_of_service:
            self._on_device_event(message.header, message.arrays)

    def feed(self) -> None:
        """Load and unload models as the waiting items need them, then give the device work until it has enough."""
        if self.out_of_service:
            self._interrupt_all()
            return
        if self._ready:
            self._move_models()
        while self._ready and (batch := self.work.next(steady_time(), time.monotonic() - self._running_since)):
            self._send(batch)

    def busy_s(self) -> tuple[float, float]:
        """Predict the seconds until the device has done its batches; also return by how much the running batch is
        overdue. A device that starts again counts as overdue. Safe from any thread.
        """
        running_s = time.monotonic() - self._running_since
        return self.work.ahead_s(running_s) if self._ready else (running_s, running_s)

    def patience_s(self) -> float:
        """The seconds for which the device may stay silent from now on; infinite while no answer is expected."""
        if self.out_of_service:
            return math.inf
        ends_at = [since + limit_s for since, limit_s in self._expected()]
        return max(0.0, min(ends_at, default=math.inf) - time.monotonic())

    def give_up_waiting(self) -> None:
        """Restart the device, which was silent for too long, or whose pause before the next start is over."""
        if self._start_at is not None:
            self._start_device()
            return
        _, limit_s = min(self._expected(), key=sum)
        slow = self._slow_load()
        # the device's death would come as an event; handling it here keeps the reason with the batch
        with doing("the end of the device process", PROCESS_LIMIT_S):
            self._device.end()
        if slow:  # no fault of the batches beside it
            self._on_lost("DeviceLost", f"{slow}, and the device process was killed", slow)
        else:
            self._on_lost("DeviceHung", f"the device process was silent for {limit_s:g} s and was killed")
        self.feed()

    def _slow_load(self) -> str:
        """Say which model's loading beside the batches has taken too long, if there is one."""
        key = self.models.residence.loading
        if not self._ready or key is None or time.monotonic() < self.models.loading_since + self.load_timeout_s:
            return ""
        return f"model {key} was not loaded within {self.load_timeout_s:g} s"

    def end(self) -> None:
        """Interrupt all waiting and running items, for good."""
        self._interrupt_all()
        self.models.close()

    # --- requests of other threads ---

    def _add(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            if not self.models.takes(entry.waiting.model):  # the version was retired while the item was prepared
                entry.finish(Superseded())
        self.work.add([entry for entry in entries if self.models.takes(entry.waiting.model)])

    def _admit(self, asked: Admit) -> None:
        served = asked.served
        self.costs.inherit(served.key, self.models.newest(served.name) or served.name)
        self.models.admit(served, asked.wanted, asked.footprint, asked.done)
        self.work.serve(served)

    def _retire(self, asked: Retire) -> None:
        """The old version finishes its batches and its suspects; items that wait are prepared again."""
        self.models.retire(asked.key, asked.done)
        for entry in self.work.take_waiting(asked.key):
            entry.finish(Superseded())

    def _cancel(self, asked: Cancel) -> None:
        entries, stepping = self.work.take(asked.concerns)
        if stepping:
            self._device.drop(stepping)
        for entry in entries:
            entry.finish(Cancelled())

    def _give_back(self, asked: GiveBack) -> None:
        if not asked.begun:
            for entry in self.work.take_unbegun(lambda entry: entry.group is asked.group):
                entry.finish(Interrupted())
            return
        _, stepping = self.work.take(lambda entry: entry.group is asked.group)
        if stepping:
            self._device.drop(stepping)
        asked.group.interrupt()

    def _interrupt_all(self) -> None:
        for entry in self.work.take_all():
            if entry.outcome is None:  # an entry may be interrupted with its group
                entry.finish(Interrupted())

    # --- events of the device ---

    def _on_device_event(self, header: Header, arrays: Arrays) -> None:
        event = header["event"]
        if event == "ready":
            self._on_ready(header)
        elif "model" in header and event in ("loaded", "unloaded", "unloadable"):
            self._on_model_event(header)
        elif event == "done":
            self._on_done(header, arrays)
        elif event == "failed":
            self._on_failed(header)
        elif event == "stepping":
            self._on_stepping(header["pieces"])
        elif event == "unloadable":
            problem = f"model {header['loads']} cannot be loaded: {header['kind']}: {header['message']}"
            logger.error("%s\n%s", problem, header["traceback"])
            self.leave_service(problem)
        elif event == "lost":
            self._on_lost("DeviceLost", header["message"])

    def _on_ready(self, header: Header) -> None:
        self._ready = True
        self._failed_starts = 0
        self.models.came_up(header)
        self._serve_unless(self.models.too_large())

    def _on_model_event(self, header: Header) -> None:
        if header["event"] == "unloadable":
            logger.error("%s\n%s", header["message"], header.get("traceback", ""))
        self._serve_unless(self.models.on_event(header))

    def _serve_unless(self, problem: str | None) -> None:
        """Go out of service for a problem; without a problem the device is up once every model has been tried."""
        if problem:
            self.leave_service(problem)
        elif not self.models.residence.untried:
            self.came_up.set()

    def _on_stepping(self, pieces: Sequence[tuple[str, str, int, int, str]]) -> None:
        """The device lives, and may have a piece of text for a listener: batch, task, row, place in the text, piece."""
        self._running_since = time.monotonic()
        for id_, task, row, at, text in pieces:
            if batch := self.work.find(id_):
                batch.tell(task, row, at, text)

    def _on_done(self, header: Header, arrays: Arrays) -> None:
        batch = self._ended(header["batch"])
        if batch is None:
            return
        self.models.grew(header)
        idle_s = header.get("idle_s", 0.0)
        host_s = self._host_s(idle_s, header["forward_s"])
        ran = BatchRun(time.time(), header["forward_s"], idle_s, header.get("cached_rows", 0), host_s)
        self.work.ran(batch, ran)
        # recorded before it is delivered, so that every stored result has a recorded batch
        where = {"device": self.device_name, "worker": self.worker}
        served = self.models[batch.model]
        record = batch.record(ran, model=served.name, revision=served.revision, **where)
        self.on_batch(replace(record, loads=self.models.loads_since_last()))
        about = {"batch": record.id, "model": record.model, "device": record.device, "rows": record.rows}
        traces = [entry.group.trace for entry in batch.entries if entry.group]
        spans.batched(f"batch {record.model}", about, traces, (record.started_at, ran.ended_at))
        batch.deliver(arrays, machine_time(batch.formed_at), ran.ended_at)

    def _host_s(self, idle_s: float, forward_s: float) -> float | None:
        """Return the seconds for which the device waited for the host; None if it may have waited for work."""
        crowded_s = self.crowded_s()
        of_batch_s, self._crowded_s = crowded_s - self._crowded_s, crowded_s
        return idle_s if of_batch_s >= CROWDED_SHARE * (idle_s + forward_s) else None

    def _on_failed(self, header: Header) -> None:
        batches = [one for id_ in header.get("batches") or [header["batch"]] if (one := self._ended(id_))]
        if batches:
            self._raised(together(batches), header["kind"], header["message"], header.get("traceback", ""))

    def _ended(self, id_: str) -> MicroBatch | None:
        """Return the batch of the event, unless it was dropped; the next batch runs by now."""
        self._running_since = time.monotonic()
        return self.work.end(id_)

    def _raised(self, batch: MicroBatch, kind: str, message: str, traceback: str) -> None:
        if kind == "OutOfMemory":
            smaller = self.work.shrink(batch)
            logger.warning(
                "%s: out of memory; batches of %s now hold at most %s", self.device_name, batch.model, smaller
            )
        self.work.raised(batch, kind, message, traceback)

    # --- work for the device ---

    def _move_models(self) -> None:
        """Load and unload models, where not all are always loaded; record the models that cannot run meanwhile."""
        absent: Mapping[str, float] = {}
        if not self.models.residence.settled:
            needs, busy = self.work.needs(), self.work.busy
            self.models.move(needs, busy)
            for key in self.models.dismissed(needs, busy):
                self.work.drop(key)
            absent = self.models.residence.absent(time.monotonic())
        self.work.note_absent(absent)

    def _send(self, batch: MicroBatch) -> None:
        now = time.monotonic()
        model = self.models[batch.model].model
        usual = type(model).collate is Model.collate  # which does not hang
        arrays = tried(batch.collated, model) if usual else self.calls.call(model, "collate", batch.collated, model)
        if isinstance(arrays, Exception):  # of a model's own code; its batch is bisected like any other
            self._raised(batch, type(arrays).__name__, returned.text(arrays), "")
            return
        self.models.residence.used(batch.model, now)
        if not self.work.running:
            self._running_since = now
        self.work.began(batch)
        with doing("sending a batch to the device process", 2 * self.batch_timeout_s):
            self._device.run(batch.id, batch.model, arrays, batch.wanted, urgency=batch.priority)

    # --- its life ---

    def _start_device(self) -> None:
        """Start the device. If this process cannot start it, for want of descriptors or memory, try again later."""
        self._running_since = time.monotonic()
        self._start_at = None
        try:
            with doing("the start of the device process", PROCESS_LIMIT_S):
                self.models.start(self._device)
        except Exception as error:  # noqa: BLE001 - OSError, RuntimeError or MemoryError: a failed start like any other
            self._failed_starts += 1
            problem = f"{type(error).__name__}: {error}"
            logger.warning("%s: cannot be started (%d): %s", self.device_name, self._failed_starts, problem)
            self._start_at = self._running_since + START_AGAIN_S * self._failed_starts
            self._leave_after_failed_starts(problem)

    def _leave_after_failed_starts(self, message: str) -> bool:
        if self._failed_starts < MAX_FAILED_STARTS:
            return False
        self.leave_service(f"it did not come up {self._failed_starts} times in a row: {message}")
        return True

    def _on_lost(self, kind: str, message: str, slow_load: str = "") -> None:
        running = {"batch": self.work.running_batch}
        logger.warning("%s: %s; restarting it", self.device_name, message, extra=running)
        if not self._ready:
            self._failed_starts += 1
        self._ready = False
        problem = self.models.lost(slow_load)
        for batch in self.work.lost(kind, message):
            if self.models.takes(batch.model):
                self.work.put_back(batch)
            else:
                self._add(batch.entries)
        if problem:
            self.leave_service(problem)
        elif not self._leave_after_failed_starts(message):
            self._start_device()

    def leave_service(self, reason: str) -> None:
        """Give the device up, for good."""
        if self.out_of_service:
            return
        self.out_of_service = reason
        self._device.kill()
        self.came_up.set()
        self.on_out_of_service(reason)

    def _expected(self) -> list[tuple[float, float]]:
        """The start and the time limit of the expected answer."""
        if self._start_at is not None:
            return [(self._start_at, 0.0)]
        if not self._ready:
            return [(self._running_since, self.load_timeout_s)]
        found = []
        if self.work.running or self.work.stepping:
            found.append((self._running_since, self.batch_timeout_s))
        if self.models.residence.loading:
            found.append((self.models.loading_since, self.load_timeout_s))
        return found
