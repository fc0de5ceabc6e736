"""A device's starts and ends, as the batcher's thread hears of them; the device itself only notes its orders."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import pytest

from producers.wire.errors import ConfigurationError
from tests.unit.test_stepping import Countdown
from tests.unit.test_workload import request
from workers.batching.feeder import MAX_FAILED_STARTS, Feeder
from workers.batching.inbox import Admit, Cancel
from workers.batching.planning.cost_model import CostModel
from workers.batching.planning.policy import Budget, Policy
from workers.batching.planning.residence import Footprint, Residence
from workers.batching.roster import Roster, ServedModel
from workers.batching.work import Cancelled, Interrupted
from workers.batching.workload import Workload
from workers.device.device_client import DeviceEvent
from workers.device.device_process import ModelToLoad
from workers.models.interface.model import Array, Arrays


class Orders:
    """A device that notes what it is told to do."""

    def __init__(self) -> None:
        self.life = 0
        self.ran: list[str] = []
        self.dropped: list[str] = []
        self.killed = False

    def offer(self, key: str, model: ModelToLoad) -> None: ...
    def forget(self, key: str) -> None: ...
    def load(self, key: str) -> None: ...
    def unload(self, key: str) -> None: ...
    def end(self) -> None: ...
    def close(self) -> None: ...

    def start(self, keys: Collection[str] | None = None) -> None:
        self.life += 1

    def run(self, batch: str, model: str, arrays: Arrays, wanted: Mapping[str, Array], *, urgency: int) -> None:
        self.ran.append(batch)

    def drop(self, batches: Sequence[str]) -> None:
        self.dropped += batches

    def kill(self) -> None:
        self.killed = True


class Rig:
    def __init__(self) -> None:
        served = {"countdown": ServedModel(Countdown(), "1", Budget(100, 8))}
        residence = Residence()
        residence.add("countdown", Footprint())
        costs = CostModel()
        self.reasons: list[str] = []
        self.feeder = Feeder(
            models=Roster(served, residence),
            work=Workload(served, Policy(budgets={}), costs),
            costs=costs,
            worker="w",
            device_name="cpu",
            load_timeout_s=60,
            batch_timeout_s=60,
            on_batch=lambda _: None,
            on_out_of_service=self.reasons.append,
        )
        self.device = Orders()
        self.feeder.start(self.device)

    def hear(self, event: str, **header: Any) -> None:
        self.feeder.take(DeviceEvent(self.device.life, {"event": event, **header}))
        self.feeder.feed()


def test_only_failed_starts_in_a_row_end_the_service() -> None:
    """A device that came up in between works: a machine that is short of memory now and then keeps it."""
    rig = Rig()
    for _ in range(3):
        for _ in range(MAX_FAILED_STARTS - 1):
            rig.hear("lost", message="died")
        rig.hear("ready")
        rig.hear("lost", message="died at work, which is no failed start")
    assert rig.feeder.out_of_service is None
    assert rig.device.life == 1 + 3 * MAX_FAILED_STARTS
    for _ in range(MAX_FAILED_STARTS):
        assert not rig.reasons
        rig.hear("lost", message="died")
    assert rig.device.killed
    [reason] = rig.reasons
    assert f"did not come up {MAX_FAILED_STARTS} times in a row" in reason


def test_an_event_of_an_earlier_life_says_nothing() -> None:
    rig = Rig()
    rig.hear("ready")
    rig.feeder.take(DeviceEvent(rig.device.life - 1, {"event": "lost", "message": "died"}))
    assert rig.device.life == 1


@pytest.mark.parametrize("by", ["job", "item"])
def test_the_device_is_told_to_drop_what_was_cancelled(by: str) -> None:
    """It would go on decoding for nobody."""
    rig = Rig()
    rig.hear("ready")
    requests = [request(0, job="job"), request(1, job="other"), request(0, job="other")]
    rig.feeder.take(requests)
    rig.feeder.feed()
    assert len(rig.device.ran) == 3
    rig.feeder.take(Cancel(jobs=frozenset({"job"})) if by == "job" else Cancel(items=frozenset({("job", 0)})))
    assert rig.device.dropped == rig.device.ran[:1]
    assert [entry.outcome for entry in requests] == [Cancelled(), None, None]
    rig.feeder.end()
    assert [entry.outcome for entry in requests] == [Cancelled(), Interrupted(), Interrupted()]


def test_a_loading_that_takes_too_long_is_no_fault_of_the_batches_beside_it() -> None:
    """A lone item that hung would fail at once."""
    rig = Rig()
    rig.hear("ready")
    [entry] = entries = [request(0)]
    rig.feeder.take(entries)
    served = ServedModel(Countdown(), "2", Budget(100, 8), generation=1)
    asked = Admit(served, ModelToLoad.from_spec("countdown", served.model.spec), Footprint(), Future())
    rig.feeder.take(asked)
    rig.feeder.feed()
    assert rig.feeder.models.residence.loading == served.key
    assert rig.device.ran
    rig.feeder.models.loading_since -= rig.feeder.load_timeout_s
    assert not rig.feeder.patience_s()
    rig.feeder.give_up_waiting()
    with pytest.raises(ConfigurationError, match="was not loaded within 60 s"):
        asked.done.result(timeout=0)
    assert (rig.device.life, rig.feeder.out_of_service, entry.outcome) == (2, None, None)
    rig.hear("ready")
    assert len(rig.device.ran) == 2
