"""The batcher and a real device process: what a fault costs, and whom."""

from __future__ import annotations

import queue
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from producers.wire.catalogue import KINDS, Task
from results_store.records import Batch
from tests.end_to_end.processes import until
from tests.scripted_model import ScriptedModel
from workers.batching.batcher import Batcher, BatcherSettings
from workers.batching.planning.policy import Budget
from workers.batching.planning.waiting_pool import Waiting
from workers.batching.roster import ServedModel
from workers.batching.work import Cancelled, Computed, Entry, Expired, Failed, Interrupted
from workers.device.device_client import ProcessDevice
from workers.device.device_process import ModelToLoad
from workers.device.devices import cpu
from workers.models.interface.model import ModelSpec

ECHO = Task("echo", KINDS["text-classification"], "scripted", "")
SHOUT = Task("shout", KINDS["text-classification"], "scripted", "")


class Rig:
    """A batcher with a scripted model on a real device process, and what it reported."""

    def __init__(self, *, batch_timeout_s: float = 30.0, **options: object) -> None:
        spec = ModelSpec("scripted", Path(), "1", {task.name: task for task in (ECHO, SHOUT)}, options)
        self.model = ScriptedModel(spec)
        self.batches: list[Batch] = []
        self.reasons: list[str] = []
        self.batcher = Batcher(
            {"scripted": ServedModel(self.model, "1", Budget(cost=100_000, rows=64))},
            BatcherSettings(
                worker="w", device="cpu", load_timeout_s=60, batch_timeout_s=batch_timeout_s, guaranteed_shares={}
            ),
            on_batch=self.batches.append,
            on_out_of_service=self.reasons.append,
        )
        to_load = [ModelToLoad.from_spec("tests.scripted_model:ScriptedModel", spec)]
        self.device = ProcessDevice(cpu(), to_load, self.batcher.tell, threads=1)

    def start(self) -> Rig:
        self.batcher.start(self.device)
        self.batcher.came_up.wait()
        return self

    def entry(
        self,
        text: str,
        *,
        tasks: tuple[str, ...] = ("echo",),
        deadline_at: float | None = None,
        job: str = "a",
        priority: int = 3,
    ) -> Entry:
        row = self.model.prepare(text, {})
        return Entry(row, tasks, Waiting("scripted", priority, self.model.cost(row), 1.0, deadline_at), job=job)

    def run(self, texts: Sequence[str]) -> list[Entry]:
        """Run texts as one envelope. They are handed over as one, so equally long ones meet in one batch."""
        entries = [self.entry(text) for text in texts]
        self.batcher.submit(entries).wait()
        return entries


@pytest.fixture
def rig() -> Iterator[Callable[..., Rig]]:
    rigs: list[Rig] = []

    def start(**options: object) -> Rig:
        rigs.append(Rig(**options))  # type: ignore[arg-type]
        return rigs[-1].start()

    yield start
    for each in rigs:
        each.batcher.stop()


def crc(entry: Entry, task: str = "echo") -> int:
    assert isinstance(entry.outcome, Computed)
    return int(entry.outcome.outputs[task][0])


def test_every_item_gets_its_own_output(rig):
    """Rows are sorted, shared and padded on the way; what comes back must belong to the item that asked."""
    texts = [f"text {n % 40} " + "x" * (n % 7) for n in range(200)]
    entries = rig().run(texts)
    assert [crc(entry) for entry in entries] == [zlib.crc32(text.encode()) for text in texts]


def test_equal_content_is_one_row(rig):
    """What several items and tasks want of the same content is computed once."""
    one = rig()
    entries = [one.entry("same"), one.entry("same", tasks=("echo", "shout")), one.entry("else", tasks=("shout",))]
    one.batcher.submit(entries).wait()
    assert (one.batches[-1].items, one.batches[-1].rows) == (3, 2)
    assert one.batches[-1].heads == {"echo": 2, "shout": 2}
    assert crc(entries[1], "shout") == crc(entries[0])


POISONS = {
    "raise": "ModelError",
    "die": "DeviceLost",
    "hang": "DeviceHung",
    "short": "WrongOutput",
    "oom": "OutOfMemory",
}


@pytest.mark.parametrize(
    ("poison", "kind", "position"),
    [
        pytest.param(poison, kind, position, marks=[pytest.mark.long] * (poison == "hang" and position in (1, 2)))
        for poison, kind in POISONS.items()
        for position in range(4)
    ],
)
def test_a_poison_item_fails_alone(rig, poison, kind, position):
    """In each position of its batch and whatever it does, it fails by name and its neighbours succeed."""
    texts = [f"innocent {n}" for n in range(4)]
    texts[position] = poison.ljust(len(texts[0]))
    entries = rig(batch_timeout_s=1.0 if poison == "hang" else 30.0).run(texts)
    for n, entry in enumerate(entries):
        if n == position:
            assert isinstance(entry.outcome, Failed)
            assert entry.outcome.kind == kind
        else:
            assert crc(entry) == zlib.crc32(texts[n].encode())


