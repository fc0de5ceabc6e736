"""The one thread that owns the waiting items, the models and the device, and how other threads reach it.

Everything comes to it through one inbox, in order: new entries, models to come and to go, and what the device says. It never waits on a
timer, only for as long as the device may be silent. What it does about what comes is the `Feeder`'s, which belongs to it alone: from
other threads only that is read which is said to be for them.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from results_store.records import Batch
from workers.batching.feeder import Feeder
from workers.batching.inbox import Admit, Cancel, Message, Retire, Weigh
from workers.batching.planning.cost_model import CostModel
from workers.batching.planning.policy import Policy
from workers.batching.planning.residence import Footprint, Residence
from workers.batching.planning.stage_times import DEPTH
from workers.batching.roster import CannotLoad, Roster, ServedModel
from workers.batching.work import Entry, Group, Interrupted
from workers.batching.workload import Workload
from workers.device.device_client import DeviceClient, DeviceEvent
from workers.device.device_process import ModelToLoad


@dataclass(frozen=True, slots=True, kw_only=True)
class BatcherSettings:
    """`worker` and `device` name where batches ran, for the flight recorder. Times are seconds.

    Shares and promises are the policy's (`workers.batching.planning.policy.Policy`).
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
        policy = Policy(
            budgets={key: served.budget for key, served in models.items()},
            guaranteed_shares=settings.guaranteed_shares,
            promised_wait_s=settings.promised_wait_s,
            stages=DEPTH,
        )
        self.costs = costs or CostModel()
        self._feeder = Feeder(
            models=Roster(models, residence),
            work=Workload(models, policy, self.costs),
            costs=self.costs,
            worker=settings.worker,
            device_name=settings.device,
            load_timeout_s=settings.load_timeout_s,
            batch_timeout_s=settings.batch_timeout_s,
            on_batch=on_batch,
            on_out_of_service=on_out_of_service,
        )
        self._device: DeviceClient
        self._inbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._admission = threading.Lock()  # nobody waits for what would come behind the end mark of `stop`
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="batcher")

    # --- for other threads ---

    def start(self, device: DeviceClient) -> None:
        """Start the device and the thread. `device` must report its events to `tell`."""
        self._device = device
        self._feeder.start(device)
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
    def came_up(self) -> threading.Event:
        """Set once the device is ready for the first time, or out of service."""
        return self._feeder.came_up

    @property
    def out_of_service(self) -> str | None:
        """Why the device was given up, if it was."""
        return self._feeder.out_of_service

    @property
    def stepping(self) -> list[tuple[str, int]]:
        """The items (job, seq) that step at the device now, as far as another thread can tell."""
        return self._feeder.work.stepping_items()

    @property
    def residence(self) -> Residence:
        """Which models are loaded, and what they take."""
        return self._feeder.models.residence

    def admit(self, served: ServedModel, wanted: ModelToLoad, footprint: Footprint | None = None) -> Future[None]:
        """Have one more version of a model loaded, beside those that run. What comes of it is CannotLoad, if it cannot be."""
        return self._ask(Admit(served, wanted, footprint or Footprint(), Future()))

    def retire(self, key: str) -> Future[None]:
        """Have what waits for a version superseded, and the version unloaded when what the device has of it is done."""
        return self._ask(Retire(key, Future()))

    def _ask(self, message: Admit | Retire) -> Future[None]:
        with self._admission:
            if not self._closed:
                self._inbox.put(message)
                return message.done
        message.done.set_exception(CannotLoad("this worker stops"))
        return message.done

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
                message = self._inbox.get(timeout=self._feeder.patience_s())
            except queue.Empty:
                self._feeder.give_up_waiting()
                continue
            while message is not None:
                self._feeder.take(message)
                if self._inbox.empty():
                    break
                message = self._inbox.get()  # decide once on all that is here
            if message is None:
                self._feeder.end()
                return
            self._feeder.feed()
