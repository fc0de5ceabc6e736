"""The one thread that owns the waiting items: it feeds the device one micro-batch ahead and survives its deaths.

Everything reaches it through one inbox, in order: new entries, and what the device says. After each it asks the policy for
batches until the device has one running and one staged. It never waits on a timer; the only time limits are those
after which a loading or a running device counts as hung. Whose fault a failed batch is, `workers.batching.blame` finds out.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from results_store.records import Batch
from workers.batching.blame import Suspects
from workers.batching.cost import CostModel
from workers.batching.inbox import Admit, Cancel, Message, Retire, Weigh
from workers.batching.joining import Joining, together
from workers.batching.microbatch import MicroBatch, Ran
from workers.batching.policy import Budget, Policy
from workers.batching.residence import AT_ONCE, Footprint, Need, Residence
from workers.batching.roster import CannotLoad, Roster, ServedModel
from workers.batching.scheduler import Scheduler
from workers.batching.stages import DEPTH, Stages
from workers.batching.work import Cancelled, Entry, Expired, Group, Interrupted, Superseded
from workers.device_client import DeviceClient, DeviceEvent
from workers.device_process import ModelToLoad
from workers.models.model import Arrays
from workers.models.stepwise import StepwiseModel
from workers.transfer import Header

logger = logging.getLogger(__name__)

#: A device that does not come up this often in a row is out of service.
MAX_FAILED_STARTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class BatcherSettings:
    """`worker` and `device` name where batches ran, for the flight recorder. Times are seconds.

    Shares and promises are the policy's (`workers.batching.policy.Policy`).
    """

    worker: str
    device: str
    load_timeout_s: float
    batch_timeout_s: float
    guaranteed_shares: Mapping[int, float]
    promised_wait_s: Mapping[int, float] = field(default_factory=dict)


class Batcher:
    """Gathers entries into micro-batches for one device. `start`, `submit` from any thread, `stop`.

    `models` are those of the start, by their keys; `residence` knows what they take, where memory is bounded.
    """

    def __init__(
        self,
        models: Mapping[str, ServedModel],
        settings: BatcherSettings,
        *,
        on_batch: Callable[[Batch], None],
        on_out_of_service: Callable[[str], None],
        costs: CostModel | None = None,
        residence: Residence | None = None,
    ) -> None:
        if residence is None:
            residence = Residence()
            for key in models:
                residence.add(key, Footprint())
        self._models = Roster(models, residence)
        self._settings = settings
        self._on_batch = on_batch
        self._on_out_of_service = on_out_of_service
        policy = Policy(
            budgets={name: served.budget for name, served in models.items()},
            guaranteed_shares=settings.guaranteed_shares,
            promised_wait_s=settings.promised_wait_s,
            stages=DEPTH,
        )
        self.costs = costs or CostModel()
        self._scheduler: Scheduler[Entry] = Scheduler(policy, self.costs)
        stepwise = {name: one.budget for name, one in models.items() if isinstance(one.model, StepwiseModel)}
        self._joining = Joining(policy, self.costs, stepwise)
        self._inbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._admission = threading.Lock()
        self._closed = False
        self._suspects = Suspects()
        self._in_flight: Stages[MicroBatch] = Stages()
        self._running_since = 0.0  # monotonic; when the first in flight, or the loading, began
        self._ready = False
        self._failed_starts = 0
        self._thread = threading.Thread(target=self._loop, name="batcher")
        self._device: DeviceClient
        self.came_up = threading.Event()  # the device is ready for the first time, or out of service
        self.out_of_service: str | None = None

    # --- for other threads ---

    def start(self, device: DeviceClient) -> None:
        """Start the device and the thread. `device` must report its events to `tell`."""
        self._device = device
        self._start_device()
        self._thread.start()

    def tell(self, event: DeviceEvent) -> None:
        """Take note of what the device said."""
        self._inbox.put(event)

    def submit(self, entries: Sequence[Entry]) -> Group:
        """Queue entries and return their group, to wait on. After `stop` they are interrupted at once."""
        group = Group(entries)
        with self._admission:
            if not self._closed:
                self._inbox.put(list(entries))
                return group
        for entry in entries:
            entry.finish(Interrupted())
        return group

    def cancel(self, jobs: Collection[str] = (), items: Collection[tuple[str, int]] = ()) -> None:
        """End what waits or steps of these jobs, or of these items (job, seq), as cancelled. A batch that the device already
        has is computed: the first to end wins."""
        self._inbox.put(Cancel(frozenset(jobs), frozenset(items)))

    @property
    def stepping(self) -> list[tuple[str, int]]:
        """The items (job, seq) that step at the device now, as far as another thread can tell."""
        return self._joining.items()

    @property
    def residence(self) -> Residence:
        """Which models are loaded, and what they take."""
        return self._models.residence

    def admit(self, served: ServedModel, wanted: ModelToLoad, footprint: Footprint | None = None) -> Future[None]:
        """Have one more version of a model loaded, beside those that run. What comes of it is CannotLoad, if it cannot be."""
        done: Future[None] = Future()
        self._put(Admit(served, wanted, footprint or Footprint(), done), done)
        return done

    def retire(self, key: str) -> Future[None]:
        """Have what waits for a version superseded, and the version unloaded when what the device has of it is done."""
        done: Future[None] = Future()
        self._put(Retire(key, done), done)
        return done

    def _put(self, message: Message, done: Future[None]) -> None:
        with self._admission:
            if not self._closed:
                self._inbox.put(message)
                return
        done.set_exception(CannotLoad("this worker stops"))

    def weigh(self, weights: Mapping[str, float]) -> None:
        """From now on tenants take turns by these weights."""
        self._inbox.put(Weigh(weights))

    def stop(self) -> None:
        """Interrupt whatever waits or runs, end the device, and return when the thread has ended."""
        with self._admission:
            self._closed = True
            self._inbox.put(None)
        if self._thread.ident is not None:
            self._thread.join()
            self._device.close()

    # --- the batcher's own thread ---

    def _loop(self) -> None:
        while True:
            try:
                message = self._inbox.get(timeout=self._patience_s())
            except queue.Empty:
                self._device_hangs()
                continue
            while message is not None:
                self._take(message)
                if self._inbox.empty():
                    break
                message = self._inbox.get()  # decide once on all that is here
            if message is None:
                self._interrupt_all()
                self._models.close()
                return
            if self.out_of_service:
                self._interrupt_all()
            else:
                self._dispatch()

    def _take(self, message: Message) -> None:
        if isinstance(message, list):
            self._add(message)
        elif isinstance(message, Admit):
            self._admit(message)
        elif isinstance(message, Retire):
            self._retire(message)
        elif isinstance(message, Cancel):
            self._cancel(message.concerns)
        elif isinstance(message, Weigh):
            self._scheduler.turns.weights = dict(message.weights)
            self._joining.weigh(message.weights)
        elif message.life == self._device.life and not self.out_of_service:
            self._on_device_event(message.header, message.arrays)

    def _add(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            if not self._models.takes(entry.waiting.model):  # retired while the item was prepared
                entry.finish(Superseded())
        taken = [entry for entry in entries if self._models.takes(entry.waiting.model)]
        self._scheduler.add(entry for entry in taken if not self._joining.has(entry.waiting.model))
        self._joining.add(entry for entry in taken if self._joining.has(entry.waiting.model))

    def _admit(self, asked: Admit) -> None:
        served = asked.served
        before = self._models.newest(served.name)
        self.costs.inherit(served.key, before or served.name)
        self._models.admit(served, asked.wanted, asked.footprint, asked.done)
        if isinstance(served.model, StepwiseModel):
            self._joining.serve(served.key, served.budget)
        else:
            self._scheduler.bound(served.key, served.budget)

    def _retire(self, asked: Retire) -> None:
        """What the device has, and what is under suspicion, is finished by the old version; what waits is prepared again."""
        self._models.retire(asked.key, asked.done)
        waiting = self._scheduler.take(lambda entry: entry.waiting.model == asked.key)
        for entry in (*waiting, *self._joining.take_waiting(asked.key)):
            entry.finish(Superseded())

    def _on_device_event(self, header: Header, arrays: Arrays) -> None:
        event = header["event"]
        if event == "ready":
            self._on_ready(header)
        elif "model" in header and event in ("loaded", "unloaded", "unloadable"):
            self._on_model_event(header)
        elif event == "done":
            self._on_done(header, arrays)
        elif event == "failed":
            batches = [one for id_ in header.get("batches") or [header["batch"]] if (one := self._answered(id_))]
            if batches:
                self._on_failed(together(batches), header["kind"], header["message"], header.get("traceback", ""))
        elif event == "stepping":
            self._on_stepping(header["pieces"])
        elif event == "unloadable":
            logger.error(
                "the device cannot load its models: %s: %s\n%s", *map(header.get, ("kind", "message", "traceback"))
            )
            self._leave_service(f"{header['kind']}: {header['message']}")
        elif event == "lost":
            self._on_lost("DeviceLost", header["message"])

    def _on_ready(self, header: Header) -> None:
        self._ready = True
        self._failed_starts = 0
        self._models.came_up(header)
        if problem := self._models.too_large():
            self._leave_service(problem)
        elif not self.residence.untried:
            self.came_up.set()

    def _on_model_event(self, header: Header) -> None:
        if header["event"] == "unloadable":
            logger.error("%s\n%s", header["message"], header.get("traceback", ""))
        if problem := self._models.on_event(header):
            self._leave_service(problem)
        elif not self.residence.untried:
            self.came_up.set()

    def _move(self) -> None:
        """Have models come and go, where not all are there for good; note who cannot run meanwhile."""
        if self.residence.settled:
            absent: Mapping[str, float] = {}
        else:
            suspected = {model: Need(AT_ONCE, 0.0) for model in self._suspects.models}
            needs = self._scheduler.needs() | self._joining.needs() | suspected
            busy = {batch.model for batch in self._in_flight} | self._joining.running
            self._models.move(needs, busy)
            for key in self._models.dismissed(needs, busy):
                self._joining.drop(key)
            absent = self.residence.absent(time.monotonic())
        self._scheduler.absent = absent
        self._joining.note_absent(absent)

    def _dispatch(self) -> None:
        if self._ready:
            self._move()
        while self._ready:
            if self._suspects or self._runs_suspects:
                batch = self._next_suspects()
            else:
                batch = self._next_to_join() or self._next()
            if batch is None:
                return
            self._send(batch)

    def _next_to_join(self) -> MicroBatch | None:
        batch, expired = self._joining.next(time.time())
        for entry in expired:
            entry.finish(Expired())
        return batch

    @property
    def _runs_suspects(self) -> bool:
        return len(self._in_flight) > 0 and self._in_flight.first.chosen is None

    def _next_suspects(self) -> MicroBatch | None:
        """Take the next group to be run alone, once nothing else is at the device; nothing may be staged behind it either."""
        if len(self._in_flight) or len(self._joining) or not self._suspects:
            return None
        if self._suspects.next_model in self._scheduler.absent:
            return None
        return MicroBatch(self._suspects.next(), time.time())

    def _next(self) -> MicroBatch | None:
        """Decide on a batch, if there is room for one or the staged one may be overtaken."""
        behind, urgent = None, self._scheduler.most_urgent
        if not self._in_flight.has_room:
            behind = self._in_flight.overtakable
            if behind is None or urgent is None or urgent >= behind:
                return None
        now = time.time()
        busy_s = self._in_flight.busy_s(time.monotonic() - self._running_since, overtaking=behind is not None)
        starts_at = now + busy_s if len(self._in_flight) else None
        decision = self._scheduler.next(now, starts_at, overtaking=behind)
        for entry in decision.expired:
            entry.finish(Expired())
        return MicroBatch(decision.batch.items, now, decision.batch) if decision.batch else None

    def _send(self, batch: MicroBatch) -> None:
        try:
            arrays = batch.collated(self._models[batch.model].model)
        except Exception as error:  # noqa: BLE001 - a model's own code; its batch is bisected like any other
            self._on_failed(batch, type(error).__name__, str(error), "")
            return
        now = time.monotonic()
        self.residence.used(batch.model, now)
        if not len(self._in_flight):
            self._running_since = now
        if batch.chosen and self._joining.has(batch.model):
            self._joining.began(batch)
        else:
            overtaking = not self._in_flight.has_room
            self._in_flight.give(batch, batch.priority, batch.predicted_s or 0.0, overtaking=overtaking)
        self._device.run(batch.id, batch.model, arrays, batch.wanted, urgency=batch.priority)

    def _answered(self, id_: str) -> MicroBatch | None:
        """Take the batch that the device speaks of, unless it was dropped; the next one runs by now."""
        self._running_since = time.monotonic()
        if stepped := self._joining.end(id_):
            return stepped
        batch = next((batch for batch in self._in_flight if batch.id == id_), None)
        if batch is not None:
            self._in_flight.end(batch)
        return batch

    def _cancel(self, concerns: Callable[[Entry], bool]) -> None:
        entries = self._scheduler.take(concerns)
        waiting, stepping = self._joining.take(concerns)
        if stepping:
            self._device.drop([batch.id for batch in stepping])
        for entry in (*entries, *waiting, *(entry for batch in stepping for entry in batch.entries)):
            entry.finish(Cancelled())

    def _on_stepping(self, pieces: Sequence[tuple[str, str, int, int, str]]) -> None:
        """The device lives, and may have a piece of text for who listens: batch, task, row, place in the text, piece."""
        self._running_since = time.monotonic()
        for id_, task, row, at, text in pieces:
            batch = self._joining.find(id_) or next((one for one in self._in_flight if one.id == id_), None)
            if batch is not None:
                batch.tell(task, row, at, text)

    def _on_done(self, header: Header, arrays: Arrays) -> None:
        batch = self._answered(header["batch"])
        if batch is None:
            return
        self._models.grew(header)
        ran = Ran(time.time(), header["forward_s"], header.get("idle_s", 0.0), header.get("cached_rows", 0))
        if self._joining.has(batch.model):
            self._joining.ran(batch, ran.forward_s)
        elif batch.chosen:
            # what the cache spared says nothing about what a batch costs
            shape = None if ran.cached_rows else batch.shape
            self._scheduler.ran(batch.chosen, batch.model, shape, ran.forward_s)
        # recorded before it is delivered, so that no result is stored whose batch is not
        where = {"device": self._settings.device, "worker": self._settings.worker}
        served = self._models[batch.model]
        record = batch.record(ran, model=served.name, revision=served.revision, **where)
        self._on_batch(replace(record, loads=self._models.loads_since_last()))
        batch.deliver(arrays, ran.ended_at)

    # --- faults ---

    def _on_failed(self, batch: MicroBatch, kind: str, message: str, traceback: str) -> None:
        if kind == "OutOfMemory":
            self._shrink(batch)
        self._suspects.raised(batch, kind, message, traceback)

    def _on_lost(self, kind: str, message: str) -> None:
        logger.warning("%s: %s; restarting it", self._settings.device, message)
        if not self._ready:
            self._failed_starts += 1
        self._ready = False
        problem = self._models.lost()
        suspected, innocent = self._in_flight.lost()
        for batch in (*reversed(suspected), *self._joining.lost()):
            self._suspects.died(batch, kind, message)
        for batch in reversed(innocent):  # they go back to the front, as they were
            if self._models.takes(batch.model):
                self._scheduler.put_back(batch.entries)
            else:
                self._add(batch.entries)
        if problem:
            self._leave_service(problem)
        elif self._failed_starts >= MAX_FAILED_STARTS:
            self._leave_service(f"it did not come up {self._failed_starts} times in a row: {message}")
        else:
            self._start_device()

    def _shrink(self, batch: MicroBatch) -> None:
        if self._joining.has(batch.model):
            self._joining.shrink(batch)
            return
        budget = self._scheduler.budget(batch.model)
        smaller = Budget(
            max(1, min(budget.cost, batch.padded_cost) // 2), max(1, min(budget.rows, len(batch.rows)) // 2)
        )
        logger.warning(
            "%s: out of memory; batches of %s now hold at most %s", self._settings.device, batch.model, smaller
        )
        self._scheduler.bound(batch.model, smaller)

    def _patience_s(self) -> float | None:
        """How long the device may stay silent from now on; None while nothing is expected of it."""
        if self.out_of_service:
            return None
        ends_at = [since + limit_s for since, limit_s in self._expected()]
        return max(0.0, min(ends_at) - time.monotonic()) if ends_at else None

    def _expected(self) -> list[tuple[float, float]]:
        """What is waited for: since when, and for how long it may be."""
        if not self._ready:
            return [(self._running_since, self._settings.load_timeout_s)]
        found = []
        if len(self._in_flight) or len(self._joining):
            found.append((self._running_since, self._settings.batch_timeout_s))
        if self.residence.loading:
            found.append((self._models.loading_since, self._settings.load_timeout_s))
        return found

    def _device_hangs(self) -> None:
        _, limit_s = min(self._expected(), key=sum)
        # the word of its death would come as an event; taking it here keeps the reason with the batch
        self._device.close()
        self._on_lost("DeviceHung", f"the device process was silent for {limit_s:g} s and was killed")
        self._dispatch()

    def _start_device(self) -> None:
        self._running_since = time.monotonic()
        self._models.start(self._device)

    def _leave_service(self, reason: str) -> None:
        self.out_of_service = reason
        self._device.kill()
        self.came_up.set()
        self._on_out_of_service(reason)

    def _interrupt_all(self) -> None:
        suspected, staged = self._in_flight.lost()
        stepping = self._joining.lost()
        entries = [
            *self._scheduler.take(lambda _: True),
            *self._suspects.clear(),
            *self._joining.take(lambda _: True)[0],
            *(entry for batch in (*suspected, *staged, *stepping) for entry in batch.entries),
        ]
        for entry in entries:
            entry.finish(Interrupted())
