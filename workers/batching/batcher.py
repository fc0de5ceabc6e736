"""The thread that owns the waiting items, the models and the device, and the methods by which other threads reach it.

All messages reach the thread through one inbox, in order: new entries, models to load or unload, and events of the
device. The thread sets no timers; it waits only as long as the device may be silent. The `Feeder` handles the messages
and belongs to this thread alone. Other threads read only attributes that are documented for them.
"""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field

from results_store.loops.loop import TICK_S, Loop
from results_store.records import Batch
from workers.batching.feeder import Feeder
from workers.batching.inbox import Admit, Cancel, GiveBack, Message, Retire, Weigh
from workers.batching.planning.cost_model import CostModel
from workers.batching.planning.policy import Policy
from workers.batching.planning.residence import Footprint, Residence
from workers.batching.planning.stage_times import DEPTH
from workers.batching.planning.work_seconds import Amount, WorkRate
from workers.batching.roster import CannotLoad, Roster, ServedModel
from workers.batching.work import Entry, Group, Interrupted
from workers.batching.workload import Workload
from workers.device.device_client import DeviceClient, DeviceEvent
from workers.device.device_process import ModelToLoad

#: A device that was silent for too long gets this much longer: if the worker was stopped and continued meanwhile, the
#: answer is there but not yet read.
GRACE_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class BatcherSettings:
    """Settings of a batcher. `worker` and `device` name the place of a batch in the flight recorder. Times are seconds.

    Shares and promises are settings of the policy (`workers.batching.planning.policy.Policy`).
    """

    worker: str
    device: str
    load_timeout_s: float
    batch_timeout_s: float
    guaranteed_shares: Mapping[int, float]
    promised_wait_s: Mapping[int, float] = field(default_factory=dict)