def test_a_hanging_batch_is_found_though_messages_keep_coming(rig):
    """The batcher's thread has something to do all the time."""
    one = rig(batch_timeout_s=1.0)
    entry = one.entry("hang")
    one.batcher.submit([entry])

    def failed() -> bool:
        one.batcher.weigh({})
        return entry.outcome is not None

    until(failed)
    assert isinstance(entry.outcome, Failed)
    assert entry.outcome.kind == "DeviceHung"


def test_a_killed_device_process_costs_nobody(rig):
    """One death may be the kernel's or an operator's doing: nobody is blamed for it."""
    one = rig()
    first = [one.entry("sleep 0.3 x"), one.entry("y")]
    group = one.batcher.submit(first)
    one.device.kill()
    group.wait()
    assert all(isinstance(entry.outcome, Computed) for entry in first)


def test_a_lone_item_survives_one_kill(rig):
    """Even an item that was alone in the process when it died gets a second chance."""
    one = rig()
    entry = one.entry("sleep 0.5 alone")
    group = one.batcher.submit([entry])
    one.device.kill()
    group.wait()
    assert isinstance(entry.outcome, Computed)


def test_what_cannot_be_loaded_leaves_service(rig):
    """A model that raises in load does so again: the node says so instead of taking work."""
    one = rig(fail_to_load="raise")
    assert "scripted not to load" in (one.batcher.out_of_service or "")
    entry = one.entry("x")
    one.batcher.submit([entry]).wait()
    assert isinstance(entry.outcome, Interrupted)
    assert one.device.life == 1


def test_a_device_that_keeps_dying_leaves_service(rig):
    """Three starts without coming up are enough."""
    one = rig(fail_to_load="die")
    assert "did not come up 3 times" in (one.batcher.out_of_service or "")
    assert len(one.reasons) == 1


def test_an_item_past_its_deadline_is_not_computed(rig):
    """Expiry is decided before the device sees the item."""
    one = rig()
    late = one.entry("late", deadline_at=10.0)
    one.batcher.submit([late]).wait()
    assert isinstance(late.outcome, Expired)
    assert not one.batches


def test_cancelling_drops_what_waits_of_the_job(rig):
    """The items of other jobs, and what the device already has, go on."""
    one = rig()
    running = one.batcher.submit([one.entry("sleep 0.3 running", job="a")])
    staged = one.batcher.submit([one.entry("sleep 0.01 staged " + "x" * 99, job="a")])
    waiting = [one.entry(f"item {n}", job=job) for n, job in enumerate("abab")]
    group = one.batcher.submit(waiting)
    one.batcher.cancel(["a"])
    for each in (running, staged, group):
        each.wait()
    assert [type(entry.outcome) for entry in waiting] == [Cancelled, Computed, Cancelled, Computed]


def three_at_the_device(one: Rig, last: str) -> list[Entry]:
    """Hand over a batch that runs, one that is staged (it leaves another waiting), and an urgent one."""
    running, staged = one.entry("sleep 0.3"), one.entry("sleep 0.1 staged", priority=9)
    behind = one.entry("unlike it in size".ljust(99), priority=9)
    urgent = one.entry(last, priority=0)
    sent: queue.SimpleQueue[str] = queue.SimpleQueue()
    send = one.device.run

    def run(batch: str, *args: Any, **urgency: int) -> None:
        send(batch, *args, **urgency)
        sent.put(batch)

    one.device.run = run  # type: ignore[method-assign]
    groups = []
    for entries in ([running], [staged, behind], [urgent]):
        groups.append(one.batcher.submit(entries))
        sent.get()
    for group in groups:
        group.wait()
    return [running, staged, urgent]


def test_an_urgent_batch_overtakes_the_staged_one(rig):
    """The staged one was sent first, and waits in the device process."""
    outcomes = [entry.outcome for entry in three_at_the_device(rig(), "urgent")]
    assert all(isinstance(outcome, Computed) for outcome in outcomes)
    _, staged, urgent = (outcome.computed_at for outcome in outcomes)
    assert urgent < staged


def test_an_overtaking_batch_that_kills_the_device_is_found_out(rig):
    """Either of two batches may have run when the process died: both are tried again, and only one dies."""
    running, staged, urgent = three_at_the_device(rig(), "die")
    assert isinstance(running.outcome, Computed)
    assert isinstance(staged.outcome, Computed)
    assert isinstance(urgent.outcome, Failed)
    assert urgent.outcome.kind == "DeviceLost"


def test_stopping_interrupts_what_waits(rig):
    """Nothing that was taken is dropped: whoever waits hears that it was interrupted."""
    one = rig()
    entries = [one.entry("sleep 5 long"), one.entry("waiting behind")]
    groups = [one.batcher.submit([entry]) for entry in entries]
    one.batcher.stop()
    for group in groups:
        group.wait()
    assert all(isinstance(entry.outcome, Interrupted) for entry in entries)
    after = one.entry("too late")
    one.batcher.submit([after]).wait()
    assert isinstance(after.outcome, Interrupted)


def test_out_of_memory_shrinks_the_batches(rig):
    """Once a batch was too large for the device, no later one is as large."""
    one = rig()
    one.run(["oom", *[f"n{n:02}" for n in range(15)]])
    one.batches.clear()
    one.run([f"later {n:02}" for n in range(32)])
    assert max(batch.rows for batch in one.batches) <= 8
