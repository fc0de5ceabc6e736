"""A real device process within a memory budget: what it takes, what comes and goes, and that every item is answered
by its own model.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from producers.wire.catalogue import KINDS, Task
from results_store.records import Batch
from tests.end_to_end.processes import until
from tests.versioned_model import VersionedModel, write_version
from workers.batching.batcher import Batcher, BatcherSettings
from workers.batching.planning.policy import Budget
from workers.batching.planning.residence import Footprint, Residence
from workers.batching.planning.waiting_pool import Waiting
from workers.batching.roster import ServedModel
from workers.batching.work import Computed, Entry, Expired, Failed, Outcome
from workers.device.device_client import ProcessDevice
from workers.device.device_process import ModelToLoad
from workers.device.devices import cpu
from workers.models.interface.model import ModelSpec

MB = 10**6

#: What each model takes, and the room there is for them: two fit, also beside a process that was forked with its
#: libraries, which takes some 90 MB less than the first one, which imported them itself.
MODEL_MB, ROOM_MB = 240, 600

#: What a process that has done the same twice may differ by.
NOISE_MB = 25


class Rig:
    """A batcher with three models on a device process whose budget has room for two."""

    def __init__(self, folder: Path, device_bytes: int, *, largest_mb: int = MODEL_MB) -> None:
        self.models: dict[str, VersionedModel] = {}
        self.batches: list[Batch] = []
        to_load, residence = [], Residence(device_bytes + ROOM_MB * MB)
        for number, name in enumerate("abc", start=1):
            size = largest_mb if name == "c" else MODEL_MB
            spec = ModelSpec(
                name,
                write_version(folder / name, number, megabytes=size),
                f"{number}",
                {"echo": Task("echo", KINDS["text-classification"], name, "")},
            )
            self.models[name] = VersionedModel(spec)
            to_load.append(ModelToLoad.from_spec("tests.versioned_model:VersionedModel", spec))
            residence.add(name, Footprint(MODEL_MB * MB, measured=False))
        self.batcher = Batcher(
            {name: ServedModel(model, name, Budget(100_000, 64)) for name, model in self.models.items()},
            BatcherSettings(
                worker="w", device="cpu", load_timeout_s=60, batch_timeout_s=30, guaranteed_shares={9: 0.1}
            ),
            on_batch=self.batches.append,
            on_out_of_service=lambda _: None,
            residence=residence,
        )
        self.device = ProcessDevice(cpu(), to_load, self.batcher.tell, threads=1, measuring=True)

    def start(self) -> Rig:
        self.batcher.start(self.device)
        self.batcher.came_up.wait()
        self.at_start = self.residence.loads, len(self.residence.loaded), dict(self.residence.measured)
        return self

    @property
    def residence(self) -> Residence:
        return self.batcher.residence

    @property
    def taken_mb(self) -> float:
        """What the system says that the process takes."""
        assert self.device.pid is not None
        return float(psutil.Process(self.device.pid).memory_info().rss) / MB

    def ask(self, name: str, *texts: str, deadline_at: float | None = None) -> list[Outcome | None]:
        entries = []
        for text in texts:
            row = self.models[name].prepare(text, {})
            entries.append(Entry(row, ("echo",), Waiting(name, 3, row.size, time.time(), deadline_at)))
        self.batcher.submit(entries).wait()
        return [entry.outcome for entry in entries]


def answered_by(outcome: Outcome | None) -> int:
    assert isinstance(outcome, Computed)
    return int(outcome.outputs["echo"][1])


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory, device_bytes: int) -> Iterator[Rig]:
    made = Rig(tmp_path_factory.mktemp("budget"), device_bytes).start()
    yield made
    made.batcher.stop()


def test_each_model_is_measured_when_the_worker_starts(rig: Rig) -> None:
    """Once each, and no more of them are loaded then than there is room for."""
    assert rig.batcher.out_of_service is None
    loads, loaded, measured = rig.at_start
    assert (loads, loaded, len(measured)) == (3, 2, 3)
    for takes in measured.values():
        assert takes.bytes / MB == pytest.approx(MODEL_MB, abs=NOISE_MB)


@pytest.mark.long
def test_memory_comes_back_when_a_model_goes(rig: Rig, device_bytes: int) -> None:
    """The system itself says so: after six questions as after the first, two models and no more."""
    seen = []
    for name in "abcabc":
        [outcome] = rig.ask(name, f"for {name}")
        assert answered_by(outcome) == rig.models[name].number
        seen.append(rig.taken_mb)
    assert max(seen) <= device_bytes / MB + 2 * MODEL_MB + NOISE_MB
    assert min(seen) >= device_bytes / MB + MODEL_MB - NOISE_MB
    assert len(rig.residence.loaded) == 2


def test_batches_tell_how_often_a_model_was_loaded(rig: Rig) -> None:
    rig.ask("a", "x")
    rig.batches.clear()
    before = rig.residence.loads
    for name in "abc":
        rig.ask(name, "y")
    assert sum(batch.loads for batch in rig.batches) == rig.residence.loads - before >= 1
    assert [batch.model for batch in rig.batches] == ["a", "b", "c"]


def test_items_of_a_loaded_model_do_not_wait_for_another_to_come(rig: Rig) -> None:
    """While a model is loaded the others' batches run."""
    rig.ask("a", "x")
    rig.ask("b", "x")
    hold = rig.models["c"].spec.folder / "hold"
    hold.touch()
    row = rig.models["c"].prepare("waits", {})
    waiting = Entry(row, ("echo",), Waiting("c", 3, row.size, time.time()))
    group = rig.batcher.submit([waiting])
    [outcome] = rig.ask("b", "goes on")
    assert answered_by(outcome) == 2
    assert waiting.outcome is None
    hold.unlink()
    group.wait()
    assert answered_by(waiting.outcome) == 3