class Batcher:
    """Gathers entries into micro-batches for one device. `start`, `submit` from any thread, `stop`.

    `models` are the models of the start, by key. Where memory is bounded, `residence` knows the footprint of each.
    `crowded_s` returns the seconds since the start in which many envelopes were held: a device that waits then waits
    for the host.
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
        crowded_s: Callable[[], float] = lambda: 0.0,
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
            crowded_s=crowded_s,
        )
        self._device: DeviceClient | None = None
        self._inbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._admission = threading.Lock()  # no entry may reach the inbox behind the end mark of `stop`
        self._closed = False
        self._late_since: float | None = None  # monotonic time since which the device is silent for too long
        self._groups: weakref.WeakSet[Group] = weakref.WeakSet()  # all groups on which an envelope waits
        self.loop = Loop("batcher", self._turn, failed=self._failed)

    # --- for other threads ---

    def start(self, device: DeviceClient) -> None:
        """Start the device and the thread. `device` must report its events to `tell`."""
        self._device = device
        self._feeder.start(device)
        self.loop.start()

    def tell(self, event: DeviceEvent) -> None:
        """Accept an event of the device."""
        self._inbox.put(event)

    def submit(self, entries: Sequence[Entry]) -> Group:
        """Queue entries and return their group, to wait on. After `stop` the entries are interrupted at once."""
        group = Group(entries)
        with self._admission:
            if not self._closed:
                self._groups.add(group)
                self._inbox.put(list(entries))
                return group
        for entry in entries:
            entry.finish(Interrupted())
        return group

    def cancel(self, jobs: Collection[str] = (), items: Collection[tuple[str, int]] = ()) -> None:
        """Cancel the waiting or stepping items of these jobs, or these items (job, seq). A batch that the device
        already has is computed: the first outcome wins.
        """
        self._inbox.put(Cancel(frozenset(jobs), frozenset(items)))

    @property
    def came_up(self) -> threading.Event:
        """Set once the device is ready for the first time, or out of service."""
        return self._feeder.came_up

    @property
    def out_of_service(self) -> str | None:
        """The reason for which the device was given up, if it was."""
        return self._feeder.out_of_service

    @property
    def stepping(self) -> list[tuple[str, int]]:
        """The items (job, seq) that step at the device now, as seen by another thread."""
        return self._feeder.work.stepping_items()

    @property
    def rates(self) -> Mapping[str, WorkRate]:
        """The seconds of work by the model's name, of models that ran or whose costs were saved."""
        return self._feeder.work.rates.now

    def amounts(self) -> list[tuple[str, int, Amount]]:
        """Return the waiting and stepping work by model and priority, in parts."""
        return self._feeder.work.amounts()

    def busy_s(self) -> tuple[float, float]:
        """Predict the seconds until the device has done its batches; also return by how much the running batch is
        overdue.
        """
        return self._feeder.busy_s()

    def running_groups(self) -> list[Group]:
        """The groups with entries in the batch that the device runs now."""
        return self._feeder.work.running_groups()

    def with_room(self) -> set[str]:
        """The stepwise models of which the device may hold more requests than there are."""
        return self._feeder.work.with_room()

    def give_back(self, group: Group, *, begun: bool = True) -> None:
        """Interrupt the entries of a group that have no outcome yet, unless not `begun` also those at the device."""
        self._inbox.put(GiveBack(group, begun))

    @property
    def residence(self) -> Residence:
        """The loaded models and their footprints."""
        return self._feeder.models.residence

    def admit(self, served: ServedModel, wanted: ModelToLoad, footprint: Footprint | None = None) -> Future[None]:
        """Load one more version of a model beside the served ones. The future raises CannotLoad if the model cannot be
        loaded.
        """
        return self._ask(Admit(served, wanted, footprint or Footprint(), Future()))

    def retire(self, key: str) -> Future[None]:
        """Supersede the items that wait for a version, and unload the version once the device has finished its
        batches.
        """
        return self._ask(Retire(key, Future()))

    def _ask(self, message: Admit | Retire) -> Future[None]:
        with self._admission:
            if not self._closed:
                self._inbox.put(message)
                return message.done
        message.done.set_exception(CannotLoad("this worker stops"))
        return message.done

    def weigh(self, weights: Mapping[str, float]) -> None:
        """Set the weights by which tenants take turns."""
        self._inbox.put(Weigh(weights))

    def stop(self) -> None:
        """Interrupt all waiting and running items, end the device, and return when the thread has ended."""
        with self._admission:
            self._closed = True
            self._inbox.put(None)
        self.loop.join()
        if self._device is not None:
            self._device.close()

    def kill(self) -> None:
        """Kill the device process. This process then ends at once."""
        if self._device is not None:
            self._device.kill()

    # --- the batcher's own thread ---

    def _turn(self) -> bool:
        patience_s = self._feeder.patience_s()
        if patience_s:
            self._late_since = None
        elif self._late_since is None:
            self._late_since = time.monotonic()
        try:
            message = self._inbox.get(timeout=min(patience_s, TICK_S) or GRACE_S)
        except queue.Empty:
            self._give_up_waiting()
            return True
        while message is not None:
            self._feeder.take(message)
            if self._inbox.empty():
                break
            message = self._inbox.get()  # take all messages, so that one decision covers them
        if message is None:
            self._feeder.end()
            return False
        self._feeder.feed()
        self._give_up_waiting()
        return True

    def _give_up_waiting(self) -> None:
        """Give the device up, if it is silent for too long although all that it said until then was read."""
        late = self._late_since is not None and time.monotonic() - self._late_since >= GRACE_S
        if late and not self._feeder.patience_s():
            self._late_since = None
            self._feeder.give_up_waiting()

    def _failed(self, error: BaseException) -> None:
        """Interrupt all items and end the service: nothing is known for certain about the waiting items any more."""
        with suppress(Exception):
            self._feeder.work.take_all()
        with self._admission:
            groups = list(self._groups)
        for group in groups:
            group.interrupt()
        self._feeder.leave_service(f"the batcher failed: {type(error).__name__}: {error}")