def test_a_deadline_that_cannot_be_met_loads_nothing(rig: Rig) -> None:
    """What the loading takes is known, and counts."""
    for _ in range(20):  # until a load that an earlier test has asked for is over
        rig.ask("a", "x")
        rig.ask("b", "x")
        if "c" not in rig.residence.loaded:
            break
    before = rig.residence.loads
    rig.residence._models["c"].footprint = Footprint(MODEL_MB * MB, load_s=5.0)
    [late] = rig.ask("c", "too soon", deadline_at=time.time() + 1.0)
    assert isinstance(late, Expired)
    assert rig.residence.loads == before
    [outcome] = rig.ask("c", "in good time", deadline_at=time.time() + 60.0)
    assert answered_by(outcome) == 3


def test_a_killed_process_loads_what_is_needed_and_no_more(rig: Rig) -> None:
    rig.ask("a", "x")
    rig.device.kill()
    [outcome] = rig.ask("b", "after it")
    assert answered_by(outcome) == 2
    assert rig.residence.loaded == ["b"]


@pytest.mark.long
def test_a_poison_item_is_found_though_models_come_and_go(rig: Rig) -> None:
    """Alone, on the model that it is of, which is loaded anew after each death."""
    [outcome] = rig.ask("c", "die")
    assert isinstance(outcome, Failed)
    assert outcome.kind == "DeviceLost"
    [outcome] = rig.ask("c", "fine")
    assert answered_by(outcome) == 3


def test_a_poison_item_costs_no_model_that_is_loaded_beside_it(rig: Rig) -> None:
    """The process ends again and again while that model is loaded, which is not why."""
    rig.ask("b", "x")
    rig.ask("c", "x")
    hold = rig.models["a"].spec.folder / "hold"
    hold.touch()
    row = rig.models["a"].prepare("waits", {})
    waiting = Entry(row, ("echo",), Waiting("a", 3, row.size, time.time()))
    group = rig.batcher.submit([waiting])
    until(lambda: rig.residence.loading == "a")
    [outcome] = rig.ask("c", "die")
    hold.unlink()
    assert isinstance(outcome, Failed)
    assert outcome.kind == "DeviceLost"
    group.wait()
    assert answered_by(waiting.outcome) == 1
    assert rig.batcher.out_of_service is None


@pytest.mark.long
def test_a_model_that_is_too_large_by_itself(tmp_path: Path, device_bytes: int) -> None:
    """The worker does not start, and says which model, and what to do."""
    rig = Rig(tmp_path, device_bytes, largest_mb=ROOM_MB + NOISE_MB).start()
    try:
        assert rig.batcher.out_of_service is not None
        assert rig.batcher.out_of_service.startswith("model c")
        assert "over worker.memory_budget" in rig.batcher.out_of_service
    finally:
        rig.batcher.stop()
